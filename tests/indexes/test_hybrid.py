"""Reciprocal rank fusion."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chunkcache_indexes.hybrid import reciprocal_rank_fusion

ranking = st.lists(st.integers(0, 12), unique=True, max_size=10)


def test_scores_are_the_sums_of_reciprocal_ranks() -> None:
    fused = reciprocal_rank_fusion([[7, 8], [8, 9]])
    assert fused == [
        (8, pytest.approx(1 / 62 + 1 / 61)),
        (7, pytest.approx(1 / 61)),
        (9, pytest.approx(1 / 62)),
    ]


def test_weights_say_how_much_each_ranking_counts() -> None:
    fused = reciprocal_rank_fusion([[7, 8], [8, 9]], weights=[3, 1])
    assert fused == [
        (8, pytest.approx(3 / 62 + 1 / 61)),
        (7, pytest.approx(3 / 61)),
        (9, pytest.approx(1 / 62)),
    ]
    assert [i for i, _ in reciprocal_rank_fusion([[7, 8], [8, 9]], weights=[0, 1])] == [8, 9]
    with pytest.raises(ValueError, match="weights: got"):
        reciprocal_rank_fusion([[7]], weights=[-1])


@given(st.lists(ranking, max_size=4))
@settings(deadline=None, max_examples=100)
def test_every_id_comes_once_and_best_first(rankings: list[list[int]]) -> None:
    fused = reciprocal_rank_fusion(rankings)
    assert sorted(i for i, _ in fused) == sorted({i for r in rankings for i in r})
    assert [s for _, s in fused] == sorted((s for _, s in fused), reverse=True)


@given(ranking)
@settings(deadline=None, max_examples=50)
def test_one_ranking_alone_or_twice_keeps_its_order(items: list[int]) -> None:
    assert [i for i, _ in reciprocal_rank_fusion([items])] == items
    assert [i for i, _ in reciprocal_rank_fusion([items, items])] == items


@given(st.lists(ranking, min_size=2, max_size=4))
@settings(deadline=None, max_examples=50)
def test_the_order_of_the_rankings_does_not_matter(rankings: list[list[int]]) -> None:
    backwards = reciprocal_rank_fusion(rankings[::-1])
    assert dict(backwards) == pytest.approx(dict(reciprocal_rank_fusion(rankings)))


@given(st.lists(ranking, min_size=1, max_size=3), st.data())
@settings(deadline=None, max_examples=50)
def test_moving_an_id_up_never_lowers_its_score(
    rankings: list[list[int]], data: st.DataObject
) -> None:
    ranking = rankings[0]
    assume(len(ranking) > 1)
    place = data.draw(st.integers(1, len(ranking) - 1))
    item = ranking[place]
    raised = [*ranking]
    raised[place - 1], raised[place] = raised[place], raised[place - 1]
    before = dict(reciprocal_rank_fusion(rankings))[item]
    after = dict(reciprocal_rank_fusion([raised, *rankings[1:]]))[item]
    assert after > before


def test_bad_rankings_are_refused() -> None:
    with pytest.raises(ValueError, match="3 more than once"):
        reciprocal_rank_fusion([[3, 1, 3]])
    with pytest.raises(ValueError, match="k: got -1"):
        reciprocal_rank_fusion([[1]], k=-1)
