"""Passages of which only some rows stand in a prompt: in a message, cut by whoever wrote it."""

from __future__ import annotations

import numpy as np
import pytest

from chunkcache.chunk import ChunkStats
from chunkcache.repair.base import RepairTask, ReusedChunk
from chunkcache.repair.cfo import FixOverhead, outward
from chunkcache.repair.fixed import FirstK
from chunkcache.repair.scored import DeviatingRows

BORN_AFTER = b"a passage"
INTER = np.array([9, 9, 1, 3, 2, 9, 9], np.float32)


@pytest.fixture
def stats() -> ChunkStats:
    return ChunkStats(
        token_inter=INTER, token_head=np.zeros(7, np.float32), intra=2.0,
        chunk_inter=np.array([INTER.sum()], np.float32),
        prior_digests=(BORN_AFTER,), prior_lengths=(10,),
    )  # fmt: skip


@pytest.fixture
def part(stats: ChunkStats) -> ReusedChunk:
    """Rows 2 to 4 of 7, at positions 20 to 22."""
    return ReusedChunk(20, 3, stats, (b"another",), (10,), first_row=2)


def test_only_rows_that_are_there_are_chosen_by_what_they_saw(part: ReusedChunk) -> None:
    assert outward(part).tolist() == [1, 3, 2]
    assert FixOverhead(0.9).choose(RepairTask((part,), 0.7), None).tolist() == [21, 22]


def test_the_overhead_is_that_of_the_whole_record(stats: ChunkStats, part: ReusedChunk) -> None:
    whole = ReusedChunk(20, 7, stats, (b"another",), (10,))
    assert FixOverhead(0.5).overhead(part) == FixOverhead(0.5).overhead(whole)


def test_first_rows_are_those_of_the_record(part: ReusedChunk) -> None:
    assert FirstK(2).choose(RepairTask((part,), 1.0), None).tolist() == []
    assert FirstK(4).choose(RepairTask((part,), 1.0), None).tolist() == [20, 21]


def test_scores_of_other_rows_change_nothing(part: ReusedChunk) -> None:
    scores = np.full(40, 100.0, np.float32)
    scores[20:23] = [1, 1, 50]
    assert DeviatingRows().choose(RepairTask((part,), 0.4), scores).tolist() == [22]
