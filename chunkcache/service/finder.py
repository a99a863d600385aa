"""Where the chunks of a prompt are: on the device, on their way up from a tier, or nowhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.engine.loader import Batch
from chunkcache.errors import StoreError
from chunkcache.store.cost import LoadPlan, Rows, Stored
from chunkcache.store.reader import HeldRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chunkcache.chunk import ChunkKey, ChunkKV
    from chunkcache.engine.core import Engine
    from chunkcache.engine.resident import Leases, Resident
    from chunkcache.metrics import Metrics
    from chunkcache.store.base import RecordReader
    from chunkcache.store.cost import Source
    from chunkcache.store.lookup import Opened
    from chunkcache.store.tiered import TieredStore


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A chunk on the device, leased; the tier it came from, or why it had to be computed.

    It may still be on its way up. No `resident`: there is no room for it beside those in use
    (`no_room`).
    """

    resident: Resident | None
    tier: str | None
    miss: str | None


class _Ascent:
    """The chunks that one prompt brings up, by the tier they come from."""

    def __init__(self) -> None:
        self.began_at = time.perf_counter()
        self.chunks: dict[tuple[str, bool], list[tuple[RecordReader, Resident]]] = {}

    def add(self, tier: str, reader: RecordReader, resident: Resident) -> None:
        """One more."""
        kind = (tier, isinstance(reader, HeldRecord))
        self.chunks.setdefault(kind, []).append((reader, resident))


class Finder:
    """Leases chunks and begins to bring up those that a tier below the device holds. Thread-safe.

    Args:
        head_tokens: how many tokens a chunk is computed after.
    """

    def __init__(
        self, engine: Engine, store: TieredStore, metrics: Metrics, head_tokens: int
    ) -> None:
        self._engine = engine
        self._store = store
        self._metrics = metrics
        self._head_tokens = head_tokens

    def find(
        self, keys: Sequence[ChunkKey], always: Rows, leases: Leases
    ) -> tuple[dict[ChunkKey, Found], LoadPlan]:
        """Lease each chunk; those not found must be computed, for the reason given.

        One choice is made over all of them: those in a tier that the prompt would wait for longer
        than for computing them are left there (`slower`).

        Args:
            keys: different ones.
            always: rows that the prompt runs whatever is found.
            leases: who holds them from here on.
        """
        coming: dict[Source, int] = {}
        found = self._lease(keys, leases, coming)
        left = [key for key in keys if key not in found]
        sources = dict(zip(left, self._store.locate_many(left), strict=True))
        held = {key: self._stored(key, at) for key, at in sources.items() if at is not None}
        plan = self._store.cost.choose(list(held.values()), always, coming)
        slower = {key for key, pays in zip(held, plan.loads, strict=True) if not pays}
        ascent = _Ascent()  # from here on time counts: what comes whole does when it is opened
        opened = self._open([key for key in left if key not in slower], sources)
        try:
            for key in left:
                found[key] = self._bring_up(key, opened, ascent, leases)
        finally:
            self._begin(ascent, measured=True)
            for one in opened.values():
                one.close()
        return found, plan

    def foresee(self, keys: Sequence[ChunkKey]) -> None:
        """Begin to bring up chunks that may soon be asked for, behind all that is waited for.

        Only into room that is free or evictable, and only so many of them (`FORESEEN_SHARE`).
        """
        ascent, chunks, cost = _Ascent(), self._engine.chunks, self._store.cost
        keys = list(dict.fromkeys(keys))
        here = chunks.contains_many(keys)
        left = [key for key, is_here in zip(keys, here, strict=True) if not is_here]
        sources = dict(zip(left, self._store.locate_many(left), strict=True))
        paying = [
            key
            for key, at in sources.items()
            if at is not None and cost.pays(self._stored(key, at))
        ]
        opened = self._open(paying, sources)
        try:
            for key in paying:
                one = opened[key]
                if one.reader is None or one.tier is None:
                    continue
                expected = chunks.expect(
                    key, one.reader.stats, rounded_by=one.reader.rounded_by, foreseen=True
                )
                if expected is None:
                    continue
                expected[0].source = one.tier, one.reader.codec
                ascent.add(one.tier, one.reader, expected[0])
                del opened[key]  # the loader ends its lease
                self._metrics.prefetches.inc()
        finally:
            self._begin(ascent, measured=False)
            for one in opened.values():
                one.close()

    def _open(
        self, keys: Sequence[ChunkKey], sources: Mapping[ChunkKey, Source | None]
    ) -> dict[ChunkKey, Opened]:
        opened = self._store.open_many(keys, [sources[key] for key in keys])
        return dict(zip(keys, opened, strict=True))

    def _stored(self, key: ChunkKey, source: Source) -> Stored:
        tier, codec = source
        tokens = len(key.token_ids)
        size = tokens * self._engine.model.geometry.bytes_per_token
        return Stored(tier, size, Rows.after(self._head_tokens, tokens), codec)

    def _lease(
        self, keys: Sequence[ChunkKey], leases: Leases, coming: dict[Source, int]
    ) -> dict[ChunkKey, Found]:
        """Those on the device; bytes of those still on their way up are added to `coming`."""
        chunks, tier = self._engine.chunks, self._engine.chunk_tier
        found: dict[ChunkKey, Found] = {}
        residents = chunks.lease_many(keys)
        for resident in residents:
            if resident is not None:
                leases.add(resident)
        for key, resident in zip(keys, residents, strict=True):
            if resident is None:
                continue
            source, resident.source = resident.source, None
            if source is not None and not resident.arrival.is_whole:
                coming[source] = coming.get(source, 0) + self._stored(key, source).size_bytes
            found[key] = Found(resident, source[0] if source else tier, None)
        self._metrics.chunk_queries.labels(tier).inc(len(keys))
        self._metrics.chunk_hits.labels(tier).inc(len(found))
        return found

    def _bring_up(
        self, key: ChunkKey, opened: dict[ChunkKey, Opened], ascent: _Ascent, leases: Leases
    ) -> Found:
        """A chunk that was opened, or else takes longer to load than to compute. What comes up
        leaves `opened`; what is left there is not read.
        """
        one = opened.get(key)
        if one is None:
            return self._missed("slower")
        reader, tier = one.reader, one.tier
        if reader is None or tier is None:
            return Found(None, None, one.miss)
        expected = self._engine.chunks.expect(key, reader.stats, rounded_by=reader.rounded_by)
        if expected is None:
            return self._missed("no_room")
        resident, is_new = expected
        leases.add(resident)
        if is_new:  # else another request was faster
            ascent.add(tier, reader, resident)
            del opened[key]  # the loader ends its lease
        return Found(resident, tier, None)

    def _missed(self, reason: str) -> Found:
        self._metrics.chunk_misses.labels(reason).inc()
        return Found(None, None, reason)

    # ------------------------------------------------------------ what comes up

    def _begin(self, ascent: _Ascent, *, measured: bool) -> None:
        for (tier, is_held), chunks in ascent.chunks.items():
            # a record that is held went to the tiers above when it was opened
            is_highest = is_held or self._store.tiers[0].name == tier
            batch = Batch(
                tier, ascent.began_at, on_failure=self._failed,
                on_end=self._came if measured else lambda _: None,
                on_record=None if is_highest else self._promote,
            )  # fmt: skip
            self._engine.loader.load(batch, chunks)

    def _came(self, batch: Batch) -> None:
        if batch.failed:
            return
        busy_s = sum(part.busy_s for part in batch.brought.values())
        for codec, part in batch.brought.items():
            share = part.busy_s / busy_s if busy_s else 1 / len(batch.brought)
            self._store.cost.observe_load(
                batch.tier, part.size_bytes, share * batch.seconds, codec=codec, share=share
            )

    def _promote(self, batch: Batch, record: ChunkKV) -> None:
        self._store.promote(record, batch.tier)

    def _failed(self, batch: Batch, key: ChunkKey, error: Exception) -> None:
        if isinstance(error, StoreError):
            reason = self._store.failed(batch.tier, key, error)
        else:
            self._metrics.store_errors.labels(batch.tier, "read").inc()
            reason = "error"
        self._metrics.chunk_misses.labels(reason).inc()
