"""Rows by what Cache-Craft calls a chunk's fix overhead."""

from __future__ import annotations

import math

import numpy as np
import pytest
from birth_stats import LETTERS, stats
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.repair import RepairTask, ReusedChunk
from chunkcache.repair.cfo import FixOverhead, outward, share


def test_every_chunk_gets_its_overhead_rounded_up_of_its_most_outward_rows() -> None:
    inter = np.array([0.1, 0.9, 0.2, 0.8, 0.3], np.float32)
    moved = ReusedChunk(10, 5, stats(5, (LETTERS[0],), token_inter=inter), (LETTERS[1],), (10,))
    at_home = ReusedChunk(20, 5, stats(5, (LETTERS[0],), token_inter=inter), (LETTERS[0],), (10,))
    policy = FixOverhead(alpha=0.4)
    assert policy.overhead(at_home) == 0.0
    # equal chunks and half the attention inside would be σ(1); here the neighbour is twice as long
    assert policy.overhead(moved) == pytest.approx(0.4 / (1 + math.exp(-0.5)))
    assert policy.choose(RepairTask((moved, at_home), 1.0), None).tolist() == [11, 13]


@pytest.mark.parametrize("rows", [25, 50, 75, 100])
def test_an_overhead_in_round_percents_takes_no_row_more_than_it_says(rows: int) -> None:
    """0.28 of 25 rows are 7; in binary 7.000…001."""
    unknown = ReusedChunk(0, rows, stats(rows), (LETTERS[0],), (10,))
    chosen = FixOverhead(0.56).choose(RepairTask((unknown,), 1.0), None)
    assert len(chosen) == rows * 28 // 100


def test_born_alone_the_rows_that_leaned_on_the_head_are_taken() -> None:
    head = np.array([1.0, 0.2, 0.7, 0.1], np.float32)
    chunk = ReusedChunk(10, 4, stats(4, token_head=head), (LETTERS[0],), (10,))
    assert outward(chunk).tolist() == head.tolist()
    assert FixOverhead(1.0).choose(RepairTask((chunk,), 1.0), None).tolist() == [10, 12]


def test_rows_that_the_prefix_cache_holds_are_counted_at_birth_and_never_chosen() -> None:
    inter = np.array([9, 9, 9, 1, 3, 2], np.float32)
    chunk = ReusedChunk(
        13, 3, stats(6, (LETTERS[0],), token_inter=inter), (LETTERS[1],), (10,), first_row=3
    )
    whole = ReusedChunk(10, 6, chunk.stats, (LETTERS[1],), (10,))
    policy = FixOverhead(0.5)
    assert policy.overhead(chunk) == policy.overhead(whole)
    assert outward(chunk).tolist() == [1, 3, 2]
    assert policy.choose(RepairTask((chunk,), 0.4), None).tolist() == [14]


def test_the_budget_is_shared_in_proportion_to_the_overhead() -> None:
    chunks = tuple(
        ReusedChunk(100 * i, 10, stats(10), (LETTERS[0],), (10,)) for i in range(3)
    )  # each wants ⌈1 · 0.5 · 10⌉ rows
    rows = FixOverhead(1.0).choose(RepairTask(chunks, 0.2), None)
    assert [int(((rows >= 100 * i) & (rows < 100 * i + 10)).sum()) for i in range(3)] == [2, 2, 2]


@given(wanted=st.lists(st.integers(0, 50), max_size=6), limit=st.integers(0, 120))
@settings(deadline=None, max_examples=300)
def test_shares_sum_to_the_limit_and_differ_from_proportion_by_less_than_one(
    wanted: list[int], limit: int
) -> None:
    counts = share(wanted, limit)
    total = sum(wanted)
    assert sum(counts) == min(total, limit)
    if total <= limit:
        assert counts == wanted
        return
    for want, count in zip(wanted, counts, strict=True):
        assert 0 <= count <= want
        assert abs(count - want * limit / total) < 1
