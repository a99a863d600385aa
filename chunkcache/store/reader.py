"""Reading a record: one that is in memory already, and all of one that is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch

from chunkcache.chunk import ChunkKV

if TYPE_CHECKING:
    from types import TracebackType

    from chunkcache.chunk import KVGeometry
    from chunkcache.store.base import RecordReader

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HeldRecord:
    """The reader of a record that is in memory: a `RecordReader` that cannot fail."""

    def __init__(self, record: ChunkKV) -> None:
        self.record = record
        self.key = record.key
        self.geometry = record.geometry
        self.stats = record.stats
        self.rounded_by = record.rounded_by
        self.codec = ""

    @property
    def num_tokens(self) -> int:
        """See `RecordReader`."""
        return self.record.num_tokens

    def read_layers(self, first: int, last: int, out: torch.Tensor) -> None:
        """See `RecordReader`. One copy."""
        # as bytes: copying numbers may change the payload of a NaN
        out.view(torch.uint8).copy_(self.record.kv[first:last].contiguous().view(torch.uint8))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to give back: records are immutable, and this one is held by its reader."""


def read_record(reader: RecordReader) -> ChunkKV:
    """All of a record; the very one where it is in memory. The reader stays open.

    Raises:
        CorruptRecord, StoreError: as `RecordReader.read_layers`.
    """
    if isinstance(reader, HeldRecord):
        return reader.record
    geometry = reader.geometry
    kv = torch.empty(kv_shape(geometry, reader.num_tokens), dtype=DTYPES[geometry.dtype])
    reader.read_layers(0, geometry.num_layers, kv)
    return ChunkKV(reader.key, geometry, kv, reader.stats, rounded_by=reader.rounded_by)


def kv_shape(geometry: KVGeometry, num_tokens: int) -> tuple[int, int, int, int, int]:
    """`[layers, 2, tokens, kv_heads, head_dim]`."""
    return (geometry.num_layers, 2, num_tokens, geometry.num_kv_heads, geometry.head_dim)
