"""Where this process stands among all: which shard group it belongs to, and as which member of it."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclasses.dataclass(frozen=True)
class Topology:
    """Processes as groups of members.

    The members of a group share one copy of the model and march through its layers together, so they work on batches
    of one scenario and shape. Groups meet once an optimiser step, when gradients are averaged.

    Attributes:
        groups, members: how many groups, and processes in each.
        group, member: of this process. Ranks count members first: `rank = group * members + member`.

    Raises:
        ValueError: numbers that contradict each other.
    """

    groups: int = 1
    members: int = 1
    group: int = 0
    member: int = 0

    def __post_init__(self) -> None:
        for name, count in (("groups", self.groups), ("members", self.members)):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, found {count}")
        for name, place, count in (("group", self.group, self.groups), ("member", self.member, self.members)):
            if not 0 <= place < count:
                raise ValueError(f"{name}: expected 0 to {count - 1}, found {place}")

    @property
    def world_size(self) -> int:
        return self.groups * self.members

    @property
    def rank(self) -> int:
        return self.group * self.members + self.member

    @classmethod
    def of_rank(cls, rank: int, groups: int, members: int) -> Topology:
        """Of the process with that number."""
        group, member = divmod(rank, members) if members > 0 else (0, 0)
        return cls(groups, members, group, member)

    @classmethod
    def from_accelerator(cls, accelerator: Accelerator) -> Topology:
        """As Accelerate set the processes up.

        One process: one group of one. Data parallel (DDP): groups of one member, each with a whole model. FSDP2: one
        group of all, or with a `ParallelismConfig` `dp_replicate_size` groups of `dp_shard_size` members (HSDP), which
        are consecutive ranks and so, launched with one rank a GPU, those of a node.

        Raises:
            ValueError: a strategy that splits single samples, shards in another way, or does not fit the processes.
        """
        from accelerate.utils import DistributedType

        world, rank, kind = accelerator.num_processes, accelerator.process_index, accelerator.distributed_type
        if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA):
            raise ValueError(f"distributed_type: expected data parallel or FSDP2, found {kind.value}; see the configs")
        sizes = accelerator.parallelism_config
        if sizes is not None:
            return cls._from_mesh(accelerator)
        if kind == DistributedType.FSDP:
            if not accelerator.is_fsdp2:
                raise ValueError("fsdp_version: expected 2, found 1; set it in the Accelerate config")
            return cls.of_rank(rank, 1, world)
        return cls.of_rank(rank, world, 1)

    @classmethod
    def _from_mesh(cls, accelerator: Accelerator) -> Topology:
        world, rank = accelerator.num_processes, accelerator.process_index
        sizes = accelerator.parallelism_config
        split = {"tp_size": sizes.tp_size, "cp_size": sizes.cp_size, "sp_size": sizes.sp_size}
        for name, size in split.items():
            if size > 1:
                raise ValueError(f"{name}: expected 1, found {size}; samples are not split between processes here")
        groups, members = sizes.dp_replicate_size, sizes.dp_shard_size
        if groups * members != world:
            raise ValueError(
                f"expected dp_replicate_size * dp_shard_size = {world} processes, found {groups} * {members}; "
                "change parallelism_config or num_processes"
            )
        found = cls(groups, members, accelerator.data_parallel_rank, accelerator.data_parallel_shard_rank)
        if found.rank != rank:
            raise ValueError(
                f"expected rank {rank} to be member {rank % members} of group {rank // members}, found member "
                f"{found.member} of group {found.group}; groups must be consecutive ranks"
            )
        return found


def check_processes(accelerator: Accelerator) -> None:
    """Refuse to start where Accelerate does not know of the processes that there are.

    It leaves each of them alone where it finds no accelerator and was not told to use the CPU, and where a
    `PartialState` came before the `Accelerator`. Each would take itself for the one that writes.

    Raises:
        ValueError: another number than the launcher's `WORLD_SIZE`, or than torch.distributed has.
    """
    joined = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    expected, found = max(joined, int(os.environ.get("WORLD_SIZE", "1"))), accelerator.num_processes
    if expected != found:
        raise ValueError(
            f"expected {expected} processes that work together, as WORLD_SIZE or torch.distributed says, "
            f"but Accelerate knows of {found}; on CPUs set ACCELERATE_USE_CPU=true, and make an Accelerator before the "
            "first PartialState"
        )
