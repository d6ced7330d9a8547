"""Memory of this process: how often Python looks for garbage, and what the C library does with freed memory."""

from __future__ import annotations

import atexit
import gc
import os

_CHOSEN_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h


def collect_seldom() -> None:
    """Look for garbage among all objects only now and then, and not at the end of the process.

    torch, torchvision and timm create 380,000 objects that stay. To look through all of them again and again takes a fifth of
    their import, and to do so once more at the end takes .8 s.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 100)
    atexit.register(gc.freeze)


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors for the next ones, where the C library is glibc.

    By default glibc returns each freed block of more than 32 MiB to the operating system, which clears every page of the next
    one: efficientnet_b0 on 128 images of 224 x 224 takes 2.3 times as long, resnet50 on 16 of them 1.15 times. The process
    keeps what it once needed, which was 4 to 20 % more at its peak. The variables of glibc (mallopt(3)) choose otherwise.
    """
    if is_glibc() and not any(name in os.environ for name in _CHOSEN_BY_USER):
        import ctypes  # which the help of the command line does without

        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)  # take large blocks from the heap, too,
        mallopt(_M_TRIM_THRESHOLD, -1)  # and never shrink the heap


def is_glibc() -> bool:
    """Check whether the C library of this process is glibc; musl and that of macOS are not."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):  # the name is not known, or the system has no such value
        return False
