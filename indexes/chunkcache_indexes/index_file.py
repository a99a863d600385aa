"""One file per index: header ‖ arrays ‖ checksum; written atomically, read whole or not at all.

Layout, little-endian: magic (8 bytes), version (u32), header length (u32), header (JSON: kind,
meta, and name, dtype and shape of each array), the arrays one after another, BLAKE2b-128 of all
that. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

PARTIAL_SUFFIX = ".partial"  # of a file being written; what a killed process leaves behind
VERSION = 1
_MAGIC = b"CCINDEX\n"
_FIXED = struct.Struct("<8sII")
_DIGEST_BYTES = 16
_DTYPES = {"int64", "int32", "float32", "uint8"}


class IndexFileError(ValueError):
    """The file is truncated, damaged, of another version or of another kind of index."""


def write_index_file(
    path: Path, kind: str, meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Write, sync, rename. `meta` must be JSON.

    Cost: one pass over the bytes for the checksum and one for writing.

    Raises:
        OSError: the file cannot be written; an older one at `path` is untouched.
    """
    described = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    header = json.dumps({"kind": kind, "meta": meta, "arrays": described}).encode()
    blocks: list[Any] = [_FIXED.pack(_MAGIC, VERSION, len(header)), header]
    blocks += [np.ascontiguousarray(array).data for array in arrays.values()]  # no copy
    hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        with partial.open("wb") as stream:
            for block in blocks:
                hasher.update(block)
                stream.write(block)
            stream.write(hasher.digest())
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_index_file(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Meta and arrays of a file that `write_index_file` wrote. The arrays are read-only views.

    Raises:
        FileNotFoundError, OSError: it cannot be read.
        IndexFileError: see there.
    """
    data = path.read_bytes()
    body = memoryview(data)[:-_DIGEST_BYTES]
    if len(data) < _FIXED.size + _DIGEST_BYTES or not data.startswith(_MAGIC):
        raise IndexFileError(f"{path}: not an index file, or truncated ({len(data)} bytes)")
    _, version, header_length = _FIXED.unpack_from(data)
    if version != VERSION:
        raise IndexFileError(f"{path}: has version {version}, this program reads {VERSION}")
    if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != data[-_DIGEST_BYTES:]:
        raise IndexFileError(f"{path}: checksum does not match, the file is truncated or damaged")
    header = json.loads(bytes(body[_FIXED.size : _FIXED.size + header_length]))
    if header["kind"] != kind:
        raise IndexFileError(f"{path}: holds a {header['kind']} index, expected {kind}")
    arrays, offset = {}, _FIXED.size + header_length
    for name, dtype, shape in header["arrays"]:
        if dtype not in _DTYPES:
            raise IndexFileError(f"{path}: array {name} has type {dtype}")
        count = math.prod(shape)
        arrays[name] = np.frombuffer(body, np.dtype(dtype), count, offset).reshape(shape)
        offset += arrays[name].nbytes
    return header["meta"], arrays
