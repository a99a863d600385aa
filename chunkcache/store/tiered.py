"""All tiers as one store: look up from the top, promote on a hit, write behind.

Tiers stand from fast to slow. One in memory gets a record at once; every durable one below has a
thread and a bounded queue of its own and is written once, when the record is new: a request never
waits for a write. What is promoted stays where it was. A tier that fails is a miss, a counter and a
warning, never a failed request; the next one is asked then. Why: docs/decisions/0027-tiers.md.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import groupby
from operator import attrgetter, or_
from typing import TYPE_CHECKING

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.base import Choosing, Retaining
from chunkcache.store.cost import CostModel
from chunkcache.store.failures import Failures
from chunkcache.store.looks import Looks
from chunkcache.store.lookup import Lookup, Opened
from chunkcache.store.policy import Refusal
from chunkcache.store.reader import HeldRecord, read_record
from chunkcache.store.write_behind import WriteBehind, any_written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.chunk import ChunkKey, ChunkKV, Retention, Terms
    from chunkcache.metrics import Metrics
    from chunkcache.store.base import Job, RecordReader, Tier, TierUsage
    from chunkcache.store.cost import Source
    from chunkcache.store.write_behind import NewQueue


class TieredStore:
    """Tiers from fast to slow; none is a store that holds nothing. Thread-safe.

    Args:
        tiers: each name once; at most one is in memory, the first.
        write_queue_limit: records that may wait for one durable tier.
        write_queue_bytes: KV that may wait for one durable tier.
        queue: makes what takes writes off the request's path; a replay of a trace writes at once.
        clock: seconds, by which loads are timed; a replay has a clock of its own.
        jobs: what works on the tiers by itself; closed before they are.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        metrics: Metrics,
        *,
        write_queue_limit: int = 64,
        write_queue_bytes: int = 256 * 1024 * 1024,
        queue: NewQueue = WriteBehind,
        clock: Callable[[], float] = time.perf_counter,
        jobs: Sequence[Job] = (),
    ) -> None:
        names = [tier.name for tier in tiers]
        assert len(set(names)) == len(names), f"two tiers of one name: {names}"
        assert all(tier.durable for tier in tiers[1:]), "only the first may be in memory"
        self._tiers = tuple(tiers)
        self._durable = tuple(tier for tier in tiers if tier.durable)
        self._retaining = [tier for tier in tiers if isinstance(tier, Retaining)]
        self._metrics = metrics
        self._failures = Failures(metrics)
        self._looks = Looks(tiers, metrics, self._failures)
        self._clock = clock
        self.jobs = tuple(jobs)
        self._limits = (write_queue_limit, write_queue_bytes)
        self._behind = {
            tier.name: queue(
                partial(self._write, tier), *self._limits, name=f"chunkcache-writer-{tier.name}"
            )
            for tier in self._durable
        }
        self.cost = CostModel()
        for tier in tiers:  # asked when they are scraped: others write the same disk
            if not tier.remote:
                used = metrics.tier_bytes.labels(tier.name)
                used.set_function(partial(self._scraped, tier, attrgetter("size_bytes")))
                held = metrics.tier_records.labels(tier.name)
                held.set_function(partial(self._scraped, tier, attrgetter("records")))

    @property
    def is_empty(self) -> bool:
        """Whether there is no tier at all."""
        return not self._tiers

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """From fast to slow."""
        return self._tiers

    # ------------------------------------------------------------ looking up

    def fetch(self, key: ChunkKey) -> Lookup:
        """Look from the top down; a hit below is promoted to the tiers above."""
        misses: list[str] = []
        for tier in self._tiers:
            found = self._fetch_from(tier, key)
            if isinstance(found, str):
                misses.append(found)
                continue
            self.promote(found, tier.name)
            return Lookup(found, tier.name, None)
        return Lookup(None, None, self._missed(misses))

    def open(self, key: ChunkKey) -> Opened:
        """`fetch` for who reads layer by layer: a lease, to be closed by the caller.

        A record that had to be read whole is promoted at once; for another, the caller calls
        `promote` when it has all of it, and `failed` if reading it raises.
        """
        misses: list[str] = []
        with ExitStack() as ends:
            for tier in self._tiers:
                reader = self._looks.open(tier, key, ends)
                if not isinstance(reader, str):
                    opened = self._opened(reader, tier)
                    ends.pop_all()
                    return opened
                misses.append(reader)
        return Opened(None, None, self._missed(misses))

    def open_many(self, keys: Sequence[ChunkKey], sources: Sequence[Source | None]) -> list[Opened]:
        """`open` for each key, in order; those that come from tiers that can are opened together.

        Args:
            sources: where `locate_many` has found them. What comes whole, from elsewhere, is
                opened by itself: it is promoted when it comes, and may push out what is next. One
                that turns out to come so because it has left or is damaged pushes out nothing that
                was opened with it.
        """
        opened: list[Opened] = []
        with ExitStack() as ends:
            pairs = zip(keys, sources, strict=True)
            for is_alone, run in groupby(pairs, key=lambda pair: self._looks.comes_whole(pair[1])):
                wanted = [key for key, _ in run]
                if not is_alone:
                    opened += self._open_run(wanted, ends)
                    continue
                for key in wanted:
                    opened.append(self.open(key))
                    ends.callback(opened[-1].close)
            ends.pop_all()
        return opened

    def _open_run(self, keys: Sequence[ChunkKey], ends: ExitStack) -> list[Opened]:
        came = self._looks.open_run(keys, self._opened, ends)
        return [
            one if isinstance(one, Opened) else Opened(None, None, self._missed(one))
            for one in came
        ]

    def _opened(self, reader: RecordReader, tier: Tier) -> Opened:
        self._metrics.chunk_hits.labels(tier.name).inc()
        if isinstance(reader, HeldRecord):
            self.promote(reader.record, tier.name)
        return Opened(reader, tier.name, None)

    def promote(self, record: ChunkKV, tier: str) -> None:
        """A record that came from `tier` goes to the tiers above: memory now, durable ones soon."""
        for above in self._tiers:
            if above.name == tier:
                return
            if above.durable:
                self._queue(above, record, wait=False)
            else:
                above.put(record)

    def failed(self, tier: str, key: ChunkKey, error: StoreError) -> str:
        """Note that reading a record raised `error`. Returns: the reason of the miss."""
        return self._failures.miss(tier, key, error)

    def contains(self, key: ChunkKey) -> str | None:
        """Name of the highest tier that holds the record; not a use."""
        return (self.locate(key) or (None,))[0]

    def locate(self, key: ChunkKey) -> Source | None:
        """The highest tier that holds the record, and by which codec it comes up; not a use."""
        return self._looks.locate(key)

    def locate_many(self, keys: Sequence[ChunkKey]) -> list[Source | None]:
        """`locate` for each key, in order; each tier is asked once where it can be."""
        return self._looks.locate_many(keys)

    def is_durable(self, key: ChunkKey) -> bool:
        """Whether a durable tier holds the record; without such a tier, whether it is held."""
        return self.are_durable([key])[0]

    def are_durable(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """`is_durable` of each, in order, asked together."""
        held = [False] * len(keys)
        for tier in self._durable or self._tiers:
            codecs = self._looks.codecs_in(tier, keys)
            held = list(map(or_, held, [codec is not None for codec in codecs]))
        return held

    def _fetch_from(self, tier: Tier, key: ChunkKey) -> ChunkKV | str:
        """The record, or the reason there is none in this tier."""
        began = self._clock()
        with ExitStack() as ends:
            reader = self._looks.open(tier, key, ends)
            if isinstance(reader, str):
                return reader
            try:
                record = read_record(reader)
            except StoreError as error:
                return self.failed(tier.name, key, error)
        if tier.durable:
            seconds = self._clock() - began
            self.cost.observe_load(tier.name, record.size_bytes, seconds, codec=reader.codec)
        self._metrics.chunk_hits.labels(tier.name).inc()
        return record

    def _missed(self, misses: Sequence[str]) -> str:
        reason = next((miss for miss in misses if miss != "absent"), "absent")
        self._metrics.chunk_misses.labels(reason).inc()
        return reason

    # ------------------------------------------------------------ keeping

    def offer(self, record: ChunkKV, *, wait: bool = False) -> bool:
        """Keep a new record: in memory at once, in the durable tiers soon.

        With `wait`, returns when every durable tier has published it or has failed. Without, a full
        queue drops that tier's copy (counted, warned about); the copy in memory stays.

        Returns:
            Whether a durable tier holds it or will; without such a tier, whether memory does.

        Raises:
            StoreError: only with `wait`: no durable tier took it, and one failed.
        """
        kept = False
        for tier in self._tiers:
            if not tier.durable:
                kept = tier.put(record)
        if not self._durable:
            return kept
        queued = [self._queue(tier, record, wait=wait) for tier in self._durable]
        return any_written(queued) if wait else any(done is not None for done in queued)

    def why_not(self, record: ChunkKV) -> Refusal:
        """Why the lowest tier that goes by a policy does not let a record in."""
        tier = next((one for one in reversed(self._tiers) if isinstance(one, Choosing)), None)
        return tier.why_not(record) if tier else Refusal("no tier took it")

    def spread(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """Copy each record that a durable tier holds to those that lack it and have room; waits.

        Returns:
            For each, whether a durable tier holds it; without such a tier, whether it is held.
        """
        holding: list[list[Tier]] = [[] for _ in keys]
        for tier in self._durable or self._tiers:
            for of_one, codec in zip(holding, self._looks.codecs_in(tier, keys), strict=True):
                of_one += [] if codec is None else [tier]
        return [self._spread(key, tiers) for key, tiers in zip(keys, holding, strict=True)]

    def _spread(self, key: ChunkKey, holding: Sequence[Tier]) -> bool:
        lacking = [tier for tier in self._durable if tier not in holding]
        if not holding or not lacking:
            return bool(holding)
        source = holding[0]
        try:
            with source.open(key) or nullcontext() as reader:
                if reader is None:
                    return False  # it has left since
                size_bytes = reader.num_tokens * reader.geometry.bytes_per_token
                lacking = [tier for tier in lacking if self._takes(tier, size_bytes)]
                record = read_record(reader) if lacking else None
        except StoreError as error:
            self.failed(source.name, key, error)
            return False
        if record is not None:
            copies = [self._queue(tier, record, wait=True) for tier in lacking]
            wait_for_all([copy for copy in copies if copy is not None])
        return True

    def retain(self, key: ChunkKey, terms: Terms, *, exactly: bool = False) -> Retention | None:
        """Keep a record on firmer terms, or `exactly` on these, in every tier that minds them.

        Returns:
            How firmly the lowest tier that has it keeps it; None: none of them has it.

        Raises:
            StoreError: only with `exactly`: a tier could not write it down; the others were asked.
        """
        kept: Retention | None = None
        failure: StoreError | None = None
        for tier in self._retaining:
            try:
                found = tier.retain(key, terms, exactly=exactly)
                kept = kept if found is None else found
            except StoreError as error:
                self._failures.note("write", tier.name, error)
                failure = failure or error
        if exactly and failure is not None:
            raise failure
        return kept

    def on_quota(self, tenant: str, limit_bytes: int | None) -> None:
        """A tenant may hold so much of each tier from now on; None: no limit."""
        for tier in self._retaining:
            tier.on_quota(tenant, limit_bytes)

    def on_wait(self, keys: Sequence[ChunkKey]) -> None:
        """A request that waits will want these: tiers let them go last."""
        for tier in self._retaining:
            tier.on_wait(keys)

    def on_wait_over(self, keys: Sequence[ChunkKey]) -> None:
        """It waits no more."""
        for tier in self._retaining:
            tier.on_wait_over(keys)

    def forget_not_finite(self, keys: Sequence[ChunkKey]) -> None:
        """Delete those of these records that hold a number that is not finite. Reads them all."""
        for tier in self._tiers:
            for key in keys:
                try:
                    record = tier.get(key)
                except StoreError as error:
                    self.failed(tier.name, key, error)
                    continue
                if record is None or record.is_finite:
                    continue
                odd = CorruptRecord(f"record {key.hex}: it holds what is no finite number")
                self.failed(tier.name, key, odd)
                self._failures.asked(tier, partial(tier.delete, key), False)

    def flush(self, *, remote: bool = True) -> None:
        """Wait until tiers, or those of this machine alone, have written what was offered to them.

        What they have dropped is not waited for.
        """
        for tier in self._durable:
            if remote or not tier.remote:
                self._behind[tier.name].flush()

    def close(self) -> None:
        """Write what is queued, then close the tiers. Idempotent.

        Raises:
            StoreError: a tier could not flush; everything is closed all the same.
        """
        with ExitStack() as closing:
            for tier in self._tiers:
                closing.callback(tier.close)
            for behind in self._behind.values():
                closing.callback(behind.close)
            for job in self.jobs:
                closing.callback(job.close)

    def _takes(self, tier: Tier, size_bytes: int) -> bool:
        return self._failures.asked(tier, partial(tier.has_room, size_bytes), False)

    def _queue(self, tier: Tier, record: ChunkKV, *, wait: bool) -> Future[bool] | None:
        """Whether and when it will have been written; None: dropped. With `wait`, never dropped."""
        try:
            done = self._behind[tier.name].offer(record, wait_for_place=wait)
        except StoreError as error:
            if not wait:
                self._failures.note("write", tier.name, error)
                return None
            done = Future()
            done.set_exception(error)
        if done is None:
            self._failures.queue_full(tier.name, *self._limits)
        return done

    def _write(self, tier: Tier, record: ChunkKV) -> bool:
        try:
            is_taken = tier.put(record)
        except StoreError as error:
            self._failures.note("write", tier.name, error)
            raise
        except Exception as error:
            raise self._failures.fault(tier.name, error) from error
        if not is_taken:
            self._metrics.store_refusals.labels(tier.name).inc()
        return is_taken

    def _scraped(self, tier: Tier, of: Callable[[TierUsage], int]) -> float:
        """How full a tier is now; NaN, which is how Prometheus says unknown, when it fails."""
        return self._failures.asked(tier, lambda: of(tier.usage()), math.nan)
