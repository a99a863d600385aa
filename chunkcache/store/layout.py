"""How records lie in LMDB: keys, padding, and the entry of `meta`. Pure bytes, no LMDB here.

Two databases. `meta`: digest → `MetaEntry`, all that scans, eviction and budgets need. `slabs`:
digest ‖ layer index (2 bytes, big-endian) → the coded layer, digest ‖ ffff → the header. LMDB gives
a large value whole pages of its own after a 16-byte page header, so every value of `slabs` is
padded to 4096·n − 16 bytes: nothing is lost, and its database counts the store's bytes exactly.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from chunkcache.chunk import USUAL_TERMS, Retention, Terms
from chunkcache.errors import CorruptRecord

if TYPE_CHECKING:
    from chunkcache.store.frame import Frame

PAGE_BYTES = 4096
_PAGE_HEADER_BYTES = 16
_HEADER_SUFFIX = b"\xff\xff"
_ENTRY = struct.Struct("<QIQHH")
_TERMS = struct.Struct("<bBd")
_MIN_MAP_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class MetaEntry:
    """What `meta` says of one record."""

    size_bytes: int  # whole pages, slabs and header: what the record costs on disk
    num_tokens: int
    created_ns: int  # Unix time
    fingerprint: bytes  # of the model
    codec: str
    terms: Terms = USUAL_TERMS  # takes no bytes if usual, as entries were before there were terms

    def pack(self) -> bytes:
        """Bytes with a checksum of their own."""
        codec = self.codec.encode()
        fixed = _ENTRY.pack(
            self.size_bytes, self.num_tokens, self.created_ns, len(self.fingerprint), len(codec)
        )
        body = fixed + self.fingerprint + codec + _packed_terms(self.terms)
        return body + xxhash.xxh3_64_digest(body)

    @classmethod
    def unpack(cls, buffer: bytes) -> MetaEntry:
        """The entry in `buffer`. Raises `CorruptRecord` when a byte is not as it was packed."""
        body = buffer[:-8]
        if len(body) < _ENTRY.size or xxhash.xxh3_64_digest(body) != buffer[-8:]:
            raise CorruptRecord("meta entry: checksum does not match")
        size, tokens, created, fp_length, codec_length = _ENTRY.unpack_from(body)
        fingerprint = body[_ENTRY.size : _ENTRY.size + fp_length]
        end = _ENTRY.size + fp_length + codec_length
        codec = body[_ENTRY.size + fp_length : end]
        if len(fingerprint) != fp_length or len(codec) != codec_length:
            raise CorruptRecord("meta entry: length does not match")
        terms = _unpacked_terms(body[end:])
        return cls(size, tokens, created, fingerprint, codec.decode("utf-8", "replace"), terms)


def is_same_record(packed: bytes | None, seen: bytes | None) -> bool:
    """Whether two packed entries are of one record, on whatever terms; None: there is no entry.

    They say how large it is and when it was put, which tells it from one put in its place.
    """
    if packed is None or seen is None:
        return packed is seen
    return packed[: _ENTRY.size] == seen[: _ENTRY.size]


def _packed_terms(terms: Terms) -> bytes:
    if terms == USUAL_TERMS:
        return b""
    fixed = _TERMS.pack(terms.priority, terms.retention, terms.expires_s)
    return fixed + terms.tenant.encode("utf-8", "surrogatepass")


def _unpacked_terms(buffer: bytes) -> Terms:
    if not buffer:
        return USUAL_TERMS
    if len(buffer) < _TERMS.size:
        raise CorruptRecord("meta entry: length does not match")
    priority, firmness, expires_s = _TERMS.unpack_from(buffer)
    try:
        tenant = buffer[_TERMS.size :].decode("utf-8", "surrogatepass")
        return Terms(tenant, priority, Retention(firmness), expires_s)
    except ValueError as error:
        raise CorruptRecord(f"meta entry: {error}") from error


def entry_of(
    frame: Frame, num_tokens: int, fingerprint: bytes, codec: str, terms: Terms
) -> MetaEntry:
    """What `meta` is to say of a record that is stored now, its parts padded."""
    size_bytes = sum(pages_bytes(len(value)) for value in (frame.header, *frame.slabs))
    return MetaEntry(size_bytes, num_tokens, time.time_ns(), fingerprint, codec, terms)


def padded(value: bytes) -> bytes:
    """The value with zeros up to 4096·n − 16 bytes."""
    return value.ljust(stored_length(len(value)), b"\0")


def stored_length(length: int) -> int:
    """Length of a value of `length` bytes once padded."""
    return pages_bytes(length) - _PAGE_HEADER_BYTES


def pages_bytes(length: int) -> int:
    """Bytes of file that a value of `length` bytes takes."""
    return -(-(length + _PAGE_HEADER_BYTES) // PAGE_BYTES) * PAGE_BYTES


def map_bytes_for(capacity_bytes: int) -> int:
    """Size of the map for a budget: half as large again, because a store of large values needs
    slack to find runs of free pages, and 16 MiB for trees and free lists."""
    return _MIN_MAP_BYTES + capacity_bytes * 3 // 2


def slab_key(digest: bytes, layer: int) -> bytes:
    """Key of one layer."""
    return digest + layer.to_bytes(2, "big")


def header_key(digest: bytes) -> bytes:
    """Key of the header, after all layers."""
    return digest + _HEADER_SUFFIX
