"""Which records leave a tier when room is needed. Pure: digests and figures, no tensors, no clock.

A policy is told what happened and answers `admits` and `victims`; it never evicts by itself, and
asking changes nothing.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from chunkcache.chunk import USUAL_TERMS, Retention
from chunkcache.store.popularity import Popularity
from chunkcache.store.ranking import Ranking
from chunkcache.store.victims import Held, Pools, Stage, Stages, Victims

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from chunkcache.chunk import Terms

_MIN_WINDOW_RECORDS = 4  # a byte share below a few chunks would admit nothing (measured: 98 % miss)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a policy knows of a record.

    `saved` is what one hit saves beside a miss, the cost of repair taken off: seconds where the
    cost model knows them, else tokens; one unit in one policy.
    """

    size_bytes: int
    saved: float = 1.0
    terms: Terms = USUAL_TERMS


class Policy(Protocol):
    """Order of eviction. Not thread-safe: the tier that owns it holds its own lock."""

    def on_use(self, digest: bytes) -> None:
        """A request wanted the record, whether it is here or not. The only verb that counts."""
        ...

    def on_put(self, digest: bytes, entry: Entry) -> None:
        """A record came in, or came in again as another. No use: a demotion is none."""
        ...

    def on_recode(self, digest: bytes, to: bytes, entry: Entry) -> None:
        """A record that nobody wanted lately is another now, smaller, maybe under another digest.

        No use, and no newcomer. Unknown digests are ignored.
        """
        ...

    def on_delete(self, digest: bytes) -> None:
        """A record left, evicted or deleted. Unknown digests are ignored."""
        ...

    def on_time(self, now_s: float) -> None:
        """It is this late now (Unix time), as far as `Terms.expires_s` is concerned."""
        ...

    def on_wait(self, digests: Iterable[bytes]) -> None:
        """A request that will want these stands in the queue, behind those told of before.

        They leave only if nothing else can, those wanted last first.
        """
        ...

    def on_wait_over(self, digests: Iterable[bytes]) -> None:
        """A request that wanted these has left the queue, the first of them if there are more."""
        ...

    def admit(
        self, digest: bytes, entry: Entry, bytes_needed: int, spared: Container[bytes] = ()
    ) -> list[bytes] | None:
        """Whom to evict, worst first, so that a record may come in; None: it is not to.

        Args:
            bytes_needed: that must become free, 0 or less where there is room.
            spared: in use, they stay.
        """
        ...

    def victims(self, bytes_needed: int, spared: Container[bytes] = ()) -> list[bytes]:
        """Digests to evict, worst first, which together free `bytes_needed`, or all that may go."""
        ...


class LruPolicy:
    """Least recently used leaves first; of terms it knows `Retention` alone."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def on_use(self, digest: bytes) -> None:
        """See `Policy`."""
        if digest in self._entries:
            self._entries.move_to_end(digest)

    def on_put(self, digest: bytes, entry: Entry) -> None:
        """See `Policy`."""
        self._entries[digest] = entry
        self._entries.move_to_end(digest)

    def on_recode(self, digest: bytes, to: bytes, entry: Entry) -> None:
        """See `Policy`. It is the next to leave."""
        if self._entries.pop(digest, None) is None:
            return
        self._entries[to] = entry
        self._entries.move_to_end(to, last=False)

    def on_delete(self, digest: bytes) -> None:
        """See `Policy`."""
        self._entries.pop(digest, None)

    def on_time(self, now_s: float) -> None:
        """See `Policy`."""

    def on_wait(self, digests: Iterable[bytes]) -> None:
        """See `Policy`."""

    def on_wait_over(self, digests: Iterable[bytes]) -> None:
        """See `Policy`."""

    def admit(
        self, digest: bytes, entry: Entry, bytes_needed: int, spared: Container[bytes] = ()
    ) -> list[bytes] | None:
        """See `Policy`. O(victims + those that may not go)."""
        is_passing = entry.terms.retention is Retention.PASSING
        chosen = self._choose(
            bytes_needed, spared, Retention.NORMAL if is_passing else Retention.WARMED
        )
        freed = sum(self._entries[victim].size_bytes for victim in chosen)
        return chosen if freed >= bytes_needed else None

    def victims(self, bytes_needed: int, spared: Container[bytes] = ()) -> list[bytes]:
        """See `Policy`. O(victims + those that may not go)."""
        return self._choose(bytes_needed, spared, Retention.WARMED)

    def _choose(
        self, bytes_needed: int, spared: Container[bytes], firmest: Retention
    ) -> list[bytes]:
        chosen: list[bytes] = []
        for digest, entry in self._entries.items():
            if bytes_needed <= 0:
                break
            if digest not in spared and entry.terms.retention <= firmest:
                chosen.append(digest)
                bytes_needed -= entry.size_bytes
        return chosen


@dataclass(slots=True)
class _BoundTenant:
    """A tenant with a quota, and its records apart from all others."""

    limit_bytes: int
    pools: Pools
    held_bytes: int = 0


class WindowedFrequencyPolicy:
    """An LRU window in front of a main part ordered by decayed uses × saved ÷ bytes.

    On RAG traces this closes about twice as much of the gap between LRU and the offline optimum as
    GDSF or S3-FIFO, and the window keeps it from losing to LRU on session traffic. A record enters
    the window; when the window holds more than its share, its oldest record moves to the main part
    and must hold its own there. Uses are remembered beyond eviction, so that a chunk which keeps
    coming back is recognised. First to leave are records that have expired, then the main part's
    worst, then the window's oldest; those a waiting request will want come after all of these.

    `on_use`: O(1). The others: O(log n) per record they touch, amortised.

    Args:
        capacity_bytes: of the tier.
        window_share: of it, for newcomers; at least four records.
        half_life_uses: after so many uses of any record one weighs half; see `Popularity`.
        popularity: where uses are counted, when several tiers share it.
        counts_uses: False in all tiers but the first of those that share it: that one is asked for
            every record, so each use is counted once, and lower ones know what is used above them.
        protected_share: of the tier, up to which warmed records are safe from passing ones.
        quotas: bytes that a tenant may hold here; unlimited for those not named.
        min_uses: decayed uses a record must have to be admitted, to spare a medium writes.
    """

    def __init__(
        self,
        capacity_bytes: int,
        *,
        window_share: float = 0.1,
        half_life_uses: float = 8000,
        popularity: Popularity | None = None,
        counts_uses: bool = True,
        protected_share: float = 1.0,
        quotas: Mapping[str, int] | None = None,
        min_uses: float = 0.0,
    ) -> None:
        self._capacity = capacity_bytes
        self._window_capacity = int(capacity_bytes * window_share)
        self._popularity = popularity or Popularity(half_life_uses)
        self._counts_uses = counts_uses
        self._protected_bytes = int(capacity_bytes * protected_share)
        self._min_uses = min_uses
        self._held: dict[bytes, Held] = {}
        self._used: dict[bytes, int] = {}  # when each record here was used last
        self._now = 0
        self._now_s = -math.inf
        self._waits: dict[bytes, deque[int]] = {}  # places in the queue, first one first
        self._places = 0
        self._window_bytes = 0
        self._warmed_bytes = 0
        self._expiring = Ranking(self._expiry)
        self._everyone = self._new_pools()
        self._bound: dict[str, _BoundTenant] = {}
        for tenant, limit_bytes in (quotas or {}).items():
            self.on_quota(tenant, limit_bytes)

    # ------------------------------------------------------------ what happened

    def on_use(self, digest: bytes) -> None:
        """See `Policy`."""
        if self._counts_uses:
            self._popularity.count(digest)
        if digest in self._used:
            self._now += 1
            self._used[digest] = self._now

    def on_put(self, digest: bytes, entry: Entry) -> None:
        """See `Policy`. A record that nobody ever wanted counts as used once."""
        self.on_delete(digest)
        self._popularity.introduce(digest)
        self._now += 1
        self._take_in(digest, entry, self._now, Stage.WINDOW)
        self._shrink_window()

    def on_recode(self, digest: bytes, to: bytes, entry: Entry) -> None:
        """See `Policy`. If it was in the window still, its time there is over."""
        used = self._used.get(digest)
        if used is None:
            return
        self._popularity.follow(digest, to)
        self.on_delete(digest)
        self.on_delete(to)
        self._take_in(to, entry, used, Stage.MAIN)

    def on_delete(self, digest: bytes) -> None:
        """See `Policy`."""
        held = self._held.pop(digest, None)
        if held is None:
            return
        self._move(digest, held, None)
        if self._expiring:
            self._expiring.discard(digest)
        del self._used[digest]
        self._account(held.entry, -held.entry.size_bytes)

    def on_time(self, now_s: float) -> None:
        """See `Policy`."""
        self._now_s = max(self._now_s, now_s)
        self._expire()

    def on_wait(self, digests: Iterable[bytes]) -> None:
        """See `Policy`."""
        self._places += 1
        for digest in digests:
            self._waits.setdefault(digest, deque()).append(self._places)

    def on_wait_over(self, digests: Iterable[bytes]) -> None:
        """See `Policy`."""
        for digest in digests:
            places = self._waits.get(digest)
            if places:
                places.popleft()
            if not places:
                self._waits.pop(digest, None)

    def on_quota(self, tenant: str, limit_bytes: int | None) -> None:
        """A tenant may hold so much from now on; None: as much as there is. O(records)."""
        self._bound.pop(tenant, None)
        if limit_bytes is not None:
            self._bound[tenant] = _BoundTenant(limit_bytes, self._new_pools())
        for digest, held in self._held.items():
            if held.entry.terms.tenant == tenant:
                held.rankings = self._rankings(held.entry)
                if limit_bytes is not None:
                    self._bound[tenant].held_bytes += held.entry.size_bytes
                    if held.stage is not None:
                        held.rankings[1][held.stage].add(digest)

    # ------------------------------------------------------------ who leaves

    def admit(
        self, digest: bytes, entry: Entry, bytes_needed: int, spared: Container[bytes] = ()
    ) -> list[bytes] | None:
        """See `Policy`. Above its quota a tenant's own records leave first."""
        if entry.size_bytes > self._capacity:
            return None
        if self._min_uses and self._popularity.uses(digest) < self._min_uses:
            return None
        bound = self._bound.get(entry.terms.tenant)
        over = bound.held_bytes + entry.size_bytes - bound.limit_bytes if bound else 0
        passes = entry.terms.retention is Retention.PASSING
        warmed_to_spare = self._warmed_bytes - self._protected_bytes if passes else math.inf
        chosen = Victims(self._held, spared, self._waits, warmed_to_spare)
        if bound and over > 0:
            chosen.take(bound.pools, over)
            over -= chosen.freed_bytes
        chosen.take(self._everyone, bytes_needed)
        chosen.restore()
        return chosen.digests if over <= 0 and chosen.freed_bytes >= bytes_needed else None

    def victims(self, bytes_needed: int, spared: Container[bytes] = ()) -> list[bytes]:
        """See `Policy`."""
        chosen = Victims(self._held, spared, self._waits, math.inf)
        chosen.take(self._everyone, bytes_needed)
        chosen.restore()
        return chosen.digests

    # ------------------------------------------------------------

    def _take_in(self, digest: bytes, entry: Entry, used: int, stage: Stage) -> None:
        self._used[digest] = used
        self._held[digest] = held = Held(entry, self._rankings(entry))
        self._account(entry, entry.size_bytes)
        if entry.terms.expires_s < math.inf:
            self._expiring.add(digest)
        if entry.terms.retention is not Retention.PINNED:
            self._move(digest, held, stage)
        if self._expiring:
            self._expire()

    def _new_pools(self) -> Pools:
        return Pools(self._expiry, self._worth, self._used.__getitem__)

    def _expiry(self, digest: bytes) -> float:
        return self._held[digest].entry.terms.expires_s

    def _worth(self, digest: bytes) -> float:
        return self._popularity.weight(digest) + self._held[digest].log2_density

    def _rankings(self, entry: Entry) -> tuple[Stages, ...]:
        """Those of everyone, and those of its tenant if that has a quota."""
        bound = self._bound.get(entry.terms.tenant)
        everyone = self._everyone.of(entry)
        return (everyone, bound.pools.of(entry)) if bound else (everyone,)

    def _account(self, entry: Entry, size_bytes: int) -> None:
        """So many bytes came in on the terms of `entry`, or went if below 0."""
        if entry.terms.retention is Retention.WARMED:
            self._warmed_bytes += size_bytes
        if self._bound and (bound := self._bound.get(entry.terms.tenant)):
            bound.held_bytes += size_bytes

    def _move(self, digest: bytes, held: Held, stage: Stage | None) -> None:
        """Between the rankings of the record's pools; None: it is in none."""
        before = held.stage
        for rankings in held.rankings:
            if before is not None:
                rankings[before].discard(digest)
            if stage is not None:
                rankings[stage].add(digest)
        if before is Stage.WINDOW:
            self._window_bytes -= held.entry.size_bytes
        if stage is Stage.WINDOW:
            self._window_bytes += held.entry.size_bytes
        held.stage = stage

    def _shrink_window(self) -> None:
        while self._window_bytes > self._window_capacity:
            if self._everyone.count(Stage.WINDOW) <= _MIN_WINDOW_RECORDS:
                break
            digest = self._everyone.head(Stage.WINDOW)
            self._move(digest, self._held[digest], Stage.MAIN)

    def _expire(self) -> None:
        while (place := self._expiring.head()) is not None and place[0] <= self._now_s:
            self._expiring.pop()
            self._move(place[1], self._held[place[1]], Stage.EXPIRED)
