"""Values of an LMDB file read and verified in C, many in one call, while other threads run.

It says only what is there and right. Its twin, value by value in Python, says of the rest what is
wrong (chunkcache/store/slab_file.py); the checksum's twin is python-xxhash.
"""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chunkcache_kernels.compiler import SLABS, NoCompiler, build_library

if TYPE_CHECKING:
    from pathlib import Path

_PAGE_TOKENS = 16  # of no meaning here
_CHECKSUM_BYTES = 16
TOLD_BYTES = 8 + _CHECKSUM_BYTES
_SLAB = np.dtype([  # `Slab` of slabs.c
    ("page", np.int64), ("length", np.int64), ("padding", np.int64),
    ("checksum", f"V{_CHECKSUM_BYTES}"),
])  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class SlabTable:
    """Values as `SlabReader` takes them: the number of each one's first page in the file (-1: not
    known, it will not be read), its bytes, zeros behind them, and a checksum of both.
    """

    values: np.ndarray
    address: int  # of their first one


class SlabReader:
    """Thread-safe.

    Args:
        cache: where the compiled library is kept.

    Raises:
        NoCompiler: the library cannot be built, or the processor has no vectors for it.
    """

    def __init__(self, cache: Path) -> None:
        path = build_library(cache, _PAGE_TOKENS, SLABS)
        library: c.CDLL = c.CDLL(str(path))
        if not library.chunkcache_slabs_here():
            raise NoCompiler("checksums in C need AVX2, which this processor does not have")
        size = c.c_int64
        self._read = library.chunkcache_read_slabs
        self._read.argtypes = [c.c_int, c.c_void_p, c.c_int, size, c.c_void_p, size, size]
        self._read.restype = c.c_int
        # what takes no time lets no other thread run meanwhile: waiting for the turn takes longer
        library = c.PyDLL(str(path))
        self._told = library.chunkcache_told_slabs
        self._told.argtypes, self._told.restype = [c.c_char_p, c.c_int, c.c_void_p], None
        self._find = library.chunkcache_find_slabs
        self._find.argtypes = [c.c_void_p, c.c_int, size, c.c_int, c.c_int, c.c_void_p]
        self._find.restype = c.c_int

    def table(self, told: bytes) -> SlabTable:
        """Values as `told` of: the length of each one (u64) and xxh3_128 of it and of the zeros
        behind it, one after the other. Where they lie is not known yet.
        """
        values = np.empty(len(told) // TOLD_BYTES, _SLAB)
        table = SlabTable(values, values.__array_interface__["data"][0])
        self._told(told, len(values), table.address)
        return table

    def find(
        self, table: SlabTable, first: int, key: int, digest_bytes: int, page_bytes: int
    ) -> int:
        """Note where values lie, from number `first` on, that stand in one leaf page of LMDB's.

        Args:
            key: address in that page of the key of `first`: a digest and the number.

        Returns: how many the page knows of, pages of their own or not. What their nodes say is
        noted as it is: `read` holds it against what lies there.
        """
        left = len(table.values) - first
        into = table.address + first * _SLAB.itemsize
        return int(self._find(key, digest_bytes, page_bytes, first, left, into))

    def read(
        self, descriptor: int, table: SlabTable, first: int, count: int, page_bytes: int,
        into: int, length: int, stride: int,
    ) -> int:  # fmt: skip
        """Read `count` values, from number `first` on, each to a row of `length` bytes.

        Args:
            into: address of the first row; the others follow `stride` bytes apart.

        Returns: how many of them, from the first on, are there, as long as a row, and right. What
        the rows of the others hold means nothing.
        """
        assert first >= 0 and first + count <= len(table.values) and length <= stride
        values = table.address + first * _SLAB.itemsize
        return int(self._read(descriptor, values, count, page_bytes, into, length, stride))
