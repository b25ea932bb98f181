"""The allocator's settings for a process that handles megabytes, over and over."""

import ctypes

# Of <malloc.h>; see mallopt(3).
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
MEBIBYTE = 1024 * 1024


def keep_freed_memory() -> bool:
    """Let glibc use the memory of one batch for the next instead of giving it back in between.

    By default a block of megabytes is mapped anew each time, and the kernel must clear each of its
    pages: of the 3.6 ms of processor time that bare gRPC took to receive 6.3 MB, on an AMD EPYC,
    1.8 ms were that. A trainer's passes through a small UNet spent 3 to 8 % of their processor time
    so, the more the more rows they had. In return freed memory stays with the process: up to 256
    MiB at the top of the heap, and whatever lies below a block that is still in use, until
    `give_back_freed_memory`. One arena for all threads keeps that together.

    Returns:
        False where the C library is another one, whose defaults then stand.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):
        return False
    settings = (
        (_MMAP_THRESHOLD, 32 * MEBIBYTE),  # the greatest that mallopt takes
        (_TRIM_THRESHOLD, 256 * MEBIBYTE),
        (_ARENA_MAX, 1),
    )
    return all(mallopt(option, value) == 1 for option, value in settings)


def give_back_freed_memory() -> bool:
    """Give the system what this process has freed, as one does when nothing is left to do.

    It took 0.2 s for 2 GiB, and 0.1 ms where there was nothing. The next batch pays for fresh
    pages.

    Returns:
        False where the C library has no such call, or had nothing to give.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, TypeError, OSError):
        return False
