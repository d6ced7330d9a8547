"""Memory of this process: how often Python looks for garbage, and what the C library does with freed memory."""

from __future__ import annotations

import atexit
import gc
import os

_CHOSEN_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h


def collect_seldom() -> None:
    """Run full garbage collections ten times less often, and none at the end of the process.

    torch, torchvision and timm create 380,000 objects that live as long as the process. Full collections take a fifth of their
    import, and freeing the objects one by one at the end takes .8 s. Collections of young objects are as frequent as before.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 100)
    atexit.register(gc.freeze)


def keep_freed_memory() -> None:
    """Let the process reuse the memory of freed tensors, where the C library is glibc and no variable of glibc says otherwise.

    By default glibc returns each freed block of more than 32 MiB to the operating system, which clears every page before the
    next use: a step of efficientnet_b0 on 128 images of 224 x 224 takes 2.3 times as long, of resnet50 on 16 images 1.15 times.
    With reuse the process never shrinks, and its peak was 4 to 20 % higher. The variables are those of mallopt(3).
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
