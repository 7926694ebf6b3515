"""Groups and members: one process, and strategies that do not fit; test_distributed.py has several processes."""

from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType

from walrus_hf.training.topology import Topology, check_processes


def test_one_process_is_a_group_of_one():
    assert Topology.from_accelerator(Accelerator(cpu=True)) == Topology(1, 1, 0, 0)


def test_processes_that_a_launcher_started_and_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"expected 3 processes .* knows of 1; on CPUs set ACCELERATE_USE_CPU=true"):
        check_processes(accelerator(DistributedType.NO, world=1))
    check_processes(accelerator(DistributedType.MULTI_CPU, world=3, rank=2))


def test_processes_that_torch_joined_without_a_launcher_count_as_well(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"expected 2 processes .* knows of 1"):
        check_processes(accelerator(DistributedType.NO, world=1))
    check_processes(accelerator(DistributedType.MULTI_CPU, world=2))


def test_ranks_count_the_members_of_a_group_first():
    found = [Topology.of_rank(rank, 3, 2) for rank in range(6)]
    assert [(t.group, t.member) for t in found] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [t.rank for t in found] == list(range(6))
    assert {t.world_size for t in found} == {6}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 0, 0), "groups: expected at least 1, found 0"),
        ((1, 0, 0, 0), "members: expected at least 1, found 0"),
        ((2, 2, 2, 0), "group: expected 0 to 1, found 2"),
        ((2, 2, 0, -1), "member: expected 0 to 1, found -1"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        Topology(*numbers)


def test_a_rank_beyond_the_groups_is_refused():
    with pytest.raises(ValueError, match="group: expected 0 to 1, found 2"):
        Topology.of_rank(4, 2, 2)
    with pytest.raises(ValueError, match="members: expected at least 1, found 0"):
        Topology.of_rank(0, 2, 0)


def accelerator(kind, world=4, rank=0, fsdp2=True, place=None, **sizes):
    """What Accelerate tells of a set-up that this machine cannot start."""
    config = SimpleNamespace(**{"tp_size": 1, "cp_size": 1, "sp_size": 1, **sizes}) if sizes else None
    group, member = place or (0, 0)
    return SimpleNamespace(
        num_processes=world, process_index=rank, distributed_type=kind, is_fsdp2=fsdp2, parallelism_config=config,
        data_parallel_rank=group, data_parallel_shard_rank=member,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (accelerator(DistributedType.DEEPSPEED), "expected data parallel or FSDP2, found DEEPSPEED"),
        (accelerator(DistributedType.MEGATRON_LM), "expected data parallel or FSDP2, found MEGATRON_LM"),
        (accelerator(DistributedType.FSDP, fsdp2=False), "fsdp_version: expected 2, found 1"),
        (
            accelerator(DistributedType.FSDP, dp_replicate_size=1, dp_shard_size=2, tp_size=2),
            "tp_size: expected 1, found 2; samples are not split",
        ),
        (
            accelerator(DistributedType.FSDP, dp_replicate_size=2, dp_shard_size=4),
            r"expected dp_replicate_size \* dp_shard_size = 4 processes, found 2 \* 4",
        ),
        (
            accelerator(DistributedType.FSDP, rank=1, place=(1, 0), dp_replicate_size=2, dp_shard_size=2),
            "expected rank 1 to be member 1 of group 0, found member 0 of group 1; groups must be consecutive ranks",
        ),
    ],
)
def test_strategies_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Topology.from_accelerator(given)
