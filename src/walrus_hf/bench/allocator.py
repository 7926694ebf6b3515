"""Memory of large tensors on a CPU, for processes that are ours: the command line and the benchmarks."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed instead of handing blocks of 32 MiB and more back to the kernel each time.

    The kernel would zero their pages at every use, which costs a forecast on a CPU about a tenth of its time. A library
    must not change this for its host, so only our own entry points call it. False where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))
