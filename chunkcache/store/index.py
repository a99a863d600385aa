"""Which records of one model an environment holds, of those that are read, and where they lie."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from chunkcache.chunk import pack_token_ids
from chunkcache.errors import CorruptRecord
from chunkcache.store.layout import MetaEntry
from chunkcache.store.record import check_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from chunkcache.chunk import ChunkKey, KVGeometry
    from chunkcache.store.codec.readable import ReadableCodecs
    from chunkcache.store.lmdb_env import AnyTransaction, RecordEnv
    from chunkcache.store.record import RecordHeader


class RecordIndex:
    """Looks records up in a transaction of the caller's, by `meta` and their headers alone.

    Args:
        codecs: whose records are read.
        fingerprint: of the model; records of another model are not found.
        geometry: of the model; what says that it is of another one is corrupt.
    """

    def __init__(
        self, env: RecordEnv, codecs: ReadableCodecs, fingerprint: bytes,
        geometry: KVGeometry | None = None,
    ) -> None:  # fmt: skip
        self._env = env
        self._codecs = codecs
        self._fingerprint = fingerprint
        self._geometry = geometry

    def entries(self, txn: AnyTransaction) -> Iterator[tuple[bytes, MetaEntry]]:
        """What `meta` says of each, but for damaged entries."""
        for digest, packed in self._env.entries(txn):
            try:
                entry = MetaEntry.unpack(packed)
            except CorruptRecord:
                continue
            if self._reads(entry):
                yield digest, entry

    def header(self, txn: AnyTransaction, key: ChunkKey, digest: bytes) -> RecordHeader | None:
        """The header of the very record `key` names. Raises `CorruptRecord`."""
        return self.header_of(txn, key, digest, self._env.entry(txn, digest))

    def header_of(
        self, txn: AnyTransaction, key: ChunkKey, digest: bytes, packed: bytes | None
    ) -> RecordHeader | None:
        """The same, of what `meta` says under `digest`."""
        if packed is None:
            return None
        entry = MetaEntry.unpack(packed)
        if not self._reads(entry):
            return None
        header = self._env.header(txn, digest)
        if (header.fingerprint, header.codec) != (entry.fingerprint, entry.codec):
            raise CorruptRecord(f"record {key.hex}: its header is of another model or codec")
        if header.packed_token_ids != pack_token_ids(key.token_ids):
            return None  # two chunks with one digest
        check_size(header, self._geometry, math.inf)
        return header

    def find(self, txn: AnyTransaction, key: ChunkKey) -> tuple[bytes, str] | None:
        """The digest that a record which can be read lies under, the most exact one, and its
        codec. A damaged one is passed over: whoever reads it finds out, and drops it.
        """
        for digest in self._codecs.places(key.digest):
            with suppress(CorruptRecord):
                header = self.header(txn, key, digest)
                if header is not None:
                    return digest, header.codec
        return None

    def _reads(self, entry: MetaEntry) -> bool:
        return self._codecs.read(entry.codec) and entry.fingerprint == self._fingerprint


def entries_at(
    env: RecordEnv, txn: AnyTransaction, places: Iterable[bytes]
) -> dict[bytes, MetaEntry]:
    """What `meta` says of those that are there, whichever model's, but for damaged entries."""
    found: dict[bytes, MetaEntry] = {}
    for place in places:
        packed = env.entry(txn, place)
        with suppress(CorruptRecord):  # whoever reads it finds out, and drops it
            if packed is not None:
                found[place] = MetaEntry.unpack(packed)
    return found
