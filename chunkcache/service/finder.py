"""Where the chunks of a prompt are: on the device, on their way up from a tier, or nowhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.engine.loader import Batch
from chunkcache.errors import StoreError
from chunkcache.store.cost import Choice, Rows, Stored
from chunkcache.store.reader import HeldRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.chunk import ChunkKey, ChunkKV
    from chunkcache.engine.core import Engine
    from chunkcache.engine.resident import Leases, Resident
    from chunkcache.metrics import Metrics
    from chunkcache.store.base import RecordReader
    from chunkcache.store.cost import Source
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
    ) -> tuple[dict[ChunkKey, Found], Choice]:
        """Lease each chunk; those not found must be computed, for the reason given.

        One choice is made over all of them: those in a tier that the prompt would wait for longer
        than for computing them are left there (`slower`).

        Args:
            keys: different ones.
            always: rows that the prompt runs whatever is found.
            leases: who holds them from here on.
        """
        found: dict[ChunkKey, Found] = {}
        held: dict[ChunkKey, Stored] = {}
        coming: dict[Source, int] = {}
        for key in keys:
            here = self._lease(key, leases, coming)
            if here is not None:
                found[key] = here
            elif (source := self._store.locate(key)) is not None:
                held[key] = self._stored(key, source)
        choice = self._store.cost.choose(list(held.values()), always, coming)
        loads = dict(zip(held, choice.loads, strict=True))
        ascent = _Ascent()
        try:
            for key in keys:
                if key not in found:
                    found[key] = self._bring_up(key, ascent, leases, pays=loads.get(key, True))
        finally:
            self._begin(ascent, measured=True)
        return found, choice

    def foresee(self, keys: Sequence[ChunkKey]) -> None:
        """Begin to bring up chunks that may soon be asked for, behind all that is waited for.

        Only into room that is free or evictable, and only so many of them (`FORESEEN_SHARE`).
        """
        ascent, chunks = _Ascent(), self._engine.chunks
        try:
            for key in keys:
                source = None if chunks.contains(key) else self._store.locate(key)
                if source is None or not self._store.cost.pays(self._stored(key, source)):
                    continue
                opened = self._store.open(key)
                if opened.reader is None or opened.tier is None:
                    continue
                expected = chunks.expect(
                    key, opened.reader.stats, rounded_by=opened.reader.rounded_by, foreseen=True
                )
                if expected is None:
                    with opened.reader:
                        continue
                expected[0].source = opened.tier, opened.reader.codec
                ascent.add(opened.tier, opened.reader, expected[0])
                self._metrics.prefetches.inc()
        finally:
            self._begin(ascent, measured=False)

    def _stored(self, key: ChunkKey, source: Source) -> Stored:
        tier, codec = source
        tokens = len(key.token_ids)
        size = tokens * self._engine.model.geometry.bytes_per_token
        return Stored(tier, size, Rows.after(self._head_tokens, tokens), codec)

    def _lease(self, key: ChunkKey, leases: Leases, coming: dict[Source, int]) -> Found | None:
        chunks, tier = self._engine.chunks, self._engine.chunk_tier
        self._metrics.chunk_queries.labels(tier).inc()
        resident = chunks.lease(key)
        if resident is None:
            return None
        leases.add(resident)
        self._metrics.chunk_hits.labels(tier).inc()
        source, resident.source = resident.source, None
        if source is not None and not resident.arrival.is_whole:
            coming[source] = coming.get(source, 0) + self._stored(key, source).size_bytes
        return Found(resident, source[0] if source else tier, None)

    def _bring_up(self, key: ChunkKey, ascent: _Ascent, leases: Leases, *, pays: bool) -> Found:
        if not pays:
            return self._missed("slower")
        opened = self._store.open(key)
        if opened.reader is None or opened.tier is None:
            return Found(None, None, opened.miss)
        reader = opened.reader
        expected = self._engine.chunks.expect(key, reader.stats, rounded_by=reader.rounded_by)
        if expected is None:
            with opened.reader:
                return self._missed("no_room")
        resident, is_new = expected
        leases.add(resident)
        if is_new:
            ascent.add(opened.tier, opened.reader, resident)
        else:  # another request was faster
            with opened.reader:
                pass
        return Found(resident, opened.tier, None)

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
