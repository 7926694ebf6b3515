"""FSDP2 and HSDP on CPUs, for tests: Accelerate knows them on accelerators only, so here it takes a CPU for one.

Without this it falls back to DDP, in silence.
"""

import os

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def shard(groups: int = 1) -> None:
    """The next `Accelerator` shards the model over the processes, or over those of each group."""
    _restart(DistributedType.MULTI_GPU, ACCELERATE_USE_FSDP="true")
    members = PartialState().num_processes // groups
    os.environ |= {
        "ACCELERATE_USE_PARALLELISM_CONFIG": str(groups > 1).lower(),
        "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": str(groups),
        "PARALLELISM_CONFIG_DP_SHARD_SIZE": str(members),
    }


def replicate() -> None:
    """The next `Accelerator` gives every process the whole model (DDP)."""
    _restart(DistributedType.MULTI_CPU, ACCELERATE_USE_FSDP="false", ACCELERATE_USE_PARALLELISM_CONFIG="false")


def _restart(kind: DistributedType, **environment: str) -> None:
    AcceleratorState._reset_state()
    PartialState(cpu=True)._shared_state["distributed_type"] = kind
    os.environ |= environment
