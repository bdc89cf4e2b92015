"""Memory of the CPU between tensors."""

import ctypes
import logging
import os
import platform

logger = logging.getLogger(__name__)

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 4097  # an int, less what malloc adds
# keep -> the sizes from which memory goes back. glibc begins at 128 KiB and raises both as tensors are freed, up to these.
_SIZES = {True: {_M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: _LARGEST}}
_SIZES[False] = {_M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: 64 * 2**20}
ENVIRONMENT = "GN_DET_KEEP_MEMORY"


def keep_freed_memory(keep: bool = True) -> bool:
    """Let the C library keep memory that is freed, for the next tensor of this process.

    By default glibc takes each tensor above 32 MiB from the system and gives it back, so that such an activation begins with
    as many page faults as it has pages, and the system sets each page to zero first. On detection's feature maps that costs
    more than the operations between convolutions do (docs/performance.md). Kept, the process stays as large as it was at
    its largest. ``GN_DET_KEEP_MEMORY=0`` leaves glibc as it is; other C libraries are left alone.

    Args:
        keep: False goes back to what glibc does by itself once large tensors were freed, and returns what is free to the
            system.

    Returns:
        whether it was done.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get(ENVIRONMENT) == "0":
        return False
    libc = ctypes.CDLL(None)
    for option, size in _SIZES[keep].items():
        if not libc.mallopt(option, size):
            return False
    if not keep:
        libc.malloc_trim(0)
    return True
