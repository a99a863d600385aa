"""Values of an LMDB file read and verified in C, many in one call, while other threads run.

It says only what is there and right. Its twin, value by value in Python, says of the rest what is
wrong (chunkcache/store/slab_file.py); the checksum's twin is python-xxhash.
"""

from __future__ import annotations

import ctypes as c
from typing import TYPE_CHECKING

import numpy as np

from chunkcache_kernels.compiler import SLABS, NoCompiler, build_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PAGE_TOKENS = 16  # of no meaning here
_CHECKSUM_BYTES = 16
_SLAB = np.dtype([  # `Slab` of slabs.c
    ("page", np.int64), ("length", np.int64), ("padding", np.int64),
    ("checksum", f"V{_CHECKSUM_BYTES}"),
])  # fmt: skip


class SlabReader:
    """Thread-safe.

    Args:
        cache: where the compiled library is kept.

    Raises:
        NoCompiler: the library cannot be built, or the processor has no vectors for it.
    """

    def __init__(self, cache: Path) -> None:
        library = c.CDLL(str(build_library(cache, _PAGE_TOKENS, SLABS)))
        if not library.chunkcache_slabs_here():
            raise NoCompiler("checksums in C need AVX2, which this processor does not have")
        self._read = library.chunkcache_read_slabs
        size = c.c_int64
        self._read.argtypes = [c.c_int, c.c_void_p, c.c_int, size, c.c_void_p, size, size]
        self._read.restype = c.c_int

    def table(
        self, pages: Sequence[int], lengths: Sequence[int], paddings: Sequence[int],
        checksums: Sequence[bytes],
    ) -> np.ndarray:  # fmt: skip
        """Values as `read` takes them: the number of each one's first page in the file (-1: not
        known, it will not be read), its bytes, zeros behind them, and xxh3_128 of both.
        """
        made = np.zeros(len(pages), _SLAB)
        made["page"], made["length"], made["padding"] = pages, lengths, paddings
        made["checksum"] = np.frombuffer(b"".join(checksums), made["checksum"].dtype)
        return made

    def read(self, descriptor: int, values: np.ndarray, rows: np.ndarray, page_bytes: int) -> int:
        """Read values, each into a row of uint8 `rows` `[n, length]`, as long as it.

        Returns: how many of them, from the first on, are there and right. What the rows of the
        others hold means nothing.
        """
        count, length = rows.shape
        stride, step = rows.strides
        assert len(values) == count and rows.dtype == np.uint8 and step == 1
        found = self._read(
            descriptor, values.ctypes.data, count, page_bytes, rows.ctypes.data, length, stride
        )
        return int(found)
