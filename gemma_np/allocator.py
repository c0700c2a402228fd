"""Keep freed memory in the process, for the next arrays of the same size.

By default glibc returns large freed arrays to the system at once. A training step, which allocates hundreds of them,
then takes up to a quarter longer, since the system has to clear every page that it hands out again.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_LARGEST_MMAP_THRESHOLD = 2**25
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the process keep up to 2 GiB of freed memory. Return whether its allocator can, which is only glibc's."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
