"""Memory of the C library that tests free is kept for the next array, not given back page by page.

Programs of XLA take and free arrays of megabytes at each call; to get them from the kernel anew is a tenth of the
processor's time of tests.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed() -> None:
    """Sets what `mallopt` has for it, in this process and those that are forked from it."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_TOP_PAD, 2**26)
