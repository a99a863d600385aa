"""Figures of RAGPulse's passages as libCacheSim 0.3.5 gives them, and the case for the project.

They need the trace (RAGPulse's folder, or `ragpulse_all.npz`): CHUNKCACHE_TRACES names the folder
that has it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chunkcache.evaluate.hitrate import (
    POLICIES,
    RecordSizes,
    Replaying,
    TierSpec,
    Trace,
    compare_reuse,
    measure,
    read_trace,
    replay,
)

FOLDER = os.environ.get("CHUNKCACHE_TRACES", "")
SIZES = RecordSizes()
OBJECT_MISS = {  # at 1, 5, 10 and 30 % of the footprint
    "lru": (0.826, 0.643, 0.512, 0.259),
    "fifo": (0.830, 0.667, 0.550, 0.314),
    "gdsf": (0.803, 0.563, 0.434, 0.217),
}

pytestmark = pytest.mark.skipif(not FOLDER, reason="CHUNKCACHE_TRACES names no folder of traces")


@pytest.fixture(scope="module")
def ragpulse() -> Trace:
    folder = Path(FOLDER)
    columns = folder / "ragpulse_all.npz"
    return read_trace(columns if columns.exists() else folder)


def test_a_week_of_rag_comes_again_out_of_context_alone(ragpulse: Trace) -> None:
    facts = measure(ragpulse, SIZES)
    assert (facts.requests, facts.accesses, facts.distinct) == (7106, 33_255, 3235)
    reuse = compare_reuse(ragpulse)
    shares = (reuse.exact_prefix, reuse.ordered_prefix, reuse.same_set, reuse.any_context)
    assert [round(by_access, 4) for by_access, _ in shares] == [0.0004, 0.2873, 0.3228, 0.9027]


def test_policies_of_the_literature_miss_as_often_as_in_libcachesim(ragpulse: Trace) -> None:
    whole = measure(ragpulse, SIZES).footprint_bytes
    grid = [
        (policy, share, miss)
        for policy, misses in OBJECT_MISS.items()
        for share, miss in zip((0.01, 0.05, 0.1, 0.3), misses, strict=True)
    ]
    settings = [
        Replaying([TierSpec("memory", int(whole * share))], policy, POLICIES[policy])
        for policy, share, _ in grid
    ]
    for (policy, share, miss), found in zip(
        grid, replay(ragpulse.by_access(), SIZES, settings), strict=True
    ):
        assert 1 - found.object_hit_rate == pytest.approx(miss, abs=0.0015), (policy, share)
