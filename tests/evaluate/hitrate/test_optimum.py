"""The offline optimum against brute force, the cascade below it, the learnt policy beside both."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from chunkcache.evaluate.hitrate import learnt
from chunkcache.evaluate.hitrate.cascade import CascadeTier, replay_cascade
from chunkcache.evaluate.hitrate.learnt import HitDensity, replay_learnt
from chunkcache.evaluate.hitrate.optimum import Intervals, best_placement
from chunkcache.store.lru import LruPolicy
from chunkcache.store.popularity import Popularity
from chunkcache.store.windowed import WindowedFrequencyPolicy

COMPUTE, LOADS = 10.0, (0.0, 4.0)


def trace(seed: int, uses: int, chunks: int, sizes: int) -> tuple[list[int], list[int], list[int]]:
    """Chunks, sizes and requests of one to three uses, the first chunks used most."""
    draw = random.Random(seed)
    size_of = [draw.randint(1, sizes) for _ in range(chunks)]
    used = [int(chunks * draw.random() ** 2) for _ in range(uses)]
    requests = list(itertools.accumulate(draw.random() < 0.6 for _ in range(uses)))
    return used, [size_of[chunk] for chunk in used], [int(request) for request in requests]


def saved_by_brute_force(intervals: Intervals, gain: np.ndarray, capacities: list[float]) -> float:
    """The best of all placements that leave no interval in parts."""
    best = 0.0
    count, tiers = gain.shape
    for choice in itertools.product(range(-1, tiers), repeat=count):
        used = np.zeros((tiers, intervals.num_requests))
        for at, tier in enumerate(choice):
            if tier >= 0:
                used[tier, intervals.start[at] : intervals.end[at]] += intervals.size[at]
        if (used.max(axis=1, initial=0.0) <= np.array(capacities)).all():
            best = max(best, sum(gain[at, k] for at, k in enumerate(choice) if k >= 0))
    return best


def test_intervals_are_the_times_between_uses() -> None:
    found = Intervals.of([7, 8, 7, 7, 8], [2, 3, 2, 2, 3], [0, 0, 4, 4, 9])
    assert found.start.tolist() == [0, 1, 0] and found.end.tolist() == [1, 1, 2]
    assert found.access.tolist() == [2, 3, 4] and found.size.tolist() == [2.0, 2.0, 3.0]
    assert found.num_requests == 3


@pytest.mark.parametrize("seed", range(6))
def test_one_tier_of_equal_sizes_is_the_best_of_all_placements(seed: int) -> None:
    intervals = Intervals.of(*trace(seed, 13, 4, 1))
    count = intervals.size.size
    found = best_placement(intervals, np.ones(count), [1 + seed % 2])
    brute = saved_by_brute_force(intervals, np.ones((count, 1)), [1 + seed % 2])
    assert found.saved == pytest.approx(brute, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_two_tiers_are_no_worse_than_any_placement_and_fit(seed: int) -> None:
    intervals = Intervals.of(*trace(seed, 11, 4, 3))
    gain = intervals.size[:, None] * (COMPUTE - np.array(LOADS))
    capacities = [2.0, 3.0]
    found = best_placement(intervals, gain, capacities)
    brute = saved_by_brute_force(intervals, gain, capacities)
    assert brute - 1e-6 <= found.saved <= gain[:, 0].sum() + 1e-6
    assert found.saved <= 1.35 * brute, "no further from whole placements than fractions explain"
    assert (found.share.sum(axis=1) <= 1 + 1e-6).all()
    for moment in range(intervals.num_requests):
        lies = (intervals.start <= moment) & (moment < intervals.end)
        held = (found.share[lies] * intervals.size[lies, None]).sum(axis=0)
        assert (held <= np.array(capacities) + 1e-6).all()


def test_a_use_within_the_same_request_takes_no_room() -> None:
    found = best_placement(Intervals.of([1, 1], [5, 5], [0, 0]), [1.0], [0])
    assert found.saved == pytest.approx(1.0)
    assert best_placement(Intervals.of([1, 2], [5, 5], [0, 1]), [], [3]).saved == 0.0
    with pytest.raises(ValueError, match=r"saved: got shape \[1, 1\], must be \[1, 2\]"):
        best_placement(Intervals.of([1, 1], [5, 5], [0, 1]), [1.0], [3, 4])


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_no_cascade_costs_less_than_the_optimum(look_ahead: int) -> None:
    chunks, sizes, requests = trace(1, 400, 30, 4)
    rooms = [12, 20]
    intervals = Intervals.of(chunks, sizes, requests)
    gain = intervals.size[:, None] * (COMPUTE - np.array(LOADS))
    least = 1 - best_placement(intervals, gain, rooms).saved / (COMPUTE * sum(sizes))

    def cost(*policies: LruPolicy | WindowedFrequencyPolicy, **options: bool) -> float:
        tiers = [CascadeTier(*each) for each in zip(rooms, LOADS, policies, strict=True)]
        return replay_cascade(
            chunks, sizes, requests, tiers, compute_cost=COMPUTE, look_ahead=look_ahead, **options
        ).cost

    lru = cost(LruPolicy(), LruPolicy())
    popularity = Popularity()
    shared = [WindowedFrequencyPolicy(room, popularity=popularity) for room in rooms]
    windowed = cost(*shared, shares_popularity=True)
    assert windowed == cost(*[WindowedFrequencyPolicy(room) for room in rooms])
    assert least < windowed < lru < 1


def test_seeing_the_queue_lowers_the_cost() -> None:
    chunks, sizes, requests = trace(2, 600, 60, 3)

    def missed(look_ahead: int) -> float:
        tier = CascadeTier(20, 0.0, WindowedFrequencyPolicy(20))
        return replay_cascade(
            chunks, sizes, requests, [tier], compute_cost=1.0, look_ahead=look_ahead
        ).object_miss

    assert missed(16) < missed(4) < missed(0)


def test_the_cascade_finds_what_a_full_set_of_tiers_must_hold() -> None:
    tiers = [CascadeTier(100, 0.0, LruPolicy()), CascadeTier(2, 4.0, LruPolicy())]
    found = replay_cascade([1, 2, 1, 2], [2, 3, 2, 3], [0, 0, 1, 1], tiers, compute_cost=10.0)
    assert found.cost == 0.5 and found.uses_found == (0.5, 0.0) and found.object_miss == 0.5
    narrow = [CascadeTier(3, 0.0, LruPolicy()), CascadeTier(2, 5.0, LruPolicy())]
    found = replay_cascade([1, 2, 1], [2, 3, 2], [0, 1, 2], narrow, compute_cost=10.0)
    assert found.size_found == (0.0, 2 / 7), "1 went down when 2 came"
    assert found.cost == pytest.approx(1 - 5 * 2 / (10 * 7))


def test_the_learnt_table_is_hits_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks taken in turn: one of age 1 is always used within a horizon, and so in 1 use."""
    monkeypatch.setattr(learnt, "_PRIOR", 1e-9)
    density = HitDensity.learn([0, 1] * 200, range(400))
    known = learnt._Known(2, density.half_life_uses)
    for chunk in (0, 1) * 100:
        known.use(chunk)
    cell = known.cells(np.array([0]))[0]
    assert density.table.reshape(-1)[cell] == pytest.approx(1.0, rel=0.02)


def test_the_learnt_policy_keeps_what_comes_back() -> None:
    draw = random.Random(0)
    chunks: list[int] = []
    for turn in range(1500):  # six that come back at once and never again, and two that stay
        chunks += [0, 1] if turn % 4 == 0 else []
        chunks += [10 + turn, 10 + turn] if draw.random() < 0.5 else [10 + turn]
    requests = list(range(len(chunks)))
    density = HitDensity.learn(chunks[:1500], requests[:1500])
    hits = replay_learnt(chunks, [1] * len(chunks), 4, density)
    late = [place for place in range(1500, len(chunks)) if chunks[place] < 2]
    assert hits[late].mean() > 0.9
