"""The shipped policy: a window in front of a main part that decayed uses order. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chunkcache.chunk import Retention
from chunkcache.store.eviction_queue import EvictionQueue
from chunkcache.store.policy import PINNED_SHARE, Refusal, Room, free_room
from chunkcache.store.popularity import Popularity
from chunkcache.store.victims import Held, Pools, Stage, Victims, expiry

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from chunkcache.store.policy import Entry
    from chunkcache.store.popularity import Uses

# looked up in the enumerations once: these are asked about at every record
_EXPIRED: Final = Stage.EXPIRED
_MAIN: Final = Stage.MAIN
_WINDOW: Final = Stage.WINDOW
_PASSING: Final = Retention.PASSING
_PINNED: Final = Retention.PINNED
_WARMED: Final = Retention.WARMED
_QUOTAS: Final = "store.quota_bytes, chunkcache quota --set"

_MIN_WINDOW_RECORDS = 4  # a byte share below a few chunks would admit nothing (measured: 98 % miss)


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
    Pinned ones do not leave to make room; who puts them asks `may_pin` first.

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
        self._pinnable_bytes = int(capacity_bytes * PINNED_SHARE)
        self._min_uses = min_uses
        self._held: dict[bytes, Held] = {}
        self._now = 0  # in uses of what is here
        self._now_s = -math.inf
        self._waits: dict[bytes, deque[int]] = {}  # places in the queue, first one first
        self._places = 0
        self._window_bytes = 0
        self._warmed_bytes = 0  # without those that have expired
        self._pinned_bytes = 0
        self._expiring = EvictionQueue(expiry, None, _MAIN, _WINDOW)
        self._everyone = Pools(self._worth)
        self._of_everyone = (self._everyone,)
        self._bound: dict[str, _BoundTenant] = {}
        for tenant, limit_bytes in (quotas or {}).items():
            self.on_quota(tenant, limit_bytes)

    # ------------------------------------------------------------ what happened

    def on_use(self, *digests: bytes) -> None:
        """See `Policy`."""
        if self._counts_uses:
            self._popularity.count(*digests)
        held_under = self._held.get
        for digest in digests:
            held = held_under(digest)
            if held is not None and held.stage is _WINDOW:
                self._now += 1
                held.used_at = self._now
                for pools in held.pools:
                    pools.use(held)

    def on_put(self, digest: bytes, entry: Entry) -> None:
        """See `Policy`. A record that nobody ever wanted counts as used once."""
        if digest in self._held:
            self.on_delete(digest)
        self._now += 1
        self._take_in(entry, self._popularity.introduce(digest), _WINDOW)
        if self._window_bytes > self._window_capacity:
            self._shrink_window()

    def on_recode(self, digest: bytes, to: bytes, entry: Entry) -> None:
        """See `Policy`. If it was in the window still, its time there is over."""
        if digest not in self._held:
            return
        self._popularity.follow(digest, to)
        self.on_delete(digest)
        self.on_delete(to)
        self._take_in(entry, self._popularity.of(to), _MAIN)

    def on_delete(self, digest: bytes) -> None:
        """See `Policy`."""
        held = self._held.pop(digest, None)
        if held is None:
            return
        self._leave(held)
        if self._bound:
            self._account(held, -held.entry.size_bytes)

    def on_time(self, now_s: float) -> None:
        """See `Policy`."""
        self._now_s = now_s
        if self._expiring.size:
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
        """See `Policy`. O(records)."""
        self._bound.pop(tenant, None)
        if limit_bytes is not None:
            self._bound[tenant] = _BoundTenant(limit_bytes, Pools(self._worth))
        own = [held for held in self._held.values() if held.entry.terms.tenant == tenant]
        for held in sorted(own, key=lambda one: one.used_at):
            held.pools = self._pools_of(tenant)
            if limit_bytes is not None:
                self._bound[tenant].held_bytes += held.entry.size_bytes
                if held.stage is not None:
                    held.pools[1].add(held)

    # ------------------------------------------------------------ who leaves

    def admit(
        self, digest: bytes, entry: Entry, bytes_needed: int, spared: Container[bytes] = ()
    ) -> list[bytes] | None:
        """See `Policy`. Above its quota a tenant's own records leave first."""
        if entry.size_bytes > self._capacity:
            return None
        if self._min_uses and self._popularity.uses(digest) < self._min_uses:
            return None
        bound = self._bound.get(entry.terms.tenant) if self._bound else None
        if bytes_needed <= 0 and bound is None:
            return []
        over = bound.held_bytes + entry.size_bytes - bound.limit_bytes if bound else 0
        passes = entry.terms.retention is _PASSING
        warmed_to_spare = self._warmed_bytes - self._protected_bytes if passes else math.inf
        places = self._waits.get(digest) if self._waits else None
        chosen = Victims(spared, self._waits, warmed_to_spare, places[0] if places else -1)
        if bound and over > 0:
            chosen.take(bound.pools, over)
            over -= chosen.freed_bytes
        chosen.take(self._everyone, bytes_needed)
        chosen.restore()
        return chosen.digests if over <= 0 and chosen.freed_bytes >= bytes_needed else None

    def victims(self, bytes_needed: int, spared: Container[bytes] = ()) -> list[bytes]:
        """See `Policy`."""
        chosen = Victims(spared, self._waits, math.inf)
        chosen.take(self._everyone, bytes_needed)
        chosen.restore()
        return chosen.digests

    def why_not(self, digest: bytes, entry: Entry) -> Refusal:
        """See `Policy`."""
        size_bytes, terms = entry.size_bytes, entry.terms
        if size_bytes > self._capacity:
            return Refusal("it is larger than the tier")
        if self._min_uses and self._popularity.uses(digest) < self._min_uses:
            return Refusal("it is wanted too seldom")
        stays = ["pinned"] * bool(self._pinned_bytes)
        stays += ["warmed"] * (terms.retention is _PASSING)
        full = f"is full of what is {' or '.join([*stays, 'being read'])}"
        bound = self._bound.get(terms.tenant)
        if bound is None or bound.held_bytes + size_bytes <= bound.limit_bytes:
            return Refusal(f"the tier {full}")
        quota = f"the quota of tenant {terms.tenant!r}, {bound.limit_bytes} bytes"
        is_larger = size_bytes > bound.limit_bytes
        return Refusal(f"it is larger than {quota}" if is_larger else f"{quota}, {full}", _QUOTAS)

    def room_for(self, tenant: str, free_bytes: int) -> Room:
        """See `Policy`. Being read is no reason to stay: it passes."""
        bound = self._bound.get(tenant)
        if bound is None or free_bytes + bound.held_bytes < bound.limit_bytes:
            return free_room(free_bytes)
        stays = sum(
            held.entry.size_bytes
            for digest, held in self._held.items()
            if held.entry.terms.tenant == tenant and (held.stage is None or digest in self._waits)
        )
        reason = f"the quota of tenant {tenant!r}, {bound.limit_bytes} bytes, has no room for more"
        return Room(max(0, bound.limit_bytes - stays), Refusal(reason, _QUOTAS))

    def may_pin(self, size_bytes: int, instead_of: Iterable[bytes] = ()) -> bool:
        """See `Policy`. What has expired is pinned no more."""
        held = [self._held[digest] for digest in {*instead_of} & self._held.keys()]
        free = sum(one.entry.size_bytes for one in held if one.stage is None)
        return self._pinned_bytes - free + size_bytes <= self._pinnable_bytes

    def pins_beyond(self) -> list[bytes]:
        """See `Policy`. O(1) where there are none, else O(records)."""
        beyond, excess = list[bytes](), self._pinned_bytes - self._pinnable_bytes
        if excess > 0:
            for digest, held in reversed(self._held.items()):
                if excess > 0 and held.stage is None:
                    beyond.append(digest)
                    excess -= held.entry.size_bytes
        return beyond

    # ------------------------------------------------------------

    def _take_in(self, entry: Entry, uses: Uses, stage: Stage) -> None:
        size_bytes, terms = entry.size_bytes, entry.terms
        is_warmed = terms.retention is _WARMED
        pools = self._pools_of(terms.tenant) if self._bound else self._of_everyone
        held = Held(entry, uses, pools, self._now, is_warmed=is_warmed)
        self._held[held.digest] = held
        if self._bound:
            self._account(held, size_bytes)
        if terms.retention is _PINNED:
            self._pinned_bytes += size_bytes
        else:
            self._enter(held, stage)
        if terms.expires_s < math.inf:
            self._expiring.add(held)
        if self._expiring.size:
            self._expire()

    def _worth(self, held: Held) -> float:
        uses = held.uses
        if not uses.last:  # forgotten; but it may have been wanted again since
            held.uses = uses = self._popularity.of(held.digest)
        return uses.weight + held.log2_density

    def _pools_of(self, tenant: str) -> tuple[Pools, ...]:
        """Those of everyone, and those of the tenant if it has a quota."""
        bound = self._bound.get(tenant)
        return (self._everyone, bound.pools) if bound else self._of_everyone

    def _account(self, held: Held, size_bytes: int) -> None:
        """So many bytes of its tenant came in, or went if below 0."""
        if bound := self._bound.get(held.entry.terms.tenant):
            bound.held_bytes += size_bytes

    def _enter(self, held: Held, stage: Stage) -> None:
        held.stage = stage
        for pools in held.pools:
            pools.add(held)
        if stage is _WINDOW:
            self._window_bytes += held.entry.size_bytes
        if held.is_warmed and stage is not _EXPIRED:
            self._warmed_bytes += held.entry.size_bytes

    def _leave(self, held: Held) -> None:
        stage, size_bytes = held.stage, held.entry.size_bytes
        held.stage = Stage.GONE
        if stage is None:
            self._pinned_bytes -= size_bytes
        else:
            for pools in held.pools:
                pools.remove(held, stage)
            if stage is _WINDOW:
                self._window_bytes -= size_bytes
            if held.is_warmed and stage is not _EXPIRED:
                self._warmed_bytes -= size_bytes
        if held.entry.terms.expires_s < math.inf and stage is not _EXPIRED:
            self._expiring.discard()

    def _shrink_window(self) -> None:
        others, warmed = self._everyone.window
        while self._window_bytes > self._window_capacity:
            if len(others) + len(warmed) <= _MIN_WINDOW_RECORDS:
                break
            held = self._everyone.oldest()
            held.stage = _MAIN
            self._window_bytes -= held.entry.size_bytes
            for pools in held.pools:
                pools.leave_window(held)

    def _expire(self) -> None:
        while (place := self._expiring.head()) is not None and place[0] <= self._now_s:
            held = place[2]
            self._leave(held)
            self._enter(held, _EXPIRED)
