"""Dropping a file from the page cache while this process has it mapped, and seeing that it was."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_DONTNEED = 4  # of madvise: the pages of a mapping; those of the file stay in the page cache


def drop(file: Path) -> None:
    """Write a file back and drop it from the page cache, though LMDB maps it.

    Pages that a process has touched stay: they are taken out of this process's mappings first. What
    the machine below caches, if this is a virtual one, cannot be dropped.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED):
                raise OSError(ctypes.get_errno(), f"madvise of {file.name}")
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def bytes_fetched() -> int:
    """Bytes this process made the kernel fetch from a device so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
