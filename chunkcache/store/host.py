"""Chunk KV in host memory: a dictionary with a byte budget. The simple twin of every tier."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from chunkcache.chunk import Retention
from chunkcache.store.base import TierUsage
from chunkcache.store.policy import Entry
from chunkcache.store.reader import HeldRecord
from chunkcache.store.windowed import WindowedFrequencyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from chunkcache.chunk import ChunkKey, ChunkKV, KVGeometry, Terms
    from chunkcache.errors import StoreError
    from chunkcache.store.base import RecordReader
    from chunkcache.store.policy import Policy, Refusal, Room


class HostTier:
    """Records in memory, at most `capacity_bytes` of KV. Thread-safe.

    Args:
        capacity_bytes: budget for the KV tensors; 0 admits nothing.
        policy: who leaves first; `WindowedFrequencyPolicy` unless given.
        on_evict: called with the number of records evicted, under the tier's lock.
        geometry: of the model, to say ahead what will fit.
    """

    name = "host"
    durable = False
    remote = False

    def __init__(
        self,
        capacity_bytes: int,
        policy: Policy | None = None,
        *,
        on_evict: Callable[[int], None] = lambda _: None,
        geometry: KVGeometry | None = None,
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._policy = policy or WindowedFrequencyPolicy(capacity_bytes)
        self._on_evict = on_evict
        self._geometry = geometry
        self._lock = threading.Lock()
        self._records: dict[bytes, ChunkKV] = {}
        self._size_bytes = 0

    def open(self, key: ChunkKey) -> RecordReader | None:
        """See `Tier`. A record that is evicted meanwhile lives on in its reader."""
        record = self.get(key)
        return HeldRecord(record) if record is not None else None

    def open_many(self, keys: Sequence[ChunkKey]) -> list[RecordReader | StoreError | None]:
        """See `OpensTogether`."""
        return [None if record is None else HeldRecord(record) for record in self.get_many(keys)]

    def get(self, key: ChunkKey) -> ChunkKV | None:
        """See `Tier`. The record itself, not a copy: records are immutable."""
        digest = key.digest
        with self._lock:
            self._policy.on_use(digest)
            record = self._records.get(digest)
        return record if record is not None and _is_of(record, key) else None

    def get_many(self, keys: Sequence[ChunkKey]) -> list[ChunkKV | None]:
        """`get` for each key, in order and together."""
        digests = [key.digest for key in keys]
        with self._lock:
            self._policy.on_use(*digests)
            found = list(map(self._records.get, digests))
        return [
            record if record is not None and (record.key is key or record.key == key) else None
            for record, key in zip(found, keys, strict=True)
        ]

    def put(self, record: ChunkKV) -> bool:
        """See `Tier`. A record that is there already counts as used and is not replaced, but for a
        rounded one by an exact one, which goes on on its terms (`Terms.after`)."""
        if record.size_bytes > self._capacity_bytes:
            return False
        record = self._owned(record)
        digest = record.key.digest
        with self._lock:
            if (there := self._records.get(digest)) is not None:
                if _is_of(there, record.key):
                    if there.rounded_by is None or record.rounded_by is not None:
                        self._policy.on_use(digest)
                        return True
                    record = replace(record, terms=record.terms.after(there.terms, time.time()))
                self._drop(digest)  # or another chunk with the same digest
            return self._take_in(digest, record)

    def _take_in(self, digest: bytes, record: ChunkKV) -> bool:
        """A record that is not here, if the policy admits it. Under the lock."""
        policy, size_bytes = self._policy, record.size_bytes
        policy.on_time(time.time())
        record = self._granted(record)
        entry = _known_of(record)
        excess = self._size_bytes + size_bytes - self._capacity_bytes
        victims = policy.admit(digest, entry, excess)
        if victims is None:
            return False
        if victims:
            for victim in victims:
                self._drop(victim)
            self._on_evict(len(victims))
        self._records[digest] = record
        self._size_bytes += size_bytes
        policy.on_put(digest, entry)
        return True

    def why_not(self, record: ChunkKV) -> Refusal:
        """See `Choosing`."""
        with self._lock:
            return self._policy.why_not(record.key.digest, _known_of(record))

    def size_for(self, num_tokens: int) -> int | None:
        """See `Foresees`."""
        return None if self._geometry is None else num_tokens * self._geometry.bytes_per_token

    def room_for(self, tenant: str) -> Room:
        """See `Foresees`."""
        with self._lock:
            return self._policy.room_for(tenant, self._capacity_bytes - self._size_bytes)

    def contains(self, key: ChunkKey) -> bool:
        """See `Tier`."""
        with self._lock:
            return self._find(key) is not None

    def contains_many(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """See `AskedTogether`."""
        with self._lock:
            return [self._find(key) is not None for key in keys]

    def delete(self, key: ChunkKey) -> bool:
        """See `Tier`."""
        with self._lock:
            return self._find(key) is not None and self._drop(key.digest)

    def retain(self, key: ChunkKey, terms: Terms, *, exactly: bool = False) -> Retention | None:
        """See `Retaining`."""
        with self._lock:
            record = self._find(key)
            if record is None:
                return None
            if exactly or record.terms.retention < terms.retention:
                self._policy.on_time(time.time())
                record = self._granted(replace(record, terms=terms), instead_of=(key.digest,))
                self._records[key.digest] = record
                self._policy.on_put(key.digest, _known_of(record))
            return record.terms.retention

    def on_quota(self, tenant: str, limit_bytes: int | None) -> None:
        """See `Retaining`."""
        with self._lock:
            self._policy.on_quota(tenant, limit_bytes)

    def on_wait(self, keys: Iterable[ChunkKey]) -> None:
        """See `Retaining`."""
        with self._lock:
            self._policy.on_wait([key.digest for key in keys])

    def on_wait_over(self, keys: Iterable[ChunkKey]) -> None:
        """See `Retaining`."""
        with self._lock:
            self._policy.on_wait_over([key.digest for key in keys])

    def forget(self, is_meant: Callable[[ChunkKey], bool]) -> int:
        """Forget the records whose key is meant. How many there were."""
        with self._lock:
            meant = [digest for digest, one in self._records.items() if is_meant(one.key)]
            return sum(self._drop(digest) for digest in meant)

    def scan(self) -> Iterator[bytes]:
        """See `Tier`."""
        with self._lock:
            return iter(list(self._records))

    def usage(self) -> TierUsage:
        """See `Tier`."""
        with self._lock:
            return TierUsage(len(self._records), self._size_bytes, self._capacity_bytes)

    def has_room(self, size_bytes: int) -> bool:
        """See `Tier`."""
        with self._lock:
            return self._size_bytes + size_bytes <= self._capacity_bytes

    def close(self) -> None:
        """See `Tier`. Memory needs no flush: the records are let go."""
        with self._lock:
            for digest in list(self._records):
                self._drop(digest)

    def _owned(self, record: ChunkKV) -> ChunkKV:
        """A view into a larger tensor would keep all of that alive, outside the budget."""
        if record.kv.untyped_storage().nbytes() <= record.size_bytes:
            return record
        return replace(record, kv=record.kv.clone())

    def _granted(self, record: ChunkKV, instead_of: Iterable[bytes] = ()) -> ChunkKV:
        """The record on the terms that it is to have: pinned only if pins leave it a place."""
        terms = record.terms
        wants = terms.retention is Retention.PINNED
        if not wants or self._policy.may_pin(record.size_bytes, instead_of):
            return record
        return replace(record, terms=replace(terms, retention=Retention.WARMED))

    def _find(self, key: ChunkKey) -> ChunkKV | None:
        record = self._records.get(key.digest)
        return record if record is not None and _is_of(record, key) else None

    def _drop(self, digest: bytes) -> bool:
        record = self._records.pop(digest, None)
        if record is None:
            return False
        self._size_bytes -= record.size_bytes
        self._policy.on_delete(digest)
        return True


def _known_of(record: ChunkKV) -> Entry:
    """What a policy is to know of a record: a hit saves its tokens."""
    return Entry(record.size_bytes, record.num_tokens, record.terms)


def _is_of(record: ChunkKV, key: ChunkKey) -> bool:
    return record.key is key or record.key == key
