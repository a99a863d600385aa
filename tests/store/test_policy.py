"""Eviction order: both policies against slow twins, and what every policy must hold."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.chunk import Retention, Terms
from chunkcache.store.lru import LruPolicy
from chunkcache.store.policy import Entry, Refusal, Room
from chunkcache.store.windowed import WindowedFrequencyPolicy

CAPACITY = 300
HALF_LIFE = 7.3  # no two records get equal worth by chance
TIMES = 5.0, 10.0, 15.0

numbers = st.integers(0, 11)
terms = st.builds(
    Terms,
    tenant=st.sampled_from(["free", "bound"]),
    priority=st.sampled_from([0, 0, 0, 3]),
    retention=st.sampled_from(Retention),
    expires_s=st.sampled_from([math.inf, math.inf, *TIMES]),
)
entries = st.builds(Entry, st.integers(1, 60), st.integers(1, 500).map(float), terms)
spared = st.sets(numbers, max_size=3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("on_put"), numbers, entries),
        st.tuples(st.just("on_put"), numbers, entries),
        st.tuples(st.just("on_use"), st.lists(numbers, max_size=3)),
        st.tuples(st.just("on_use"), st.lists(numbers, max_size=3)),
        st.tuples(st.just("on_delete"), numbers),
        st.tuples(st.just("on_recode"), numbers, numbers, entries),
        st.tuples(st.just("on_time"), st.sampled_from(TIMES)),
        st.tuples(st.sampled_from(["on_wait", "on_wait_over"]), st.lists(numbers, max_size=3)),
        st.tuples(st.just("on_quota"), st.sampled_from([None, 30, 90])),
        st.tuples(st.just("admit"), numbers, entries, st.integers(-5, 200), spared),
        st.tuples(st.just("victims"), st.integers(-5, 400), spared),
        st.tuples(st.just("room_for"), st.integers(-9, 120)),
        st.tuples(st.just("may_pin"), st.integers(1, 120), spared),
    ),
    min_size=20,
    max_size=80,
)


def name(number: int) -> bytes:
    return b"%d" % number


def told(verb: str, args: list[Any]) -> list[Any]:
    """The arguments of a step with digests in place of numbers."""
    if verb == "on_use":
        return [name(number) for number in args[0]]
    if verb in {"on_delete", "on_put"}:
        return [name(args[0]), *args[1:]]
    if verb == "on_recode":
        return [name(args[0]), name(args[1]), args[2]]
    if verb in {"on_wait", "on_wait_over"}:
        return [[name(number) for number in args[0]]]
    if verb in {"on_quota", "room_for"}:
        return ["bound", args[0]]
    if verb == "admit":
        return [name(args[0]), args[1], args[2], {name(number) for number in args[3]}]
    if verb in {"victims", "may_pin"}:
        return [args[0], {name(number) for number in args[1]}]
    return args


class SlowWindowed:
    """The policy as it is meant: every use is kept, and all is sorted anew when it is asked."""

    def __init__(
        self, capacity: int, window_share: float, half_life: float, protected_share: float,
        quotas: dict[str, int], min_uses: float,
    ) -> None:  # fmt: skip
        self.capacity, self.half_life, self.min_uses = capacity, half_life, min_uses
        self.window_bytes = int(capacity * window_share)
        self.protected_bytes = int(capacity * protected_share)
        self.quotas = dict(quotas)
        self.entries: dict[bytes, Entry] = {}
        self.times: dict[bytes, list[int]] = {}
        self.last: dict[bytes, int] = {}
        self.window: set[bytes] = set()
        self.pinned: set[bytes] = set()
        self.expired: set[bytes] = set()
        self.waits: defaultdict[bytes, list[int]] = defaultdict(list)
        self.uses = self.moves = self.places = 0
        self.now_s = -math.inf

    def on_use(self, *digests: bytes) -> None:
        for digest in digests:
            self.uses += 1
            self.moves += 1
            self.times.setdefault(digest, []).append(self.uses)
            if digest in self.entries:
                self.last[digest] = self.moves

    def on_put(self, digest: bytes, entry: Entry) -> None:
        self.on_delete(digest)
        if digest not in self.times:
            self.on_use(digest)
        self.moves += 1
        self.take_in(digest, entry)
        self.last[digest] = self.moves
        if digest not in self.pinned:
            self.window.add(digest)
        self.expire()
        while len(self.window) > 4 and self.bytes_of(self.window) > self.window_bytes:
            self.window.remove(min(self.window, key=self.last.__getitem__))

    def on_delete(self, digest: bytes) -> None:
        self.entries.pop(digest, None)
        self.window.discard(digest)
        self.pinned.discard(digest)
        self.expired.discard(digest)

    def on_recode(self, digest: bytes, to: bytes, entry: Entry) -> None:
        if digest in self.entries:
            self.times.setdefault(to, list(self.times[digest]))
            last = self.last[digest]
            self.on_delete(digest)
            self.on_delete(to)
            self.take_in(to, entry)
            self.last[to] = last
            self.expire()

    def on_time(self, now_s: float) -> None:
        self.now_s = now_s
        self.expire()

    def on_wait(self, digests: Iterable[bytes]) -> None:
        self.places += 1
        for digest in digests:
            self.waits[digest].append(self.places)

    def on_wait_over(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            del self.waits[digest][:1]

    def on_quota(self, tenant: str, limit_bytes: int | None) -> None:
        self.quotas.pop(tenant, None)
        if limit_bytes is not None:
            self.quotas[tenant] = limit_bytes

    def admit(
        self, digest: bytes, entry: Entry, bytes_needed: int, spared: Container[bytes] = ()
    ) -> list[bytes] | None:
        if entry.size_bytes > self.capacity or self.decayed_uses(digest) < self.min_uses:
            return None
        tenant, spare = entry.terms.tenant, math.inf
        if entry.terms.retention is Retention.PASSING:
            warmed = [d for d in self.entries if self.is_warmed(d)]
            spare = self.bytes_of(warmed) - self.protected_bytes
        own = [d for d, e in self.entries.items() if e.terms.tenant == tenant]
        over = self.bytes_of(own) + entry.size_bytes - self.quotas.get(tenant, math.inf)
        chosen: list[bytes] = []
        place = self.waits[digest][0] if self.waits[digest] else -1
        spared = {
            *spared,
            *(d for d, places in self.waits.items() if places and places[0] <= place),
        }
        if over > 0:
            chosen, spare = self.take(own, over, spared, chosen, spare)
            if self.bytes_of(chosen) < over:
                return None
        chosen, _ = self.take(list(self.entries), bytes_needed, spared, chosen, spare)
        return chosen if self.bytes_of(chosen) >= bytes_needed else None

    def victims(self, bytes_needed: int, spared: Container[bytes] = ()) -> list[bytes]:
        return self.take(list(self.entries), bytes_needed, spared, [], math.inf)[0]

    def take(
        self, among: list[bytes], needed: float, spared: Container[bytes],
        chosen: list[bytes], spare: float,
    ) -> tuple[list[bytes], float]:  # fmt: skip
        chosen, later = list(chosen), []
        closed: set[int] = set()  # stages whose worst warmed record may not go

        def choose(digest: bytes) -> None:
            nonlocal spare
            size = self.entries[digest].size_bytes
            if self.bytes_of(chosen) >= needed or digest in chosen or digest in spared:
                return
            if self.is_warmed(digest):
                if size > spare:
                    return
                spare -= size
            chosen.append(digest)

        for digest in sorted((d for d in among if self.stage(d) is not None), key=self.rank):
            if self.bytes_of(chosen) >= needed:
                break
            stage, size = self.stage(digest), self.entries[digest].size_bytes
            if self.is_warmed(digest) and (stage in closed or size > spare):
                closed.add(stage)
            elif self.waits[digest]:
                later.append(digest)
            else:
                choose(digest)
        for digest in sorted(later, key=lambda digest: -self.waits[digest][0]):
            choose(digest)
        return chosen, spare

    # ------------------------------------------------------------

    def take_in(self, digest: bytes, entry: Entry) -> None:
        self.entries[digest] = entry
        if entry.terms.retention is Retention.PINNED:
            self.pinned.add(digest)

    def room_for(self, tenant: str, free_bytes: int) -> Room:
        own = {d for d, e in self.entries.items() if e.terms.tenant == tenant}
        limit = self.quotas.get(tenant, math.inf)
        if self.bytes_of(own) + free_bytes < limit:
            return Room(max(0, free_bytes), Refusal("the store is full"))
        stays = self.bytes_of(d for d in own if self.stage(d) is None or self.waits[d])
        reason = f"the quota of tenant {tenant!r}, {limit} bytes, has no room for more"
        knobs = "store.quota_bytes, chunkcache quota --set"
        return Room(max(0, int(limit) - stays), Refusal(reason, knobs))

    def may_pin(self, size_bytes: int, instead_of: Iterable[bytes]) -> bool:
        others = {d for d in self.pinned if self.stage(d) is None} - set(instead_of)
        return self.bytes_of(others) + size_bytes <= self.capacity / 2

    def pins_beyond(self) -> list[bytes]:
        pinned = [d for d in self.entries if self.stage(d) is None]
        beyond: list[bytes] = []
        while self.bytes_of(pinned) > self.capacity / 2:
            beyond.append(pinned.pop())
        return beyond

    def bytes_of(self, digests: Iterable[bytes]) -> int:
        return sum(self.entries[digest].size_bytes for digest in digests)

    def is_warmed(self, digest: bytes) -> bool:
        if digest in self.pinned or self.entries[digest].terms.retention < Retention.WARMED:
            return False
        return self.stage(digest) != 0

    def stage(self, digest: bytes) -> int | None:
        if digest in self.expired:
            return 0
        if digest in self.pinned:
            return None
        return 2 if digest in self.window else 1

    def rank(self, digest: bytes) -> tuple[int | None, float, bytes]:
        stage = self.stage(digest)
        entry = self.entries[digest]
        if stage == 0:
            return stage, entry.terms.expires_s, digest
        if stage == 2:
            return stage, self.last[digest], digest
        density = entry.saved / entry.size_bytes * 2.0**entry.terms.priority
        return stage, self.decayed_uses(digest) * density, digest

    def decayed_uses(self, digest: bytes) -> float:
        times = self.times.get(digest, [])
        return sum(2.0 ** ((time - self.uses) / self.half_life) for time in times)

    def expire(self) -> None:
        self.expired |= {d for d, e in self.entries.items() if e.terms.expires_s <= self.now_s}
        self.window -= self.expired


@settings(max_examples=100, deadline=None)
@given(steps=steps, min_uses=st.sampled_from([0.0, 1.2]), protected=st.sampled_from([1.0, 0.2]))
def test_the_windowed_policy_is_its_slow_twin(
    steps: list[tuple[Any, ...]], min_uses: float, protected: float
) -> None:
    quotas = {"bound": 80}
    policy = WindowedFrequencyPolicy(
        CAPACITY, window_share=0.2, half_life_uses=HALF_LIFE, protected_share=protected,
        quotas=quotas, min_uses=min_uses,
    )  # fmt: skip
    slow = SlowWindowed(CAPACITY, 0.2, HALF_LIFE, protected, quotas, min_uses)
    for verb, *args in steps:
        arguments = told(verb, args)
        answer = getattr(policy, verb)(*arguments)
        assert answer == getattr(slow, verb)(*arguments)
        assert policy.pins_beyond() == slow.pins_beyond()
        if verb in {"admit", "victims"}:
            assert answer == getattr(policy, verb)(*arguments), "asking changes nothing"
    assert policy.victims(10**9) == slow.victims(10**9)


class SlowLru:
    """A list, oldest use first."""

    def __init__(self) -> None:
        self.order: list[bytes] = []
        self.entries: dict[bytes, Entry] = {}

    def on_put(self, digest: bytes, entry: Entry) -> None:
        self.on_delete(digest)
        self.order.append(digest)
        self.entries[digest] = entry

    def on_use(self, *digests: bytes) -> None:
        for digest in digests:
            if digest in self.order:
                self.on_put(digest, self.entries[digest])

    def on_delete(self, digest: bytes) -> None:
        if digest in self.order:
            self.order.remove(digest)

    def on_recode(self, digest: bytes, to: bytes, entry: Entry) -> None:
        if digest in self.order:
            self.on_delete(digest)
            self.on_delete(to)
            self.order.insert(0, to)
            self.entries[to] = entry

    def admit(
        self, digest: bytes, entry: Entry, needed: int, spared: set[bytes]
    ) -> list[bytes] | None:
        firmest = Retention.WARMED - (entry.terms.retention is Retention.PASSING)
        found = self.choose(needed, spared, firmest)
        return found if sum(self.entries[d].size_bytes for d in found) >= needed else None

    def victims(self, needed: int, spared: set[bytes] = frozenset()) -> list[bytes]:
        return self.choose(needed, spared, Retention.WARMED)

    def choose(self, needed: int, spared: set[bytes], firmest: int) -> list[bytes]:
        able = [d for d in self.order if self.entries[d].terms.retention <= firmest]
        able = [d for d in able if d not in spared]
        sizes = [self.entries[d].size_bytes for d in able]
        return [d for n, d in enumerate(able) if sum(sizes[:n]) < needed]


@settings(max_examples=60, deadline=None)
@given(steps=steps)
def test_lru_is_its_slow_twin(steps: list[tuple[Any, ...]]) -> None:
    policy, slow = LruPolicy(), SlowLru()
    for verb, *args in steps:
        arguments = told(verb, args)
        if hasattr(slow, verb):
            assert getattr(policy, verb)(*arguments) == getattr(slow, verb)(*arguments)
    assert policy.victims(10**9) == slow.victims(10**9)
