"""Keep freed CPU memory in the process instead of returning it to the operating system."""

import ctypes
import os
import platform

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 4097  # the largest int, minus what malloc adds to a size
# By the argument ``keep``: the block size above which memory is returned to the system. glibc starts
# at 128 KiB and raises both thresholds while large blocks are freed, up to the values for False.
_THRESHOLDS = {
    True: {_M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: _LARGEST},
    False: {_M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: 64 * 2**20},
}
ENVIRONMENT = "GN_DET_KEEP_MEMORY"


def keep_freed_memory(keep: bool = True) -> bool:
    """Let the C library keep freed memory for the next tensors of this process.

    By default, glibc requests the memory of each tensor above 32 MiB from the system and returns it
    when the tensor is freed. Then every such activation causes one page fault per page, and the
    system first sets each page to zero. On the feature maps of detectors this costs more than the
    operations between convolutions (docs/performance.md). With this function, the process keeps the
    largest amount of memory that it has used. It does nothing with other C libraries, or if the
    environment variable ``GN_DET_KEEP_MEMORY`` is 0.

    Args:
        keep: False restores the thresholds that glibc reaches by itself after large tensors were
            freed, and returns free memory to the system.

    Returns:
        whether the setting was changed.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get(ENVIRONMENT) == "0":
        return False
    libc = ctypes.CDLL(None)
    for option, size in _THRESHOLDS[keep].items():
        if not libc.mallopt(option, size):
            return False
    if not keep:
        libc.malloc_trim(0)
    return True
