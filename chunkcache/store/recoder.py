"""Puts what another codec makes of a record in LMDB in its place, under whoever reads the store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from chunkcache.chunk import Retention
from chunkcache.codec_spec import is_lossless, stored_under
from chunkcache.errors import StoreError
from chunkcache.store.frame import frame_of_layers
from chunkcache.store.layout import MetaEntry, entry_of, padded
from chunkcache.store.leased import LeasedRecord

if TYPE_CHECKING:
    from chunkcache.store.codec.base import Codec
    from chunkcache.store.leased import SlabSource
    from chunkcache.store.lmdb_env import RecordEnv
    from chunkcache.store.mirror import Mirror
    from chunkcache.store.writer import RecordWriter


class NotWritten(StoreError):
    """What was to take a record's place could not be written. Another time it may be."""


class Recoder:
    """Of one disk tier. Thread-safe.

    The record that was there and the one that takes its place change in one transaction: whoever
    looks, and whatever kills the process, finds one of them, whole.

    Args:
        source: the tier; its verbs end before the environment is closed.
    """

    def __init__(
        self, source: SlabSource, env: RecordEnv, mirror: Mirror, writer: RecordWriter
    ) -> None:
        self._source = source
        self._env = env
        self._mirror = mirror
        self._writer = writer

    def recode(self, digest: bytes, codec: Codec) -> int | None:
        """Code what lies under a digest anew, if that makes it smaller and nobody else reads it.

        Memory: the KV of one layer, or of those that are coded together, and the record as coded.

        Returns:
            Bytes of file pages that are free now. 0: it would not be smaller, or may not be coded
            so. None: somebody is reading it, or it has changed or gone.

        Raises:
            NotWritten: of the device; it is as it was.
            CorruptRecord, StoreError: it cannot be read or coded; it is as it was.
        """
        if not self._mirror.lease(digest):
            return None
        try:
            with self._env.reading() as txn:
                seen = self._env.entry(txn, digest)
                if seen is None:
                    return None
                header = self._env.header(txn, digest)
            if not may_be_recoded(MetaEntry.unpack(seen), codec.name):
                return 0
            return self._replace(LeasedRecord(self._source, header.key, header, seen), codec)
        finally:
            self._mirror.give_back(digest)

    def _replace(self, record: LeasedRecord, codec: Codec) -> int | None:
        before = MetaEntry.unpack(record.packed_entry)
        frame = frame_of_layers(
            record, record.layers(), codec, before.fingerprint, padded=padded
        )  # fmt: skip
        entry = entry_of(
            frame, before.num_tokens, before.fingerprint, codec.name, before.terms
        )  # fmt: skip
        entry = replace(entry, created_ns=before.created_ns)  # it is no newer than it was
        saved_bytes = before.size_bytes - entry.size_bytes
        if saved_bytes <= 0:
            return 0
        digest, to = record.header.stored_digest, stored_under(record.key.digest, codec.name)
        try:
            is_done = self._writer.recode(
                digest, record.packed_entry, to, entry, frame.header, frame.slabs
            )
        except StoreError as error:
            raise NotWritten(error.message) from error
        return saved_bytes if is_done else None


def may_be_recoded(entry: MetaEntry, codec: str) -> bool:
    """Whether a codec may take the place of the one that made a record.

    What was rounded is not rounded again, and what is pinned is not rounded at all.
    """
    if entry.codec == codec or not is_lossless(entry.codec):
        return False
    return is_lossless(codec) or entry.terms.retention is not Retention.PINNED
