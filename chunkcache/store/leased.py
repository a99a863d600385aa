"""A record in LMDB that is read layer by layer, and stays while somebody reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import torch

from chunkcache.chunk import ChunkKV
from chunkcache.codec_spec import is_lossless
from chunkcache.store.codec.joint import JointCodec
from chunkcache.store.codec.raw import RawCodec, octets
from chunkcache.store.layout import is_same_record
from chunkcache.store.reader import DTYPES, kv_shape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import lmdb

    from chunkcache.chunk import ChunkKey
    from chunkcache.store.codec.base import Codec
    from chunkcache.store.lmdb_env import RecordEnv
    from chunkcache.store.record import RecordHeader
    from chunkcache_kernels.slabs import SlabTable


class SlabSource(Protocol):
    """What a `LeasedRecord` reads from: the disk tier."""

    def read_slabs(self, record: LeasedRecord, first: int, last: int, out: torch.Tensor) -> None:
        """See `RecordReader.read_layers`."""
        ...

    def give_back(self, record: LeasedRecord) -> None:
        """The lease has ended."""
        ...


class LeasedRecord:
    """A `RecordReader` over a disk tier. This process evicts nothing that is leased.

    Every read is a transaction of its own, or none where its bytes are verified as they lie: one
    that lasted as long as the lease would keep all freed pages of the environment from reuse, and
    there are only so many. A record that is deleted, or evicted by another process, is found gone
    by a read that finds other bytes (`StoreError`).
    """

    def __init__(
        self, source: SlabSource, key: ChunkKey, header: RecordHeader, packed_entry: bytes,
        places: SlabTable | None = None,
    ) -> None:  # fmt: skip
        self.key = key
        self.geometry = header.geometry
        self.stats = header.stats
        self.rounded_by = None if is_lossless(header.codec) else header.codec
        self.codec = header.codec
        self.header = header
        self.packed_entry = packed_entry  # says when it was put: tells it from its successor
        self.places = places  # of its layers in the file, as long as it is this record
        self._source = source
        self._is_open = True

    @property
    def num_tokens(self) -> int:
        """See `RecordReader`."""
        return self.header.num_tokens

    def read_layers(self, first: int, last: int, out: torch.Tensor) -> None:
        """See `RecordReader`. One checksum pass and one copy, while other threads run."""
        assert self._is_open, "read after its lease ended"
        self._source.read_slabs(self, first, last, out)

    def is_still(self, packed_entry: bytes | None) -> bool:
        """Whether an entry is that of the record as it was opened, on whatever terms."""
        return is_same_record(packed_entry, self.packed_entry)

    def layers(self) -> Iterator[torch.Tensor]:
        """All of them, one at a time in the same memory. Raises as `read_layers`."""
        shape = kv_shape(self.geometry, self.num_tokens)
        kv = torch.empty((1, *shape[1:]), dtype=DTYPES[self.geometry.dtype])
        for layer in range(shape[0]):
            self.read_layers(layer, layer + 1, kv)
            yield kv[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the lease; a second time, nothing."""
        if self._is_open:
            self._is_open = False
            self._source.give_back(self)


def decode_layers(
    env: RecordEnv,
    txn: lmdb.Transaction[memoryview],
    header: RecordHeader,
    codec: Codec,
    first: int,
    out: torch.Tensor,
    places: SlabTable | None,
) -> None:
    """Layers of a record from `first` on, one for each of `out`; see `RecordReader.read_layers`.

    What needs no decoding is read to where it belongs. `places` as `RecordEnv.fill` takes them.

    Raises:
        CorruptRecord: a layer is missing, failed its checksum, or is not what its codec makes.
    """
    lengths = header.slab_lengths[first : first + len(out)]
    if type(codec) is RawCodec:
        layers = octets(out).reshape(len(out), -1)
        if set(lengths) == {layers.shape[1]}:
            env.fill(txn, header, first, layers, places)
            return
    if isinstance(codec, JointCodec):
        begin, end = codec.around(first, first + len(out))
        slabs = [np.empty(length, np.uint8) for length in header.slab_lengths[begin:end]]
        for layer, slab in enumerate(slabs, begin):
            env.fill(txn, header, layer, slab[None], places)
        codec.decode_layers(first, [slab.data for slab in slabs], out)
        return
    scratch = np.empty(max(lengths, default=0), np.uint8)
    for layer, (length, into) in enumerate(zip(lengths, out, strict=True), first):
        slab = scratch[:length]
        env.fill(txn, header, layer, slab[None], places)
        codec.decode_layer(layer, slab.data, into)


def load_record(
    env: RecordEnv,
    txn: lmdb.Transaction[memoryview],
    key: ChunkKey,
    header: RecordHeader,
    codec: Codec,
) -> ChunkKV:
    """All of a record. Raises as `decode_layers`."""
    geometry, name = header.geometry, header.codec
    kv = torch.empty(kv_shape(geometry, header.num_tokens), dtype=DTYPES[geometry.dtype])
    decode_layers(env, txn, header, codec, 0, kv, env.places(txn, header))
    rounded_by = None if is_lossless(name) else name
    return ChunkKV(key, geometry, kv, header.stats, rounded_by=rounded_by)
