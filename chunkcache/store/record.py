"""The header of a stored record: everything but the KV itself. No pickle, every byte checked.

`magic (8) ‖ version (u16) ‖ body length (u32) ‖ body ‖ xxh3_128 of all before (16)`, little-endian.
The body is a run of fields, each `length (u32) ‖ bytes`. The slabs, one per layer, are stored
beside the header; it holds their lengths and checksums.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from chunkcache.chunk import ChunkKey, ChunkStats, KVGeometry, pack_token_ids
from chunkcache.codec_spec import stored_under
from chunkcache.errors import CorruptRecord, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.chunk import ChunkKV
    from chunkcache.store.base import RecordReader

MAGIC = b"CHUNKKV\x00"
VERSION = 1
CHECKSUM_BYTES = 16
DIGEST_BYTES = 32
_PREAMBLE = struct.Struct("<8sHI")
_SHAPE = struct.Struct("<III")
_LENGTH = struct.Struct("<I")  # of a field
_SLAB = struct.Struct("<Q16s")  # its length and checksum
_FLOAT = np.dtype("<f4")
_NUM_FIELDS = 14
_SLACK_BYTES = 64 * 1024  # and twice a record's KV: no codec makes more of it


def checksum(*parts: bytes | bytearray | memoryview) -> bytes:
    """xxh3_128 of the parts, joined, 16 bytes. Guards against decay and torn writes, not against
    an adversary. Other threads run meanwhile."""
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


@dataclass(frozen=True, slots=True, eq=False)
class RecordHeader:
    """What is known of a record before its slabs are read."""

    digest: bytes  # of the chunk
    fingerprint: bytes  # of the model
    packed_token_ids: bytes
    geometry: KVGeometry
    codec: str  # with its parameters
    stats: ChunkStats
    packed_slabs: bytes  # of each layer as stored: its length (u64) and checksum

    @property
    def slab_lengths(self) -> tuple[int, ...]:
        """Bytes of each layer as stored."""
        return tuple([length for length, _ in _SLAB.iter_unpack(self.packed_slabs)])

    @property
    def slab_checksums(self) -> tuple[bytes, ...]:
        """Of each layer as stored."""
        return tuple([digest for _, digest in _SLAB.iter_unpack(self.packed_slabs)])

    @property
    def num_tokens(self) -> int:
        """Tokens in the chunk."""
        return len(self.packed_token_ids) // 4

    @property
    def key(self) -> ChunkKey:
        """Of the chunk."""
        token_ids = np.frombuffer(self.packed_token_ids, "<u4").tolist()
        return ChunkKey(self.digest, tuple(token_ids))

    @property
    def stored_digest(self) -> bytes:
        """What the record lies under: the chunk's digest, or of it and a lossy codec."""
        return stored_under(self.digest, self.codec)


def encode_header(
    record: ChunkKV | RecordReader,
    *,
    fingerprint: bytes,
    codec: str,
    slab_lengths: Sequence[int],
    slab_checksums: Sequence[bytes],
) -> bytes:
    """The header of `record`.

    Args:
        fingerprint: of the model.
        codec: name of the codec that made the slabs.
        slab_lengths: bytes the codec made of each layer.
        slab_checksums: `checksum` of each layer as stored.

    Raises:
        StoreError: the record contradicts itself (statistics of another length than the chunk).
    """
    geometry, stats = record.geometry, record.stats
    slabs = zip(slab_lengths, slab_checksums, strict=True)
    fields = (
        record.key.digest,
        fingerprint,
        pack_token_ids(record.key.token_ids),
        _SHAPE.pack(geometry.num_layers, geometry.num_kv_heads, geometry.head_dim),
        geometry.dtype.encode(),
        geometry.rope.encode(),
        codec.encode(),
        stats.token_inter.astype("<f4").tobytes(),
        stats.token_head.astype("<f4").tobytes(),
        stats.chunk_inter.astype("<f4").tobytes(),
        struct.pack("<d", stats.intra),
        _join(stats.prior_digests),
        struct.pack(f"<{len(stats.prior_lengths)}I", *stats.prior_lengths),
        b"".join(length.to_bytes(8, "little") + digest for length, digest in slabs),
    )
    encoded = _sealed(fields)
    try:
        decode_header(encoded)
    except CorruptRecord as error:
        raise StoreError(f"record {record.key.hex}: cannot be stored: {error.message}") from error
    return encoded


def under_digest(encoded: bytes, digest: bytes) -> bytes:
    """A header, all else as it is, for the same chunk under another digest: another tenant's.

    Raises:
        CorruptRecord: `encoded` is no header.
    """
    decode_header(encoded)
    fields = _split(encoded[_PREAMBLE.size : -CHECKSUM_BYTES])
    return _sealed([digest, *fields[1:]])


def _sealed(fields: Sequence[bytes]) -> bytes:
    body = _join(fields)
    head = _PREAMBLE.pack(MAGIC, VERSION, len(body)) + body
    return head + checksum(head)


def header_length(buffer: bytes) -> int:
    """Length of the header that `buffer` begins with, as its preamble says; nothing is verified.

    Raises:
        CorruptRecord: the buffer is too short for such a header.
    """
    length = said_length(buffer)
    if length > len(buffer):
        raise CorruptRecord(f"header: {len(buffer)} bytes, expected {length}")
    return length


def said_length(buffer: bytes) -> int:
    """`header_length`, also where the buffer has the beginning of the header alone.

    Raises:
        CorruptRecord: the buffer is too short to say.
    """
    if len(buffer) < _PREAMBLE.size:
        raise CorruptRecord(f"header: only {len(buffer)} bytes")
    _, _, body_length = _PREAMBLE.unpack_from(buffer)
    return _PREAMBLE.size + int(body_length) + CHECKSUM_BYTES


def decode_header(buffer: bytes) -> RecordHeader:
    """The header in `buffer`, which must hold it and nothing else.

    Raises:
        CorruptRecord: any byte is missing, added or changed, or the fields contradict each other.
    """
    _check_envelope(buffer)
    fields = _split(buffer[_PREAMBLE.size : -CHECKSUM_BYTES])
    if len(fields) != _NUM_FIELDS:
        raise CorruptRecord(f"header: {len(fields)} fields, expected {_NUM_FIELDS}")
    digest, fingerprint, token_ids, shape, dtype, rope, codec = fields[:7]
    inter, head, chunk_inter, intra, priors, lengths, slabs = fields[7:]
    try:
        layers, heads, dim = _SHAPE.unpack(shape)
        header = RecordHeader(
            digest=digest,
            fingerprint=fingerprint,
            packed_token_ids=token_ids,
            geometry=KVGeometry(layers, heads, dim, dtype.decode(), rope.decode()),
            codec=codec.decode(),
            stats=ChunkStats(
                token_inter=_floats(inter),
                token_head=_floats(head),
                chunk_inter=_floats(chunk_inter),
                intra=struct.unpack("<d", intra)[0],
                prior_digests=tuple(_split(priors)),
                prior_lengths=tuple(n for (n,) in _LENGTH.iter_unpack(lengths)),
            ),
            packed_slabs=slabs,
        )
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise CorruptRecord(f"header: a field is malformed: {error}") from error
    _check_consistent(header)
    return header


def check_size(header: RecordHeader, geometry: KVGeometry | None, most_bytes: float) -> None:
    """Before memory is taken for a record: that it is no larger than such a record can be.

    Args:
        geometry: of the model, where it is known.
        most_bytes: of KV.

    Raises:
        CorruptRecord: whoever wrote the header knew its checksum, and not the record.
    """
    name = f"record {header.digest.hex()}"
    if geometry is not None and header.geometry != geometry:
        raise CorruptRecord(f"{name}: of geometry {header.geometry}, expected {geometry}")
    kv_bytes = header.num_tokens * header.geometry.bytes_per_token
    if not 0 < kv_bytes <= most_bytes:
        raise CorruptRecord(f"{name}: its header says it has {kv_bytes} bytes of KV")
    if sum(header.slab_lengths) > 2 * kv_bytes + _SLACK_BYTES:
        raise CorruptRecord(f"{name}: its header says its layers are too long")


def _check_envelope(buffer: bytes) -> None:
    if len(buffer) < _PREAMBLE.size + CHECKSUM_BYTES:
        raise CorruptRecord(f"header: only {len(buffer)} bytes")
    if checksum(buffer[:-CHECKSUM_BYTES]) != buffer[-CHECKSUM_BYTES:]:
        raise CorruptRecord("header: checksum does not match")
    magic, version, body_length = _PREAMBLE.unpack_from(buffer)
    if magic != MAGIC or version != VERSION:
        raise CorruptRecord(f"header: format {magic!r} version {version}, expected {VERSION}")
    if body_length != len(buffer) - _PREAMBLE.size - CHECKSUM_BYTES:
        raise CorruptRecord("header: length does not match")


def _check_consistent(header: RecordHeader) -> None:
    stats, tokens = header.stats, header.num_tokens
    holds = (
        len(header.digest) == DIGEST_BYTES,
        len(header.packed_token_ids) == 4 * tokens,
        len(header.packed_slabs) == _SLAB.size * header.geometry.num_layers,
        len(stats.token_inter) == tokens,
        len(stats.token_head) == tokens,
        len(stats.prior_digests) == len(stats.prior_lengths),
        header.geometry.dtype in ("float32", "bfloat16", "float16"),
    )
    if not all(holds):
        raise CorruptRecord("header: its fields contradict each other")


def _floats(field: bytes) -> np.ndarray:
    return np.frombuffer(field, _FLOAT).astype(np.float32)


def _join(fields: Sequence[bytes]) -> bytes:
    return b"".join(len(field).to_bytes(4, "little") + field for field in fields)


def _split(body: bytes) -> list[bytes]:
    fields, at, end = [], 0, len(body)
    while at < end:
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(body, at)[0] if start <= end else start
        if at > end:
            raise CorruptRecord("header: a field runs past the end")
        fields.append(body[start:at])
    return fields
