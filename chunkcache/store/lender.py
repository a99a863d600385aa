"""Leases on records in LMDB, one by one or many in one transaction, and what is read under them."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import structlog

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.codec.raw import RawCodec
from chunkcache.store.leased import LeasedRecord, decode_layers

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    import lmdb
    import torch

    from chunkcache.chunk import ChunkKey
    from chunkcache.store.codec.readable import ReadableCodecs
    from chunkcache.store.index import RecordIndex
    from chunkcache.store.leased import SlabSource
    from chunkcache.store.lmdb_env import RecordEnv
    from chunkcache.store.mirror import Mirror
    from chunkcache.store.writer import RecordWriter

log = structlog.get_logger(__name__)


class Lender:
    """Of one disk tier, which sees to it that the environment is open. Thread-safe.

    Args:
        tier: what the leased records read from.
    """

    def __init__(
        self, tier: SlabSource, env: RecordEnv, mirror: Mirror, index: RecordIndex,
        codecs: ReadableCodecs, writer: RecordWriter,
    ) -> None:  # fmt: skip
        self._tier = tier
        self._env = env
        self._mirror = mirror
        self._index = index
        self._codecs = codecs
        self._writer = writer

    def lend(self, key: ChunkKey, digest: bytes) -> LeasedRecord | None:
        """The record of `key` that lies under `digest`; None: there is none.

        Raises:
            CorruptRecord: its header is not as it was written; it has been dropped.
            StoreError: the environment cannot be read.
        """
        if not self._mirror.lease(digest):  # first: it must not leave in between
            return None
        with ExitStack() as ends:
            ends.callback(self._mirror.give_back, digest)
            seen = None
            try:
                with self._env.reading() as txn:
                    seen = self._env.entry(txn, digest)
                    record = self._lent(txn, key, digest, seen)
            except CorruptRecord:
                self.drop_corrupt(digest, seen)
                raise
            if record is not None:
                ends.pop_all()  # from here on the reader gives it back
            return record

    def lend_many(self, keys: Sequence[ChunkKey]) -> list[LeasedRecord | None]:
        """The record of each key, wherever it may lie, in one transaction.

        None: there is none, it is damaged, or the environment is; `lend` finds out and says which.
        """
        places = [self._codecs.places(key.digest) for key in keys]
        leased = self._mirror.lease_many(digest for of_key in places for digest in of_key)
        lent: list[LeasedRecord | None] = []
        kept: Counter[bytes] = Counter()
        try:
            with suppress(StoreError), self._env.reading() as txn:
                for key, of_key in zip(keys, places, strict=True):
                    lent.append(self._first_lent(txn, key, leased, of_key))
            lent += [None] * (len(keys) - len(lent))
            # all or none: from here on the readers give them back
            kept = Counter([one.header.stored_digest for one in lent if one is not None])
        finally:
            self._mirror.give_back(*(leased - kept).elements())
        return lent

    def read(self, record: LeasedRecord, first: int, last: int, out: torch.Tensor) -> None:
        """Some layers of a record that was lent; see `RecordReader.read_layers`.

        What is stored as it is comes without a transaction: its bytes are those that the header
        vouches for, whoever has deleted the record since.
        """
        header, digest, places = record.header, record.header.stored_digest, record.places
        codec = self._codecs.named(header.codec)
        count = last - first
        assert len(out) == count and out.is_contiguous()
        if type(codec) is RawCodec and places is not None and count:
            length = out.nbytes // count
            if self._env.read(places, first, count, out.data_ptr(), length) == count:
                return
        try:
            with self._env.reading() as txn:
                if not record.is_still(self._env.entry(txn, digest)):
                    raise StoreError(f"record {record.key.hex} has gone since it was opened")
                decode_layers(self._env, txn, header, codec, first, out, places)
        except CorruptRecord:
            self.drop_corrupt(digest, record.packed_entry)
            raise

    def drop_corrupt(self, digest: bytes, seen: bytes | None) -> None:
        """Remove what was found damaged, if it is still what was seen."""
        try:
            self._writer.remove_same(digest, seen)
        except StoreError as error:
            # it stays, is found corrupt again by the next look-up, and is never served
            log.warning("corrupt_record_stays", key=digest.hex()[:12], reason=error.message)

    # ------------------------------------------------------------ in a transaction

    def _first_lent(
        self, txn: lmdb.Transaction[memoryview], key: ChunkKey, leased: Container[bytes],
        places: Sequence[bytes],
    ) -> LeasedRecord | None:  # fmt: skip
        for digest in places:
            if digest in leased:
                try:
                    record = self._lent(txn, key, digest, self._env.entry(txn, digest))
                except StoreError:
                    return None
                if record is not None:
                    return record
        return None

    def _lent(
        self, txn: lmdb.Transaction[memoryview], key: ChunkKey, digest: bytes, seen: bytes | None
    ) -> LeasedRecord | None:
        """What is leased already. Raises `CorruptRecord`, `StoreError`."""
        header = self._index.header_of(txn, key, digest, seen)
        if header is None or seen is None:
            return None
        return LeasedRecord(self._tier, key, header, seen, self._env.places(txn, header))
