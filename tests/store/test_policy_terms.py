"""What the policies are for: what stays warm, whose terms count, what memory they need."""

from __future__ import annotations

import heapq
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from chunkcache.chunk import Retention, Terms
from chunkcache.store import eviction_queue
from chunkcache.store.lru import LruPolicy
from chunkcache.store.policy import Entry, Policy
from chunkcache.store.popularity import Popularity
from chunkcache.store.windowed import WindowedFrequencyPolicy


def test_a_chunk_that_keeps_coming_back_outlives_a_scan() -> None:
    def hits(policy: Policy) -> int:
        held: set[bytes] = set()
        count = 0
        for turn in range(400):
            hot = b"hot%d" % (turn % 5)
            for digest in (hot, *(b"cold%d-%d" % (turn, n) for n in range(4))):
                policy.on_use(digest)
                if digest in held:
                    count += 1
                    continue
                for victim in policy.victims(10 * (len(held) + 1) - 200):
                    policy.on_delete(victim)
                    held.remove(victim)
                policy.on_put(digest, Entry(10))
                held.add(digest)
        return count

    assert hits(LruPolicy()) == 0  # 20 places, 25 other records between two uses
    assert hits(WindowedFrequencyPolicy(200)) > 350


def test_frequency_survives_eviction() -> None:
    policy = WindowedFrequencyPolicy(1000, window_share=0.0)
    for _ in range(5):
        policy.on_use(b"often")
        policy.on_put(b"often", Entry(10))
        policy.on_delete(b"often")
    for digest in (b"often", b"once", b"w1", b"w2", b"w3", b"w4"):
        policy.on_put(digest, Entry(10))
    assert policy.victims(10) == [b"once"]


def test_a_clock_that_is_set_back_lets_nothing_new_expire_at_once() -> None:
    policy = WindowedFrequencyPolicy(100)
    policy.on_time(1e9)  # years ahead
    policy.on_time(1000.0)
    pinned = Terms(retention=Retention.PINNED, expires_s=1060.0)
    policy.on_put(b"pinned", Entry(50, terms=pinned))
    policy.on_put(b"other", Entry(10))
    assert policy.victims(60) == [b"other"]
    assert not policy.may_pin(10)
    policy.on_time(1060.0)
    assert policy.victims(60) == [b"pinned", b"other"]
    policy.on_time(1000.0)  # what has expired stays so
    assert policy.victims(60) == [b"pinned", b"other"] and policy.may_pin(50)


def test_memory_of_records_that_left_is_bounded() -> None:
    popularity = Popularity(half_life_uses=2)
    policy = WindowedFrequencyPolicy(100, popularity=popularity)
    for number in range(1000):
        policy.on_put(b"%d" % number, Entry(10))
        policy.on_delete(b"%d" % number)
        assert len(popularity._known) <= 32
    assert popularity.uses(b"999") == 1.0 and popularity.uses(b"0") == 0.0


def test_a_record_that_was_forgotten_is_worth_more_once_it_is_wanted_again() -> None:
    policy = WindowedFrequencyPolicy(100, half_life_uses=2, window_share=0.0)
    for digest in (b"a", b"b", b"w1", b"w2", b"w3", b"w4"):  # the window keeps four
        policy.on_put(digest, Entry(10))
    assert policy.victims(10) == [b"a"]
    for number in range(32):
        policy.on_use(b"%d" % number)
        if number == 16:
            policy.on_use(b"w1")
    last = {digest: policy._popularity.last_use(digest) for digest in (b"a", b"b", b"w1")}
    assert last == {b"a": 0, b"b": 0, b"w1": 6 + 18}
    policy.on_use(b"a")
    assert policy.victims(10) == [b"b"]


def test_uses_of_what_is_known_take_no_memory_and_all_the_same_work() -> None:
    popularity = Popularity(half_life_uses=25)
    known = [b"%d" % number for number in range(400)]
    popularity.count(*(b"before %d" % number for number in range(1000)), *known)
    only = [tracemalloc.Filter(True, sys.modules[Popularity.__module__].__file__ or "")]
    tracemalloc.start()
    try:
        popularity.count(*known)  # their weights and times are traced from here on
        before = tracemalloc.take_snapshot().filter_traces(only)
        popularity.count(*known, *known, *known)
        after = tracemalloc.take_snapshot().filter_traces(only)
    finally:
        tracemalloc.stop()
    assert sum(line.size_diff for line in after.compare_to(before, "filename")) < 1000
    calls = [0]

    def on_event(*_: object) -> None:
        calls[-1] += 1

    sys.setprofile(on_event)
    try:
        for digest in known * 4:
            calls.append(0)
            popularity.count(digest)
    finally:
        sys.setprofile(None)
    assert max(calls) < 40 and set(known) == popularity._known.keys()


def test_the_heap_of_a_much_used_record_is_bounded() -> None:
    policy = WindowedFrequencyPolicy(10, window_share=0.0)
    for number in range(6):
        policy.on_put(b"%d" % number, Entry(1))
    for _ in range(10_000):
        policy.on_use(b"0")
        assert policy.victims(1) == [b"1"]
    assert len(policy._everyone.main[0]._heap) <= 70


def test_a_record_is_known_under_its_name_in_a_lower_tier() -> None:
    popularity = Popularity(half_life_uses=2, also=lambda digest: (b"coded " + digest,))
    for _ in range(3):
        popularity.count(b"a")
    assert popularity.uses(b"coded a") == popularity.uses(b"a") > 2
    popularity.introduce(b"coded a")
    popularity.introduce(b"coded b")
    assert popularity.uses(b"coded b") == 1.0 and popularity.uses(b"coded coded b") == 0.0
    for number in range(1000):
        popularity.count(b"%d" % number)
    assert len(popularity._known) == 64


def test_a_record_that_moves_to_another_digest_was_wanted_as_often() -> None:
    popularity = Popularity(half_life_uses=2)
    for digest in (b"a", b"a", b"b"):
        popularity.count(digest)
    assert (popularity.counted, popularity.last_use(b"a"), popularity.last_use(b"c")) == (3, 2, 0)
    popularity.follow(b"a", b"c")
    assert popularity.uses(b"c") == popularity.uses(b"a") and popularity.last_use(b"c") == 2
    popularity.follow(b"b", b"c")  # known already
    popularity.follow(b"nobody", b"d")
    assert popularity.last_use(b"c") == 2 and popularity.uses(b"d") == 0.0
    for number in range(1000):
        popularity.count(b"%d" % number)
        popularity.follow(b"%d" % number, b"to %d" % number)
    assert popularity._known.keys() == {b"%d" % number for number in range(968, 1000)}


def test_a_record_that_was_recoded_holds_its_own_by_what_it_was_used() -> None:
    policy = WindowedFrequencyPolicy(1000, window_share=0.0)
    for digest in (b"wanted", *(b"%d" % n for n in range(6))):  # the last four stay in the window
        policy.on_put(digest, Entry(10))
    policy.on_use(*[b"wanted"] * 5)
    policy.on_recode(b"wanted", b"wanted, smaller", Entry(9))
    assert policy.victims(20) == [b"0", b"1"]


def test_a_quota_that_is_set_later_goes_by_who_was_used_last() -> None:
    policy, terms = WindowedFrequencyPolicy(100), Terms("greedy")
    for number in range(3):
        policy.on_put(b"g%d" % number, Entry(10, terms=terms))
    policy.on_use(b"g0")
    policy.on_quota("greedy", 30)
    assert policy.admit(b"g3", Entry(10, terms=terms), 0) == [b"g1"]


def test_tiers_that_share_their_counts_know_a_record_that_comes_down() -> None:
    popularity = Popularity()
    upper = WindowedFrequencyPolicy(100, popularity=popularity)
    lower = WindowedFrequencyPolicy(100, popularity=popularity, counts_uses=False, window_share=0.0)
    for _ in range(3):
        upper.on_use(b"warm")
    for digest in (b"warm", b"a", b"b", b"c", b"d", b"e"):
        lower.on_put(digest, Entry(10))
    for _ in range(5):
        lower.on_use(b"a")  # the upper one was asked first, and has counted what is to be counted
    assert lower.victims(10) == [b"a"]


def test_one_passing_tenant_cannot_fill_the_tier_above_its_quota() -> None:
    policy = WindowedFrequencyPolicy(100, quotas={"greedy": 30})
    greedy, other = Terms("greedy"), Terms("other")
    for number in range(3):
        policy.on_put(b"g%d" % number, Entry(10, terms=greedy))
    policy.on_put(b"other", Entry(10, terms=other))
    assert policy.admit(b"g3", Entry(10, terms=greedy), -50) == [b"g0"], "though there is room"
    assert policy.admit(b"g3", Entry(31, terms=greedy), -50) is None
    assert policy.admit(b"o2", Entry(60, terms=other), 0) == [], "unlimited unless named"


def test_warmed_records_that_have_expired_take_nothing_of_the_protected_share() -> None:
    policy = WindowedFrequencyPolicy(100, window_share=0.0, protected_share=0.5)
    for number in range(5):
        policy.on_put(b"kept%d" % number, Entry(10, terms=Terms(retention=Retention.WARMED)))
        expiring = Terms(retention=Retention.WARMED, expires_s=9.0)
        policy.on_put(b"over%d" % number, Entry(10, terms=expiring))
    passing, over = Terms(retention=Retention.PASSING), [b"over%d" % n for n in range(5)]
    policy.on_time(8.0)
    assert len(policy.admit(b"new", Entry(50, terms=passing), 50) or ()) == 5, "half may go"
    assert policy.admit(b"new", Entry(60, terms=passing), 60) is None, "and no more"
    policy.on_time(9.0)
    assert policy.admit(b"new", Entry(50, terms=passing), 50) == over
    assert policy.admit(b"new", Entry(60, terms=passing), 60) is None
    for digest in over:
        policy.on_delete(digest)
    assert policy.admit(b"new", Entry(60, terms=passing), 10) is None
    policy.on_put(b"one more", Entry(10, terms=Terms(retention=Retention.WARMED)))
    assert len(policy.admit(b"new", Entry(10, terms=passing), 10) or ()) == 1


@pytest.mark.parametrize("retention", [Retention.PASSING, Retention.NORMAL])
def test_novelty_does_not_wash_out_what_is_warm(retention: Retention) -> None:
    """Requests of three warm chunks, by Zipf, and three that nobody ever asks for again."""
    size, warm_chunks = 10, 60
    policy = WindowedFrequencyPolicy(size * 80)
    held: set[bytes] = set()

    def put(digest: bytes, terms: Terms) -> None:
        entry = Entry(size, terms=terms)
        victims = policy.admit(digest, entry, size * (len(held) + 1) - size * 80)
        for victim in victims or ():
            policy.on_delete(victim)
            held.remove(victim)
        if victims is not None:
            policy.on_put(digest, entry)
            held.add(digest)

    for number in range(warm_chunks):
        put(b"warm%d" % number, Terms(retention=Retention.WARMED))
    hits: list[int] = []
    for request in range(1000):
        wanted = {int(warm_chunks ** ((request * 3 + n) * 0.618 % 1)) - 1 for n in range(3)}
        digests = [b"warm%d" % number for number in wanted]
        hits.append(sum(digest in held for digest in digests) * 3 // len(digests))
        for digest in [*digests, *(b"new%d-%d" % (request, n) for n in range(3))]:
            policy.on_use(digest)
            is_warm = digest.startswith(b"warm")
            if digest not in held:
                put(digest, Terms(retention=Retention.WARMED if is_warm else retention))
    assert sum(hits[900:]) >= sum(hits[:100])
    if retention is Retention.PASSING:
        assert all(b"warm%d" % number in held for number in range(warm_chunks))


@pytest.mark.parametrize("records", [200, 4000])
def test_work_for_an_access_does_not_grow_with_the_records(
    records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moves in heaps, each O(log n); what is warmed is not waded through for what may not go."""
    moves = 0

    def counted(verb: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any) -> Any:
            nonlocal moves
            moves += 1
            return verb(*args)

        return counting

    policy = WindowedFrequencyPolicy(10 * records, quotas={"bound": 10 * records // 4})
    for number in range(records):
        tenant, warmed = "bound" if number % 8 == 0 else "", number % 2 == 0
        terms = Terms(tenant, retention=Retention.WARMED if warmed else Retention.NORMAL)
        policy.on_put(b"%d" % number, Entry(10, terms=terms))
    monkeypatch.setattr(eviction_queue.heapq, "heappush", counted(heapq.heappush))
    monkeypatch.setattr(eviction_queue.heapq, "heappop", counted(heapq.heappop))
    monkeypatch.setattr(eviction_queue.heapq, "heapreplace", counted(heapq.heapreplace))
    accesses = 2000
    for number in range(accesses):
        policy.on_use(b"%d" % (number * 7 % records))
        passing = Terms("bound" if number % 3 else "", retention=Retention.PASSING)
        entry = Entry(10, terms=passing)
        for victim in policy.admit(b"new %d" % number, entry, 10) or ():
            policy.on_delete(victim)
        policy.on_put(b"new %d" % number, entry)
    assert moves <= 12 * accesses
