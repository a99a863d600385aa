"""One file per index: header ‖ arrays ‖ checksum; written atomically, read whole or not at all.

Layout, little-endian: magic (8 bytes), version (u32), header length (u32), header (JSON: kind,
meta, and name, dtype and shape of each array), the arrays one after another, BLAKE2b-128 of all
that. Header and arrays are filled up to multiples of 64 bytes: numpy copies a matrix that is not
aligned, whole, for every product. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import secrets
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    import numpy.typing as npt

PARTIAL_SUFFIX = ".partial"  # of a file being written; what a killed process leaves behind
VERSION = 2
_MAGIC = b"CCINDEX\n"
_FIXED = struct.Struct("<8sII")
_DIGEST_BYTES = 16
_ALIGNED_BYTES = 64
_READ_BYTES = 1 << 20
_DTYPES = {"int64", "int32", "uint32", "uint16", "float32", "uint8"}


class IndexFileError(ValueError):
    """The file is truncated, damaged, of another version or of another kind of index."""


class Stacked(NamedTuple):
    """An array in pieces, for what is not to be in memory twice."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[npt.NDArray[Any]]  # along the first axis

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Self:
        """One piece."""
        return cls(str(array.dtype), array.shape, (array,))


def write_index_file(
    path: Path,
    kind: str,
    meta: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[Any] | Stacked],
) -> dict[str, npt.NDArray[Any]]:
    """Write, sync, rename. `meta` must be JSON. Returns: the arrays, as `read_index_file` does.

    They are of this very file, whoever writes another one to `path` meanwhile.

    Cost: one pass over the bytes for the checksum and one for writing.

    Raises:
        OSError: the file cannot be written; an older one at `path` is untouched.
    """
    stacked = {n: a if isinstance(a, Stacked) else Stacked.of(a) for n, a in arrays.items()}
    described = [[name, one.dtype, list(one.shape)] for name, one in stacked.items()]
    header = json.dumps({"kind": kind, "meta": meta, "arrays": described}).encode()
    header += b" " * _missing(_FIXED.size + len(header))
    hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        with partial.open("w+b") as stream:
            for block in _blocks(header, stacked.values()):
                hasher.update(block)
                stream.write(block)
            stream.write(hasher.digest())
            stream.flush()
            os.fsync(stream.fileno())
            body = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return _mapped(body, described, _FIXED.size + len(header))


def _blocks(header: bytes, arrays: Iterable[Stacked]) -> Iterator[Any]:
    """What a file has before its checksum."""
    yield _FIXED.pack(_MAGIC, VERSION, len(header))
    yield header
    for array in arrays:
        size_bytes = 0
        for piece in array.pieces:
            size_bytes += piece.nbytes
            yield np.ascontiguousarray(piece).data  # no copy
        yield b" " * _missing(size_bytes)


def _missing(size_bytes: int) -> int:
    return -size_bytes % _ALIGNED_BYTES


def read_index_file(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Meta and arrays of a file that `write_index_file` wrote.

    The arrays are read-only and mapped: they take memory as they are read, which the system may
    take back. A file that takes this one's place, or its removal, does not change them.

    Cost: a pass over the bytes for the checksum.

    Raises:
        FileNotFoundError, OSError: it cannot be read.
        IndexFileError: see there.
    """
    with path.open("rb") as stream:
        header_length = _verify(path, stream)
        body = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    header = json.loads(body[_FIXED.size : _FIXED.size + header_length])
    if header["kind"] != kind:
        raise IndexFileError(f"{path}: holds a {header['kind']} index, expected {kind}")
    for name, dtype, _ in header["arrays"]:
        if dtype not in _DTYPES:
            raise IndexFileError(f"{path}: array {name} has type {dtype}")
    return header["meta"], _mapped(body, header["arrays"], _FIXED.size + header_length)


def _mapped(
    body: mmap.mmap, described: Iterable[Sequence[Any]], offset: int
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file by their names, dtypes and shapes; the first begins at `offset`."""
    arrays = {}
    for name, dtype, shape in described:
        count = math.prod(shape)
        arrays[name] = np.frombuffer(body, np.dtype(dtype), count, offset).reshape(shape)
        offset += arrays[name].nbytes + _missing(arrays[name].nbytes)
    return arrays


def _verify(path: Path, stream: BinaryIO) -> int:
    """The length of the header of a file that is whole. Raises `IndexFileError`."""
    size_bytes = os.fstat(stream.fileno()).st_size
    fixed = stream.read(_FIXED.size)
    if size_bytes < _FIXED.size + _DIGEST_BYTES or not fixed.startswith(_MAGIC):
        raise IndexFileError(f"{path}: not an index file, or truncated ({size_bytes} bytes)")
    _, version, header_length = _FIXED.unpack(fixed)
    if version != VERSION:
        raise IndexFileError(f"{path}: has version {version}, this program reads {VERSION}")
    hasher = hashlib.blake2b(fixed, digest_size=_DIGEST_BYTES)
    left = size_bytes - _FIXED.size - _DIGEST_BYTES
    while left and (block := stream.read(min(left, _READ_BYTES))):
        hasher.update(block)
        left -= len(block)
    if hasher.digest() != stream.read():
        raise IndexFileError(f"{path}: checksum does not match, the file is truncated or damaged")
    return int(header_length)
