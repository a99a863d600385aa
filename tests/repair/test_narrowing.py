"""Policies that let rows go on the way up: fewer from step to step, within the budget."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.chunk import ChunkStats
from chunkcache.config import RepairSettings
from chunkcache.repair import RepairTask, ReusedChunk, Scoring, Step, policy_named
from chunkcache.repair.focused import FocusedChunks, above_gap, chunk_attention
from chunkcache.repair.gradual import falling_counts

NEIGHBOUR = b"a" * 16


def stats(num_tokens: int, head: list[float] | None = None) -> ChunkStats:
    """Statistics of a chunk born without others; `head`: what its rows spent on the head."""
    spent = np.zeros(num_tokens, np.float32) if head is None else np.array(head, np.float32)
    none = np.zeros(0, np.float32)
    return ChunkStats(np.zeros(num_tokens, np.float32), spent, none, num_tokens / 2, (), ())


@st.composite
def layered_tasks(draw: st.DrawFn) -> RepairTask:
    """Chunks of 1 to 9 rows in models of 1 to 40 layers."""
    chunks, start = [], draw(st.integers(0, 5))
    masses = st.sampled_from([0.0, 0.5, 1.0, math.nan, math.inf])
    for _ in range(draw(st.integers(0, 5))):
        rows = draw(st.integers(1, 9))
        made = stats(rows, draw(st.lists(masses, min_size=rows, max_size=rows)))
        chunks.append(ReusedChunk(start, rows, made, (NEIGHBOUR,), (10,)))
        start += rows + draw(st.integers(0, 4))
    return RepairTask(tuple(chunks), draw(st.floats(0.0, 1.0)), num_layers=draw(st.integers(1, 40)))


@pytest.mark.parametrize("name", ["gradual", "focused"])
@given(task=layered_tasks(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=300)
def test_rows_become_fewer_from_step_to_step_within_the_budget(
    name: str, task: RepairTask, seed: int
) -> None:
    policy = policy_named(name, RepairSettings(cfo_alpha=1.0))
    if policy.needs is Scoring.DEVIATION:  # every row has run through two layers
        share = min(1.0, 2 / task.num_layers)
        task = replace(task, scoring_rows=share * task.reusable_rows, row_cost=1.0 - share)
    end = max((c.start + c.num_tokens for c in task.chunks), default=0) + 3
    draw = np.random.default_rng(seed)
    values = np.array([0.0, 0.5, 1.0, 7.0, np.nan, np.inf], np.float32)
    rows = policy.choose(task, draw.choice(values, end))
    ran, layer = task.scoring_rows * task.num_layers, round((1 - task.row_cost) * task.num_layers)
    for step in policy.steps(task):
        assert layer < step.layer < task.num_layers
        ran += len(rows) * (step.layer - layer)
        layer = step.layer
        scores = draw.choice(values, end)
        untouched = scores.copy()
        fewer = policy.narrow(task, step, rows, scores)
        assert set(fewer.tolist()) <= set(rows.tolist()) and np.all(np.diff(fewer) > 0)
        assert len(fewer) <= step.max_rows and np.array_equal(scores, untouched, equal_nan=True)
        rows = fewer
    ran += len(rows) * (task.num_layers - layer)
    if task.max_rows > 0:
        assert ran / task.num_layers <= task.budget * task.reusable_rows + 1e-6
    else:
        assert len(rows) == 0


@given(
    paid=st.floats(0.0, 5000.0),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    kept=st.floats(0.1, 1.0),
    limit=st.integers(0, 200),
)
@settings(deadline=None, max_examples=300)
def test_falling_counts_fall_and_spend_what_they_can(
    paid: float, lengths: list[int], kept: float, limit: int
) -> None:
    counts = falling_counts(paid, lengths, kept, limit)
    assert len(counts) == len(lengths)
    assert all(0 <= b <= a <= limit for a, b in zip([limit, *counts], counts, strict=False))
    spent = sum(n * c for n, c in zip(lengths, counts, strict=True))
    assert spent <= paid + 1e-6
    if counts[-1] < limit:  # less than a row of every stretch is left over
        assert paid - spent < sum(lengths) + 1e-6


def test_unless_a_policy_says_otherwise_the_largest_scores_go_on() -> None:
    policy = policy_named("question", RepairSettings())
    task = RepairTask((ReusedChunk(2, 6, stats(6), (), ()),), 0.5)
    assert policy.steps(task) == ()
    rows, scores = np.array([2, 3, 5, 7]), np.array([9, 9, 1, 4, 9, 3, 9, 4], np.float32)
    assert policy.narrow(task, Step(2, 2), rows, scores).tolist() == [3, 7]
    assert policy.narrow(task, Step(2, 9), rows, scores).tolist() == [2, 3, 5, 7]


def test_gradual_compares_after_two_layers_a_quarter_and_a_half() -> None:
    chunk = ReusedChunk(0, 1000, stats(1000), (), ())
    task = RepairTask(
        (chunk,), 0.2, scoring_rows=1000 * 2 / 24, row_cost=22 / 24, num_layers=24
    )  # fmt: skip
    policy = policy_named("gradual", RepairSettings())
    assert len(policy.choose(task, np.arange(1000.0))) == 198
    assert policy.steps(task) == (Step(6, 139), Step(12, 97))
    assert task.max_rows == 127


def test_chunks_below_the_gap_are_let_go_and_a_step_takes_the_best_first() -> None:
    chunks = tuple(ReusedChunk(10 * i, 6, stats(6), (NEIGHBOUR,), (10,)) for i in range(3))
    task = RepairTask(chunks, 0.4, num_layers=24)
    policy = FocusedChunks(1.0)
    assert policy.steps(task) == (Step(8, 9), Step(10, 9), Step(12, 5))
    rows = policy.choose(task, None)
    assert len(rows) == 9
    scores = np.zeros(30)
    scores[10:16], scores[20:26], scores[0:6] = 5.0, 4.0, 1.0
    kept = policy.narrow(task, Step(8, 9), rows, scores)
    assert kept.tolist() == [10, 11, 12, 20, 21, 22]
    assert policy.narrow(task, Step(12, 5), rows, scores).tolist() == [10, 11, 12, 20, 21]
    scores[10:16], scores[20:26] = 4.0, 5.0
    assert policy.narrow(task, Step(12, 5), rows, scores).tolist() == [10, 11, 20, 21, 22]
    level = np.ones(30)
    assert policy.narrow(task, Step(8, 9), rows, level).tolist() == rows.tolist()


def test_focused_steps_are_paid_to_the_last_row_and_a_whole_budget_lets_nobody_go() -> None:
    chunk = ReusedChunk(0, 100, stats(100), (NEIGHBOUR,), (10,))
    policy = FocusedChunks(1.0)
    task = RepairTask((chunk,), 0.3, num_layers=24)
    (begin, end), paid = (40, 20), 30 * 24
    assert policy.steps(task) == (Step(8, begin), Step(10, begin), Step(12, end))
    assert 12 * begin + 12 * end <= paid < 12 * begin + 12 * (end + 1)
    assert policy.steps(replace(task, budget=1.0)) == ()


@pytest.mark.parametrize(
    ("values", "kept"),
    [([1.0, 2.0], [1]), ([1.0, 1.99], [1, 0]), ([0.0, 0.0], [0, 1]), ([0.0, 0.1], [1]), ([], [])],
)
def test_a_gap_is_twice_the_next_value_at_least(values: list[float], kept: list[int]) -> None:
    assert above_gap(values, 2.0) == kept


@given(values=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 8.0]), max_size=6))
@settings(deadline=None, max_examples=200)
def test_what_is_above_the_gap_is_above_it(values: list[float]) -> None:
    kept = above_gap(values, 2.0)
    inside, outside = [values[i] for i in kept], [v for i, v in enumerate(values) if i not in kept]
    assert len(set(kept)) == len(kept) and inside == sorted(inside, reverse=True)
    if outside:
        assert min(inside) >= 2.0 * max(outside) and min(inside) > 0
    else:
        ordered = sorted(values, reverse=True)
        assert all(a < 2 * b or a == b == 0 for a, b in pairwise(ordered))


def test_attention_per_token_passes_over_what_is_not_finite() -> None:
    chunk = ReusedChunk(2, 4, stats(4), (), ())
    scores = np.array([9, 9, 1, np.nan, 3, np.inf, 9], np.float32)
    assert chunk_attention(chunk, scores) == 1.0
