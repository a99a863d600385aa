"""Chunk KV on the device, one copy for everyone: content-addressed pages, leased to requests.

A chunk's K is rotated to its place in the chunk when it comes up, once; any number of requests at
any positions read the same pages (chunkcache_kernels/arena.py). It may come up layer by layer: its
pages are leased at once, and whoever reads a layer waits for that layer (`arrival.py`). On a CPU
this *is* the tier in host memory. Keys are salted by tenant (`ChunkKey`), so tenants never meet
here.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.chunk import USUAL_TERMS, Retention
from chunkcache.engine.arrival import Arrival
from chunkcache.engine.lane import lane_for
from chunkcache.engine.pages import PagePool
from chunkcache.engine.pool import placing
from chunkcache.engine.resident import Leases, Resident
from chunkcache.store.base import TierUsage
from chunkcache.store.policy import Entry
from chunkcache.store.windowed import WindowedFrequencyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from chunkcache.chunk import ChunkKey, ChunkKV, ChunkStats, Terms
    from chunkcache.engine.angles import RotaryAngles
    from chunkcache.engine.lane import Lane, Mark
    from chunkcache.store.policy import Refusal, Room
    from chunkcache.store.popularity import Popularity
    from chunkcache_kernels import Arena
    from chunkcache_kernels.compiled import Team

FORESEEN_SHARE = 0.25  # of the pages, for chunks that nobody has asked for yet


class ChunkPages:
    """Chunks on the device, at most `arena.num_pages` pages. Thread-safe.

    Args:
        arena: where they lie; written by whoever brings a chunk up, read by the engine thread.
        angles: of every layer; None for those whose keys have no positions.
        team: whose compiled kernel writes pages; without it torch does.
        on_evict: called with the number of chunks evicted, under the lock.
        quotas: bytes that a tenant may hold here; unlimited for those not named.
        popularity: where uses are counted, for tiers below to know them.
        on_waste: called with the number of those that were foreseen and never asked for.
        lane: where chunks are brought up; that of the arena's device, if none is given.
    """

    def __init__(
        self,
        arena: Arena,
        angles: Sequence[RotaryAngles | None],
        *,
        team: Team | None = None,
        on_evict: Callable[[int], None] = lambda _: None,
        quotas: Mapping[str, int] | None = None,
        popularity: Popularity | None = None,
        on_waste: Callable[[int], None] = lambda _: None,
        lane: Lane | None = None,
    ) -> None:
        self._arena = arena
        self._angles = angles
        self._place = placing(arena, team)
        self._on_evict = on_evict
        self._on_waste = on_waste
        self.lane = lane or lane_for(arena.keys.device)
        self._page_bytes = arena.page_bytes
        self._is_exact = arena.keys.dtype.is_floating_point
        self._lock = threading.Lock()
        self._pool = PagePool(arena.num_pages, arena.page_tokens)
        capacity_bytes = arena.num_pages * self._page_bytes
        # requests need pages to run at all: what is warm gives the window's share to any of them
        self._policy = WindowedFrequencyPolicy(
            capacity_bytes, popularity=popularity, protected_share=0.9, quotas=quotas
        )
        self._residents: dict[bytes, Resident] = {}
        self._foreseen_pages = 0

    def lease(self, key: ChunkKey) -> Resident | None:
        """The chunk, kept until `release`; None if it is not here. Compares token ids.

        Its layers may still be on their way.
        """
        return self.lease_many([key])[0]

    def lease_many(self, keys: Sequence[ChunkKey]) -> list[Resident | None]:
        """`lease` for each key, in order and together."""
        with self._lock:
            self._policy.on_use(*[key.digest for key in keys])
            return [self._leased(key) for key in keys]

    def lease_again(self, resident: Resident) -> None:
        """One lease more of a chunk that is leased."""
        with self._lock:
            assert resident.leases > 0, "leased again, but not before"
            resident.leases += 1

    def hold(self, record: ChunkKV, *, listed: bool = True) -> Resident | None:
        """Bring a record up and lease it; None where there is no room for it now.

        Args:
            record: its K is rotated to its place in the chunk, in fp32, and cast once.
            listed: others may find it. Else it is the caller's alone, whatever its key.

        Cost: one pass over the bytes, outside the lock.
        """
        if listed:
            with self._lock:
                if (known := self._leased(record.key)) is not None:
                    return known
        entry = self._entry(record.key, record.terms)
        with self._lock:
            pages = self._allocate(record.key.digest, entry)
        if pages is None:
            return None
        resident = self._new(record.key, record.stats, pages, record.rounded_by)
        resident.is_listed = listed
        try:
            self.write(resident, 0, record.kv)
        except BaseException:
            with self._lock:
                self._pool.release(pages)
            raise
        return self._list(resident, entry) if listed else resident

    def expect(
        self,
        key: ChunkKey,
        stats: ChunkStats,
        *,
        rounded_by: str | None = None,
        foreseen: bool = False,
    ) -> tuple[Resident, bool] | None:
        """Pages for a chunk whose layers will be written, in any order.

        It is leased twice: to the caller, unless it is only `foreseen`, and to whoever writes the
        layers, who ends with `settle`. Others find it at once.

        Returns:
            The chunk, and whether it is new; one that is known has one lease more, of the caller,
            and needs no writer. None: no room for it now, or for more chunks that are foreseen.
        """
        entry = self._entry(key, USUAL_TERMS)
        count = entry.size_bytes // self._page_bytes
        with self._lock:
            if foreseen and self._find(key) is not None:
                return None
            if (known := self._leased(key)) is not None:
                return known, False
            most = int(FORESEEN_SHARE * self._arena.num_pages)
            if foreseen and self._foreseen_pages + count > most:
                return None
            pages = self._allocate(key.digest, entry)
            if pages is None:
                return None
            resident = self._new(key, stats, pages, rounded_by)
            resident.leases += not foreseen
            resident.is_foreseen = foreseen
            self._foreseen_pages += count if foreseen else 0
            self._drop(key.digest)  # another chunk with the same digest
            self._enlist(resident, entry)
            return resident, True

    def settle(self, resident: Resident, failure: str | None = None) -> None:
        """End what `expect` began: every layer is written, or `failure` says why not.

        A chunk that failed is found by nobody any more; its pages go with its last lease.
        """
        if failure is not None:
            resident.arrival.fail(failure)
            with self._lock:
                if self._residents.get(resident.key.digest) is resident:
                    self._drop(resident.key.digest)
        self.release([resident])

    def write(self, resident: Resident, first: int, kv: torch.Tensor) -> Mark | None:
        """Write layers of a chunk, from `first` on, `[layers, 2, tokens, heads, dim]`, K before
        RoPE, to its pages. Returns: where the device has read them, if it has not yet.
        """
        with torch.inference_mode(), self.lane.work():
            self._write(resident, first, kv)
            mark = self.lane.mark()
        resident.arrival.came(first, first + len(kv), mark)
        return mark

    def release(self, residents: Iterable[Resident]) -> None:
        """Give leases back; a chunk that nobody leases may be evicted."""
        with self._lock:
            self.lane.pages_freed()
            for resident in residents:
                assert resident.leases > 0, "a lease was given back twice"
                resident.leases -= 1
                if not resident.leases and not resident.is_listed:
                    self._pool.release(resident.pages.tolist())

    @contextmanager
    def leases(self) -> Iterator[Leases]:
        """Leases taken inside are given back at the end, or after a fault, unless passed on."""
        taken = Leases()
        try:
            yield taken
        finally:
            self.release(taken.pass_on())

    def why_not(self, record: ChunkKV) -> Refusal:
        """Why there was no room for a record; see `Policy`."""
        with self._lock:
            entry = self._entry(record.key, record.terms)
            return self._policy.why_not(record.key.digest, entry)

    def size_for(self, num_tokens: int) -> int:
        """See `Foresees`. Whole pages."""
        return self._pool.pages_for(num_tokens) * self._page_bytes

    def room_for(self, tenant: str) -> Room:
        """See `Foresees`."""
        with self._lock:
            return self._policy.room_for(tenant, self._pool.available * self._page_bytes)

    def on_quota(self, tenant: str, limit_bytes: int | None) -> None:
        """A tenant may hold so much from now on; None: as much as there is."""
        with self._lock:
            self._policy.on_quota(tenant, limit_bytes)

    def on_wait(self, keys: Sequence[ChunkKey]) -> None:
        """A request that waits will want these; see `Policy`."""
        with self._lock:
            self._policy.on_wait([key.digest for key in keys])

    def on_wait_over(self, keys: Sequence[ChunkKey]) -> None:
        """It waits no more."""
        with self._lock:
            self._policy.on_wait_over([key.digest for key in keys])

    def contains(self, key: ChunkKey) -> bool:
        """Whether `lease` would find it. Does not count as a use."""
        return self.contains_many([key])[0]

    def contains_many(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """`contains` for each key, in order and together."""
        with self._lock:
            return [self._find(key) is not None for key in keys]

    def usage(self) -> TierUsage:
        """Chunks and bytes held, leased or not."""
        with self._lock:
            held = self._pool.num_pages - self._pool.available
            capacity = self._pool.num_pages * self._page_bytes
            return TierUsage(len(self._residents), held * self._page_bytes, capacity)

    @property
    def page_bytes(self) -> int:
        """What a page takes on the device."""
        return self._page_bytes

    @property
    def page_tokens(self) -> int:
        """How many tokens it holds."""
        return self._pool.page_tokens

    @property
    def leased(self) -> int:
        """Leases that have not been given back."""
        with self._lock:
            return sum(resident.leases for resident in self._residents.values())

    def clear(self) -> None:
        """Forget every chunk; leased ones live on until their last lease ends."""
        with self._lock:
            for digest in list(self._residents):
                self._drop(digest)

    def forget(self, is_meant: Callable[[ChunkKey], bool]) -> int:
        """Forget the chunks whose key is meant; leased ones live on. How many there were."""
        with self._lock:
            meant = [digest for digest, one in self._residents.items() if is_meant(one.key)]
            for digest in meant:
                self._drop(digest)
        return len(meant)

    # ------------------------------------------------------------ under the lock

    def _find(self, key: ChunkKey) -> Resident | None:
        resident = self._residents.get(key.digest)
        return resident if resident is not None and resident.key == key else None

    def _leased(self, key: ChunkKey) -> Resident | None:
        resident = self._find(key)
        if resident is not None:
            resident.leases += 1
            self._no_longer_foreseen(resident)
        return resident

    def _entry(self, key: ChunkKey, terms: Terms) -> Entry:
        """What the policy is to know: whole pages, and what a hit saves in tokens."""
        tokens = len(key.token_ids)
        if terms.retention is Retention.PINNED:  # here it would leave requests no pages to run on
            terms = replace(terms, retention=Retention.WARMED)
        return Entry(self.size_for(tokens), tokens, terms)

    def _no_longer_foreseen(self, resident: Resident) -> None:
        if resident.is_foreseen:
            resident.is_foreseen = False
            self._foreseen_pages -= len(resident.pages)

    def _list(self, resident: Resident, entry: Entry) -> Resident:
        with self._lock:
            known = self._leased(resident.key)
            if known is not None:  # another thread was faster; one copy is enough
                self._pool.release(resident.pages.tolist())
                return known
            self._drop(resident.key.digest)  # another chunk with the same digest
            self._enlist(resident, entry)
            return resident

    def _enlist(self, resident: Resident, entry: Entry) -> None:
        self._residents[resident.key.digest] = resident
        self._policy.on_put(resident.key.digest, entry)

    def _new(
        self, key: ChunkKey, stats: ChunkStats, pages: list[int], codec: str | None
    ) -> Resident:
        """Leased once."""
        size, array = len(pages) * self._page_bytes, np.array(pages, dtype=np.int32)
        arrival = Arrival(len(self._angles))
        is_exact = self._is_exact and codec is None
        return Resident(key, stats, array, size, is_exact, codec, arrival, leases=1)

    def _allocate(self, digest: bytes, entry: Entry) -> list[int] | None:
        missing_bytes = entry.size_bytes - self._pool.available * self._page_bytes
        leased = {d for d, r in self._residents.items() if r.leases}
        self._policy.on_time(time.time())
        victims = self._policy.admit(digest, entry, missing_bytes, leased)
        if victims is None:
            return None  # nothing is evicted in vain
        for victim in victims:
            self._drop(victim)
        if victims:
            self._on_evict(len(victims))
        return self._pool.allocate(entry.size_bytes // self._page_bytes)

    def _drop(self, digest: bytes) -> None:
        resident = self._residents.pop(digest, None)
        if resident is None:
            return
        self._policy.on_delete(digest)
        if resident.is_foreseen:
            self._on_waste(1)
            self._no_longer_foreseen(resident)
        if resident.leases:
            resident.is_listed = False  # its pages are freed with its last lease
        else:
            self._pool.release(resident.pages.tolist())

    # ------------------------------------------------------------

    def _write(self, resident: Resident, first: int, kv: torch.Tensor) -> None:
        pages, count = resident.pages.astype(np.int64), resident.num_tokens
        kv = kv.to(self._arena.keys.device, non_blocking=True).contiguous()
        kinds = self._angles[first : first + len(kv)]
        start = 0
        for _, run in groupby(kinds, key=id):
            end = start + len(list(run))
            angles = self._angles_of(kinds[start], count)
            self._place(self._arena, first + start, kv[start:end], pages, angles)
            start = end

    def _angles_of(
        self, kind: RotaryAngles | None, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 cos and sin of the places in a chunk; of width 0 where keys have no positions."""
        if kind is None:
            nothing = torch.empty((count, 0), device=self._arena.keys.device)
            return nothing, nothing
        table = kind.table(count)
        return table.cos[:count], table.sin[:count]
