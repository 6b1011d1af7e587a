"""The C library's memory allocator: told to give memory back. Only glibc's is known; others are left as they are.

glibc raises the size from which it asks the system for single blocks with every such block that is freed; after the
first buffer of a shard's piece it would keep tens of MB for small things. And it makes a heap per thread. Any thread.
"""

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 1 << 20
_SPARE_BYTES = 1 << 18


def keep_allocator_small() -> None:
    """To be called once, before anything large is allocated: blocks of 1 MiB and more go back as they are freed, all
    threads share one heap."""
    libc = _glibc()
    if libc is not None:
        for parameter, value in ((_MMAP_THRESHOLD, _LARGE_BYTES), (_TRIM_THRESHOLD, _SPARE_BYTES), (_ARENA_MAX, 1)):
            libc.mallopt(parameter, value)


def give_back_freed() -> None:
    """Returns to the system what is free in the heap; some milliseconds."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    try:
        libc.mallopt.argtypes, libc.mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
        libc.malloc_trim.argtypes, libc.malloc_trim.restype = [ctypes.c_size_t], ctypes.c_int
    except AttributeError:  # another C library
        return None
    return libc
