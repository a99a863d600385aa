"""Every policy: rows of the reused chunks, each once, in order, and no more than are paid for."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from birth_stats import LETTERS, stats
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.config import RepairSettings
from chunkcache.policy_names import RepairPolicyName
from chunkcache.repair import RepairTask, ReusedChunk, Scoring, policy_named
from chunkcache.repair.fixed import FirstK
from chunkcache.repair.select import residual, reusable_positions, rows_until, smoothed, top_rows

NAMES = get_args(RepairPolicyName)


@st.composite
def tasks(draw: st.DrawFn, budgets: st.SearchStrategy[float] | None = None) -> RepairTask:
    """Chunks of 1 to 9 placed rows with gaps between them; statistics of any quality."""
    chunks, start = [], draw(st.integers(0, 5))
    # small whole numbers make ties; NaN is what a broken model leaves behind
    numbers = st.sampled_from([0.0, 1.0, 2.0, 0.5, math.nan, math.inf])
    for _ in range(draw(st.integers(0, 5))):
        rows, first = draw(st.integers(1, 9)), draw(st.sampled_from([0, 0, 3]))
        born = rows + first
        prior = tuple(draw(st.lists(st.sampled_from(LETTERS), max_size=3)))
        mass = st.lists(numbers, min_size=born, max_size=born)
        inter, head = draw(mass), draw(mass)
        now = tuple(draw(st.lists(st.sampled_from(LETTERS), max_size=3)))
        made = stats(
            born, prior, token_inter=np.array(inter, np.float32),
            token_head=np.array(head, np.float32),
        )  # fmt: skip
        chunks.append(ReusedChunk(start, rows, made, now, (10,) * len(now), first))
        start += rows + draw(st.integers(0, 4))
    budget = draw(budgets if budgets is not None else st.floats(0.0, 1.0))
    return RepairTask(tuple(chunks), budget)


def scores_for(name: str, task: RepairTask, seed: int = 0) -> np.ndarray | None:
    """Scores of a whole prompt, NaN and ties among them, if the policy asks for any."""
    if policy_named(name, RepairSettings()).needs is Scoring.NONE:
        return None
    end = max((c.start + c.num_tokens for c in task.chunks), default=0)
    choices = np.array([0.0, 0.5, 1.0, np.nan, np.inf], np.float32)
    return np.random.default_rng(seed).choice(choices, end + 3)


@pytest.mark.parametrize("name", NAMES)
@given(task=tasks(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=120)
def test_rows_are_of_the_chunks_each_once_in_order_and_within_the_budget(
    name: str, task: RepairTask, seed: int
) -> None:
    policy = policy_named(name, RepairSettings(first_k_tokens=4))
    scores = scores_for(name, task, seed)
    rows = policy.choose(task, scores)
    assert rows.dtype == np.int64 and rows.ndim == 1
    assert np.all(np.diff(rows) > 0)
    allowed = {p for c in task.chunks for p in range(c.start, c.start + c.num_tokens)}
    assert set(rows.tolist()) <= allowed
    if name != "all":
        # one layer has no room for steps; test_narrowing.py has more of them
        assert len(rows) <= task.max_rows <= task.budget * task.reusable_rows + 1e-9
    again = policy.choose(task, scores)
    assert np.array_equal(rows, again)


@pytest.mark.parametrize("name", NAMES)
@given(task=tasks(st.just(0.0)))
@settings(deadline=None, max_examples=30)
def test_a_budget_of_nothing_buys_nothing(name: str, task: RepairTask) -> None:
    rows = policy_named(name, RepairSettings()).choose(task, scores_for(name, task))
    assert len(rows) == (task.reusable_rows if name == "all" else 0)


@pytest.mark.parametrize("name", ["question", "deviation", "gradual", "all"])
@given(task=tasks(st.just(1.0)), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_a_budget_of_everything_buys_every_row(name: str, task: RepairTask, seed: int) -> None:
    rows = policy_named(name, RepairSettings()).choose(task, scores_for(name, task, seed))
    assert np.array_equal(rows, reusable_positions(task))


@given(chunk_rows=st.lists(st.integers(1, 200), max_size=6), budget=st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=200)
def test_the_budget_pays_for_whole_rows_rounded_down(chunk_rows: list[int], budget: float) -> None:
    chunks = tuple(ReusedChunk(1000 * i, n, stats(n), (), ()) for i, n in enumerate(chunk_rows))
    task = RepairTask(chunks, budget)
    assert task.reusable_rows == sum(chunk_rows)
    exact = budget * sum(chunk_rows)
    assert exact - 1 < task.max_rows <= exact + 1e-9


@pytest.mark.parametrize(("budget", "rows"), [(0.29, 29), (0.57, 57), (0.1, 10), (1.0, 100)])
def test_a_budget_in_round_percents_is_not_cut_by_binary_fractions(
    budget: float, rows: int
) -> None:
    """0.29 · 100 is 28.999…996 in binary."""
    assert RepairTask((ReusedChunk(0, 100, stats(100), (), ()),), budget).max_rows == rows


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_known_by_its_own_name(name: RepairPolicyName) -> None:
    assert policy_named(name, RepairSettings()).name == name


def test_only_three_policies_ask_for_scores() -> None:
    needs = {name: policy_named(name, RepairSettings()).needs for name in NAMES}
    assert needs.pop("question") is Scoring.QUESTION
    assert {needs.pop(name) for name in ("deviation", "gradual")} == {Scoring.DEVIATION}
    assert set(needs.values()) == {Scoring.NONE}


# ------------------------------------------------------------------ scored rows


def two_chunks(budget: float) -> RepairTask:
    """Positions 2..5 and 8..9."""
    return RepairTask(
        (ReusedChunk(2, 4, stats(4), (), ()), ReusedChunk(8, 2, stats(2), (), ())), budget
    )


def test_the_best_scores_of_all_chunks_together_win_and_others_do_not_count() -> None:
    scores = np.array([9, 9, 1, 5, 0, 3, 9, 9, 4, 2, 9], np.float32)
    policy = policy_named("deviation", RepairSettings())
    assert policy.choose(two_chunks(0.5), scores).tolist() == [3, 5, 8]


def test_the_question_takes_neighbours_of_the_same_chunk_along() -> None:
    """One high score in the first chunk; the second chunk's are low, whatever stands between."""
    scores = np.array([9, 9, 0, 8, 0, 0, 9, 9, 1, 1, 9], np.float32)
    policy = policy_named("question", RepairSettings())
    assert policy.weigh(two_chunks(0.5), scores)[2:6].tolist() == pytest.approx([8 / 3, 2, 2, 2])
    assert policy.choose(two_chunks(4 / 6), scores).tolist() == [2, 3, 4, 5]


def test_the_question_takes_more_of_what_follows_along_than_of_what_leads_there() -> None:
    """It looks at "The number of the mill is", and the number is what must be right."""
    scores = np.zeros(40)
    scores[20] = 1.0
    task = RepairTask((ReusedChunk(5, 30, stats(30), (), ()),), 0.5)
    weighed = policy_named("question", RepairSettings()).weigh(task, scores)
    assert weighed.nonzero()[0].tolist() == list(range(18, 27))


@given(task=tasks(), seed=st.integers(0, 99), before=st.integers(0, 4), after=st.integers(0, 4))
@settings(deadline=None, max_examples=80)
def test_smoothing_equals_the_mean_by_hand(
    task: RepairTask, seed: int, before: int, after: int
) -> None:
    end = max((c.start + c.num_tokens for c in task.chunks), default=0)
    scores = np.random.default_rng(seed).choice([0.0, 1.0, 2.5, np.nan, np.inf], end + 2)
    untouched = scores.copy()
    smooth = smoothed(task, scores, before=before, after=after)
    assert np.array_equal(scores, untouched, equal_nan=True)
    for chunk in task.chunks:
        rows = range(chunk.start, chunk.start + chunk.num_tokens)
        for row in rows:
            near = [scores[r] if np.isfinite(scores[r]) else 0.0
                    for r in range(row - before, row + after + 1) if r in rows]  # fmt: skip
            assert smooth[row] == pytest.approx(np.mean(near))


def test_ties_go_to_the_earlier_row_and_nan_to_nobody() -> None:
    scores = np.array([0, 0, 1, np.nan, 1, 1, 0, 0, 1, np.nan], np.float32)
    policy = policy_named("deviation", RepairSettings())
    assert policy.choose(two_chunks(0.5), scores).tolist() == [2, 4, 5]
    # only when there is nothing else left are rows without a score taken
    assert policy.choose(two_chunks(5 / 6), scores).tolist() == [2, 3, 4, 5, 8]


def test_missing_scores_are_an_error_unless_nothing_is_to_be_chosen() -> None:
    policy = policy_named("deviation", RepairSettings())
    with pytest.raises(ValueError, match="'deviation' needs scores"):
        policy.choose(two_chunks(0.5), None)
    assert policy.choose(two_chunks(0.0), None).tolist() == []


@given(
    scores=st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf]), max_size=10),
    count=st.integers(0, 12),
)
@settings(deadline=None, max_examples=200)
def test_top_rows_equals_sorting_by_hand(scores: list[float], count: int) -> None:
    positions = np.arange(len(scores), dtype=np.int64) * 3 + 5
    rank = [-math.inf if math.isnan(s) else s for s in scores]
    best = sorted(range(len(scores)), key=lambda i: (-rank[i], i))[:count]
    chosen = top_rows(positions, np.array(scores, np.float32), count)
    assert chosen.tolist() == sorted(positions[best].tolist())


# ------------------------------------------------------------------ honest budgets, residuals


def test_looking_for_rows_is_paid_from_the_budget() -> None:
    chunk = ReusedChunk(0, 100, stats(100), (), ())
    assert RepairTask((chunk,), 0.15, scoring_rows=6.5).max_rows == 8
    broke = RepairTask((chunk,), 0.05, scoring_rows=6.5)
    assert broke.max_rows == 0 and broke.needs_no_scores
    everything = RepairTask((chunk,), 1.0, scoring_rows=6.5)
    assert everything.max_rows == 100 and everything.needs_no_scores
    adaptive = RepairTask((chunk,), 1.0, scoring_rows=6.5, max_residual=0.5)
    assert not adaptive.needs_no_scores


def test_rows_that_scoring_has_run_half_way_cost_the_other_half() -> None:
    chunk = ReusedChunk(0, 100, stats(100), (), ())
    assert RepairTask((chunk,), 0.6, scoring_rows=50.0, row_cost=0.5).max_rows == 20
    assert RepairTask((chunk,), 0.4, scoring_rows=50.0, row_cost=0.5).max_rows == 0
    assert RepairTask((chunk,), 0.5, scoring_rows=50.0, row_cost=0.0).max_rows == 100
    assert RepairTask((chunk,), 0.4, scoring_rows=50.0, row_cost=0.0).max_rows == 0


@given(
    budget=st.floats(0.0, 1.0),
    scoring=st.floats(0.0, 150.0),
    row_cost=st.floats(0.0, 1.0),
    rows=st.integers(1, 200),
)
@settings(deadline=None, max_examples=200)
def test_a_budget_buys_all_that_it_can_and_no_more(
    budget: float, scoring: float, row_cost: float, rows: int
) -> None:
    chunk = ReusedChunk(0, rows, stats(rows), (), ())
    task = RepairTask((chunk,), budget, scoring_rows=scoring, row_cost=row_cost)
    bought = task.max_rows
    assert 0 <= bought <= rows
    if budget < 1.0 and bought:
        assert task.cost(bought) <= budget * rows + 1e-6
    if bought < rows and scoring <= budget * rows:
        assert task.cost(bought + 1) > budget * rows - 1e-6


@pytest.mark.parametrize("name", ["question", "deviation"])
def test_a_whole_budget_needs_no_scores(name: RepairPolicyName) -> None:
    rows = policy_named(name, RepairSettings()).choose(two_chunks(1.0), None)
    assert rows.tolist() == [2, 3, 4, 5, 8, 9]


masses = st.sampled_from([0.0, 0.5, 1.0, 3.0, -1.0, math.nan, math.inf])


@given(scores=st.lists(masses, max_size=12), target=st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=200)
def test_no_fewer_rows_would_do(scores: list[float], target: float) -> None:
    values = np.array(scores, np.float64)
    count = rows_until(values, target)
    mass = sorted((v for v in scores if math.isfinite(v) and v > 0), reverse=True)
    total = sum(mass)
    assert 0 <= count <= len(scores)
    if total:
        assert 1 - sum(mass[:count]) / total <= target + 1e-9
        assert count == 0 or 1 - sum(mass[: count - 1]) / total > target - 1e-9


@given(task=tasks(st.just(1.0)), seed=st.integers(0, 9), target=st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=80)
def test_a_residual_target_is_met(task: RepairTask, seed: int, target: float) -> None:
    end = max((c.start + c.num_tokens for c in task.chunks), default=0)
    scores = np.random.default_rng(seed).choice([0.0, 0.5, 1.0, 7.0], end + 3)
    aimed = RepairTask(task.chunks, 1.0, max_residual=target)
    policy = policy_named("question", RepairSettings())
    rows = policy.choose(aimed, scores)
    weighed = policy.weigh(aimed, scores)
    assert residual(aimed, weighed, rows) <= target + 1e-9
    if 0 < len(rows) < task.reusable_rows:  # the least of the chosen rows was needed
        spared = rows[np.argsort(weighed[rows], kind="stable")[1:]]
        assert residual(aimed, weighed, np.sort(spared)) > target - 1e-9


def test_what_is_left_is_of_scores_that_are_some_mass() -> None:
    task = two_chunks(0.5)
    scores = np.array([0, 0, 3.0, 1.0, -2.0, np.nan, 0, 0, np.inf, 0, 9.0], np.float32)
    assert residual(task, scores, np.array([2])) == pytest.approx(0.25)
    assert residual(task, np.zeros(11), np.array([2])) == 0.0


def test_where_repair_would_cost_as_much_as_everything_everything_is_repaired() -> None:
    chunk = ReusedChunk(0, 10, stats(10), (), ())
    scores = np.ones(10)
    policy = policy_named("question", RepairSettings())
    near = RepairTask((chunk,), 1.0, scoring_rows=2.0, max_residual=0.2)
    assert len(policy.choose(near, scores)) == 10
    far = RepairTask((chunk,), 1.0, scoring_rows=2.0, max_residual=0.4)
    assert len(policy.choose(far, scores)) == 6


@given(task=tasks())
@settings(deadline=None, max_examples=100)
def test_where_asking_is_dear_the_question_leaves_it_to_first_rows(task: RepairTask) -> None:
    dear = RepairTask(task.chunks, task.budget, scoring_is_dear=bool(task.chunks))
    chosen = policy_named("question", RepairSettings()).choose(dear, None)
    assert chosen.tolist() == FirstK(999).choose(task, None).tolist()  # all that it pays for


# ------------------------------------------------------------------ first k


def test_first_rows_are_dealt_round_by_round() -> None:
    policy = FirstK(3)
    assert policy.choose(two_chunks(1.0), None).tolist() == [2, 3, 4, 8, 9]
    assert policy.choose(two_chunks(0.5), None).tolist() == [2, 3, 8]
    assert policy.choose(two_chunks(1 / 6), None).tolist() == [2]


@given(task=tasks(st.just(1.0)), k=st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_with_budget_enough_every_chunk_gets_those_of_its_first_k_that_were_placed(
    task: RepairTask, k: int
) -> None:
    expected = [
        c.start + i - c.first_row
        for c in task.chunks
        for i in range(c.first_row, min(k, c.first_row + c.num_tokens))
    ]
    assert FirstK(k).choose(task, None).tolist() == expected
