"""The overlap algebra: the papers' bounds, their corner cases, and brute-force twins."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.repair.overlap import (
    adjusted_overlap,
    context_impact,
    fix_overhead,
    novelty,
    order_penalty,
    overlap,
)

names = st.lists(st.sampled_from("abcdef"), max_size=6)
distinct = st.lists(st.sampled_from("abcdef"), max_size=6, unique=True)
masses = st.floats(0.0, 1e4, allow_subnormal=False)
shares = st.floats(0.0, 1.0)


@st.composite
def births(draw: st.DrawFn) -> tuple[list[str], list[float]]:
    """The chunks before one at birth, and the attention it sent to each."""
    old = draw(names)
    return old, draw(st.lists(masses, min_size=len(old), max_size=len(old)))


# ------------------------------------------------------------------ β


@given(birth=births(), new=names)
@settings(deadline=None, max_examples=200)
def test_overlap_is_the_share_of_attention_that_went_to_chunks_still_here(
    birth: tuple[list[str], list[float]], new: list[str]
) -> None:
    old, inter = birth
    beta = overlap(old, inter, new)
    assert 0.0 <= beta <= 1.0
    if old and sum(inter) > 0:
        kept = sum(m for c, m in zip(old, inter, strict=True) if c in new)
        assert beta == pytest.approx(kept / sum(inter))
    # chunks that were not there at birth change nothing, nor does the order
    assert overlap(old, inter, [*new, "x"]) == (beta if old else 0.0)
    assert overlap(old, inter, new[::-1]) == beta


def test_a_chunk_born_alone_has_seen_none_of_any_context() -> None:
    assert overlap([], [], ["a"]) == 0.0
    assert overlap([], [], []) == 1.0


def test_without_any_attention_outside_the_chunks_themselves_are_counted() -> None:
    assert overlap(["a", "b"], [0.0, 0.0], ["b"]) == 0.5
    assert overlap(["a", "a", "b"], [0.0, 0.0, 0.0], ["a"]) == 0.5


# ------------------------------------------------------------------ γ


def brute_force_gamma(old: list[str], new: list[str]) -> float:
    """Discordant pairs ÷ pairs, over the common chunks, by where each stands first."""
    common = [c for c in "abcdef" if c in old and c in new]
    pairs = [(x, y) for x in common for y in common if x < y]
    discordant = [
        (x, y) for x, y in pairs if (old.index(x) < old.index(y)) != (new.index(x) < new.index(y))
    ]
    return len(discordant) / len(pairs) if pairs else 0.0


@given(old=names, new=names)
@settings(deadline=None, max_examples=300)
def test_order_penalty_is_the_normalised_kendall_distance(old: list[str], new: list[str]) -> None:
    gamma = order_penalty(old, new)
    assert gamma == brute_force_gamma(old, new)
    assert 0.0 <= gamma <= 1.0
    assert gamma == order_penalty(new, old)


def test_order_penalty_counts_the_swaps_that_bubble_sort_makes() -> None:
    """The same number found in another way, for every order of four chunks."""
    for order in permutations("abcd"):
        items, swaps = list(order), 0
        for end in range(3, 0, -1):
            for i in range(end):
                if items[i] > items[i + 1]:
                    items[i], items[i + 1] = items[i + 1], items[i]
                    swaps += 1
        assert order_penalty("abcd", order) == swaps / 6


@given(old=distinct, new=distinct)
@settings(deadline=None, max_examples=100)
def test_fewer_than_two_common_chunks_have_no_order(old: list[str], new: list[str]) -> None:
    if len(set(old) & set(new)) < 2:
        assert order_penalty(old, new) == 0.0


# ------------------------------------------------------------------ β′ and what is new


@given(old=names, new=names, data=st.data())
@settings(deadline=None, max_examples=200)
def test_novelty_is_the_share_of_tokens_that_were_not_there_at_birth(
    old: list[str], new: list[str], data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 50), min_size=len(new), max_size=len(new)))
    unseen = novelty(old, new, lengths)
    tokens = [c for c, n in zip(new, lengths, strict=True) for _ in range(n)]
    expected = sum(c not in old for c in tokens) / len(tokens) if tokens else 0.0
    assert unseen == pytest.approx(expected)
    assert 0.0 <= unseen <= 1.0
    assert novelty(new, new, lengths) == 0.0


@given(beta=shares, gamma=shares, unseen=shares)
@settings(deadline=None, max_examples=200)
def test_adjusted_overlap_is_a_share_and_falls_with_disorder_and_novelty(
    beta: float, gamma: float, unseen: float
) -> None:
    adjusted = adjusted_overlap(beta, gamma, unseen)
    assert 0.0 <= adjusted <= beta
    assert adjusted_overlap(beta, gamma, 0.0) == adjusted_overlap(beta, gamma)
    assert adjusted <= adjusted_overlap(beta, gamma) <= adjusted_overlap(beta, 0.0) == beta
    assert adjusted == pytest.approx(beta * (1 - gamma) * (1 - unseen))


# ------------------------------------------------------------------ CCI


@given(
    prior=st.lists(st.tuples(masses, st.integers(1, 4096)), max_size=5),
    intra=st.floats(0.0, 4096.0),
    num_tokens=st.integers(1, 4096),
)
@settings(deadline=None, max_examples=300)
def test_context_impact_is_at_least_a_half_and_at_most_one(
    prior: list[tuple[float, int]], intra: float, num_tokens: int
) -> None:
    inter, lengths = [m for m, _ in prior], [n for _, n in prior]
    impact = context_impact(inter, lengths, intra, num_tokens)
    assert 0.5 <= impact <= 1.0
    if not prior:
        assert impact == 0.5


@given(share_inside=st.floats(0.06, 1.0), count=st.integers(1, 5), size=st.integers(1, 512))
@settings(deadline=None, max_examples=200)
def test_for_equal_chunks_context_impact_is_the_sigmoid_of_the_odds(
    share_inside: float, count: int, size: int
) -> None:
    """With chunks of one size ā/b̄ = (1−p)/p, p being the share of attention that stays inside."""
    outside = size * (1 - share_inside) / count
    impact = context_impact([outside] * count, [size] * count, size * share_inside, size)
    odds = (1 - share_inside) / share_inside
    assert impact == pytest.approx(1 / (1 + math.exp(-odds)))
    assert 0.5 <= impact < 1.0


def test_context_impact_of_the_research_table() -> None:
    for share_inside, expected in [(0.95, 0.513), (0.8, 0.562), (0.5, 0.731), (0.2, 0.982)]:
        impact = context_impact([10 * (1 - share_inside)], [10], 10 * share_inside, 10)
        assert impact == pytest.approx(expected, abs=5e-4)


def test_a_chunk_that_never_looked_at_itself_has_the_largest_impact() -> None:
    assert context_impact([3.0], [4], 0.0, 4) == 1.0
    assert context_impact([0.0], [4], 0.0, 4) == 0.5
    assert context_impact([4.0], [1], 5e-324, 4096) == 1.0  # no overflow on the way


# ------------------------------------------------------------------ CFO


@given(alpha=st.floats(0.0, 3.0), impact=st.floats(0.5, 1.0), adjusted=st.floats(-0.1, 1.1))
@settings(deadline=None, max_examples=200)
def test_fix_overhead_is_clamped_to_a_share(alpha: float, impact: float, adjusted: float) -> None:
    overhead = fix_overhead(alpha, impact, adjusted)
    assert 0.0 <= overhead <= 1.0
    raw = alpha * impact * (1 - adjusted)
    if 0.0 <= raw <= 1.0:
        assert overhead == raw


def overhead(
    alpha: float, old: list[str], inter: list[float], new: list[str], lengths: list[int]
) -> tuple[float, float]:
    """CFO and CCI of a chunk of 10 tokens, half of whose attention stayed inside."""
    impact = context_impact(inter, [10] * len(old), 5.0, 10)
    beta, gamma = overlap(old, inter, new), order_penalty(old, new)
    adjusted = adjusted_overlap(beta, gamma, novelty(old, new, lengths))
    return fix_overhead(alpha, impact, adjusted), impact


@given(birth=births(), alpha=st.floats(0.1, 1.0))
@settings(deadline=None, max_examples=200)
def test_the_same_context_in_the_same_order_costs_nothing(
    birth: tuple[list[str], list[float]], alpha: float
) -> None:
    old, inter = birth
    assert overhead(alpha, old, inter, old, [10] * len(old))[0] == 0.0


@given(new=distinct.filter(bool), alpha=st.floats(0.1, 1.0))
@settings(deadline=None, max_examples=100)
def test_born_alone_and_now_in_company_costs_alpha_times_impact(
    new: list[str], alpha: float
) -> None:
    cost, impact = overhead(alpha, [], [], new, [10] * len(new))
    assert cost == alpha * impact == alpha * 0.5


def test_new_neighbours_cost_something_even_when_all_old_ones_are_there() -> None:
    kept, _ = overhead(0.4, ["a"], [5.0], ["a"], [10])
    joined, _ = overhead(0.4, ["a"], [5.0], ["a", "b", "c", "d"], [10, 10, 10, 10])
    assert kept == 0.0
    assert joined > 0.2 * 0.5
