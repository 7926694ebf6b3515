"""What glibc does with large tensors on a CPU once they are freed.

A library must not change this for its host, so only entry points of our own call these: the command line, the examples
and the benchmarks. Both return False where there is no glibc.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Keep what is freed instead of handing blocks of 32 MiB and more back to the kernel each time.

    The kernel would zero their pages at every use, which costs a forecast about a tenth of its time.
    """
    return _mallopt(M_MMAP_THRESHOLD, 1 << 30) and _mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def return_freed_memory() -> bool:
    """Hand tensors of 1 MiB and more back to the kernel when they are freed.

    Gradient checkpointing frees what it will compute again, but the few tensors that it keeps would pin all of that in
    the heap: a training step would take as much memory as without.
    """
    return _mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _mallopt(option: int, value: int) -> bool:
    try:
        return bool(ctypes.CDLL(None).mallopt(option, value))
    except (OSError, AttributeError, TypeError):
        return False
