"""Eviction order: both policies against slow twins, and what every policy must hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.store import policy as policy_module
from chunkcache.store.policy import LruPolicy, WindowedFrequencyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.store.policy import Policy

CAPACITY = 300
HALF_LIFE = 7.0

digests = st.integers(0, 11).map(lambda n: bytes([n]))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), digests, st.integers(1, 60)),
        st.tuples(st.just("put"), digests, st.integers(1, 60)),
        st.tuples(st.just("hit"), digests, st.just(0)),
        st.tuples(st.just("delete"), digests, st.just(0)),
        st.tuples(st.just("victims"), st.just(b""), st.integers(-5, 400)),
    ),
    min_size=20,
    max_size=80,
)


def lru() -> Policy:
    return LruPolicy()


def windowed() -> Policy:
    return WindowedFrequencyPolicy(CAPACITY, window_share=0.2, half_life_accesses=HALF_LIFE)


class SlowLru:
    """A list, oldest use first."""

    def __init__(self) -> None:
        self.order: list[bytes] = []

    def put(self, digest: bytes, size: int) -> None:
        self.delete(digest)
        self.order.append(digest)

    def hit(self, digest: bytes) -> None:
        if digest in self.order:
            self.put(digest, 0)

    def delete(self, digest: bytes) -> None:
        if digest in self.order:
            self.order.remove(digest)

    def check_order(self, victims: list[bytes]) -> None:
        assert victims == self.order[: len(victims)]


class SlowWindowed:
    """All access times are kept, and every weight is summed anew when it is asked for."""

    def __init__(self) -> None:
        self.window: list[bytes] = []
        self.main: list[bytes] = []
        self.sizes: dict[bytes, int] = {}
        self.times: dict[bytes, list[int]] = {}
        self.now = 0

    def touch(self, digest: bytes) -> None:
        self.now += 1
        self.times.setdefault(digest, []).append(self.now)

    def put(self, digest: bytes, size: int) -> None:
        self.delete(digest)
        self.touch(digest)
        self.sizes[digest] = size
        self.window.append(digest)
        while len(self.window) > 4 and sum(self.sizes[d] for d in self.window) > 0.2 * CAPACITY:
            self.main.append(self.window.pop(0))

    def hit(self, digest: bytes) -> None:
        if digest in self.sizes:
            self.touch(digest)
        if digest in self.window:
            self.window.remove(digest)
            self.window.append(digest)

    def delete(self, digest: bytes) -> None:
        self.sizes.pop(digest, None)
        for part in (self.window, self.main):
            if digest in part:
                part.remove(digest)

    def worth(self, digest: bytes) -> float:
        weight = sum(2.0 ** ((time - self.now) / HALF_LIFE) for time in self.times[digest])
        return weight / self.sizes[digest]

    def check_order(self, victims: list[bytes]) -> None:
        from_main = [v for v in victims if v in self.main]
        assert victims[: len(from_main)] == from_main, "the window goes last"
        assert victims[len(from_main) :] == self.window[: len(victims) - len(from_main)]
        if len(victims) > len(from_main):
            assert set(from_main) == set(self.main)
        left = set(self.main)
        for victim in from_main:  # nobody left is worth less, but for the last digit
            assert self.worth(victim) <= min(map(self.worth, left)) * (1 + 1e-9)
            left.remove(victim)


@pytest.mark.parametrize(("make", "twin"), [(lru, SlowLru), (windowed, SlowWindowed)])
@settings(max_examples=100, deadline=None)
@given(steps=steps)
def test_policies_evict_in_the_order_of_their_slow_twins(
    make: Callable[[], Policy], twin: type, steps: list[tuple[str, bytes, int]]
) -> None:
    policy, slow, sizes = make(), twin(), {}
    for verb, digest, number in steps:
        if verb == "put":
            policy.on_put(digest, number)
            slow.put(digest, number)
            sizes[digest] = number
        elif verb == "hit":
            policy.on_hit(digest)
            slow.hit(digest)
        elif verb == "delete":
            policy.on_delete(digest)
            slow.delete(digest)
            sizes.pop(digest, None)
        else:
            victims = policy.victims(number)
            check_victims(victims, number, sizes)
            slow.check_order(victims)
            assert policy.victims(number) == victims, "asking changes nothing"
    everything = policy.victims(10**9)
    assert sorted(everything) == sorted(sizes)
    slow.check_order(everything)


def check_victims(victims: list[bytes], needed: int, sizes: dict[bytes, int]) -> None:
    assert len(set(victims)) == len(victims)
    assert set(victims) <= set(sizes), "only records that are there"
    freed = sum(sizes[victim] for victim in victims)
    assert freed >= needed or len(victims) == len(sizes), "enough, or all there are"
    if victims:
        assert freed - sizes[victims[-1]] < needed, "not one more than needed"


def test_a_chunk_that_keeps_coming_back_outlives_a_scan() -> None:
    def hits(policy: Policy) -> int:
        held: set[bytes] = set()
        count = 0
        for turn in range(400):
            hot = b"hot%d" % (turn % 5)
            for digest in (hot, *(b"cold%d-%d" % (turn, n) for n in range(4))):
                if digest in held:
                    policy.on_hit(digest)
                    count += 1
                    continue
                for victim in policy.victims(10 * (len(held) + 1) - 200):
                    policy.on_delete(victim)
                    held.remove(victim)
                policy.on_put(digest, 10)
                held.add(digest)
        return count

    assert hits(LruPolicy()) == 0  # 20 places, 25 other records between two uses
    assert hits(WindowedFrequencyPolicy(200)) > 350


def test_frequency_survives_eviction() -> None:
    policy = WindowedFrequencyPolicy(1000, window_share=0.0)
    for _ in range(5):
        policy.on_put(b"often", 10)
        policy.on_delete(b"often")
    for digest in (b"often", b"once", b"w1", b"w2", b"w3", b"w4"):
        policy.on_put(digest, 10)
    assert policy.victims(10) == [b"once"]


def test_memory_of_records_that_left_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "_GHOSTS", 10)
    policy = WindowedFrequencyPolicy(100)
    policy.on_put(b"resident", 10)
    for number in range(1000):
        policy.on_put(b"%d" % number, 10)
        policy.on_delete(b"%d" % number)
        assert len(policy._weights) <= 12
    assert policy.victims(1) == [b"resident"]


def test_the_heap_of_a_much_used_record_is_bounded() -> None:
    policy = WindowedFrequencyPolicy(10, window_share=0.0)
    for number in range(6):
        policy.on_put(b"%d" % number, 1)
    for _ in range(10_000):
        policy.on_hit(b"0")
    assert len(policy._heap) <= 70
    assert policy.victims(1) == [b"1"]
