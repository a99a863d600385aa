"""A record as bytes, the same in every tier: a header (record.py), then the layers as coded.

A tier that stores values of its own for header and layers (LMDB) takes the parts; one that stores a
record as one string of bytes (Redis, objects) joins them, and reads it with `unframed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from chunkcache.chunk import ChunkKV, pack_token_ids
from chunkcache.codec_spec import is_lossless
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.codec.layers import decode_layers, encode_layers
from chunkcache.store.reader import DTYPES, kv_shape
from chunkcache.store.record import checksum, encode_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from chunkcache.chunk import ChunkKey
    from chunkcache.store.base import RecordReader
    from chunkcache.store.codec.base import Codec
    from chunkcache.store.record import RecordHeader


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The parts of a record."""

    header: bytes
    slabs: list[bytes]  # one a layer
    coded_bytes: int  # what the codec made of all layers


def frame_of(
    record: ChunkKV,
    codec: Codec,
    fingerprint: bytes,
    *,
    padded: Callable[[bytes], bytes] = lambda part: part,
) -> Frame:
    """Encode a record.

    Args:
        fingerprint: of the model.
        padded: what a tier makes of each part before it is stored; checksums of layers cover it.

    Raises:
        StoreError: the record contradicts itself.
    """
    shape = kv_shape(record.geometry, record.num_tokens)
    if tuple(record.kv.shape) != shape or record.kv.dtype != DTYPES[record.geometry.dtype]:
        raise StoreError(
            f"record {record.key.hex}: its KV is {record.kv.dtype} {tuple(record.kv.shape)}, "
            f"its geometry says {record.geometry.dtype} {shape}"
        )
    return frame_of_layers(record, record.kv, codec, fingerprint, padded=padded)


def frame_of_layers(
    record: ChunkKV | RecordReader,
    layers: Iterable[torch.Tensor],
    codec: Codec,
    fingerprint: bytes,
    *,
    padded: Callable[[bytes], bytes] = lambda part: part,
) -> Frame:
    """`frame_of`, where the KV is not there as a whole.

    Args:
        layers: one after the other; each is coded, or copied, before the next one is asked for.

    Raises:
        StoreError: as `frame_of`, and what `layers` raise.
    """
    lengths: list[int] = []
    slabs: list[bytes] = []
    for coded in encode_layers(codec, layers, record.stats):
        lengths.append(len(coded))
        slabs.append(padded(coded))
    header = encode_header(
        record, fingerprint=fingerprint, codec=codec.name,
        slab_lengths=lengths, slab_checksums=[checksum(slab) for slab in slabs],
    )  # fmt: skip
    return Frame(padded(header), slabs, sum(lengths))


def unframed(header: RecordHeader, body: bytes, key: ChunkKey, codec: Codec) -> ChunkKV:
    """The record of a header and the layers that follow it, every byte of them checked.

    Args:
        header: of the record of `key`, made by `codec`: the caller has compared them.
        body: all that follows the header; bytes from elsewhere, not trusted.

    Raises:
        CorruptRecord: too short, too long, or a layer is not what the header says.
    """
    if len(body) != sum(header.slab_lengths):
        raise CorruptRecord(
            f"record {key.hex}: {len(body)} bytes of layers, expected {sum(header.slab_lengths)}"
        )
    geometry = header.geometry
    kv = torch.empty(kv_shape(geometry, header.num_tokens), dtype=DTYPES[geometry.dtype])
    decode_layers(codec, list(_verified(header, memoryview(body))), kv)
    rounded_by = None if is_lossless(header.codec) else header.codec
    return ChunkKV(key, geometry, kv, header.stats, rounded_by=rounded_by)


def is_of(header: RecordHeader, key: ChunkKey, fingerprint: bytes, codec: Codec) -> bool:
    """Whether a header is that of the very record `key` names, of this model and codec.

    Token ids are compared, so that another chunk with the same digest is not taken for it.

    Raises:
        CorruptRecord: it has another digest: these bytes belong elsewhere.
    """
    if header.digest != key.digest:
        raise CorruptRecord(f"record {key.hex}: the header is another record's")
    return (header.fingerprint, header.codec, header.packed_token_ids) == (
        fingerprint, codec.name, pack_token_ids(key.token_ids),
    )  # fmt: skip


def _verified(header: RecordHeader, body: memoryview) -> Iterator[memoryview]:
    at = 0
    slabs = zip(header.slab_lengths, header.slab_checksums, strict=True)
    for layer, (length, expected) in enumerate(slabs):
        slab = body[at : at + length]
        if checksum(slab) != expected:
            raise CorruptRecord(
                f"record {header.digest.hex()} layer {layer}: checksum does not match"
            )
        yield slab
        at += length
