"""How far the shipped policy is from the offline optimum on RAGPulse: the figures of decision 30.

They need the trace, as in `test_published.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from chunkcache.evaluate.hitrate import read_trace
from chunkcache.evaluate.hitrate.cascade import CascadeTier, replay_cascade
from chunkcache.evaluate.hitrate.learnt import HitDensity, replay_learnt
from chunkcache.evaluate.hitrate.optimum import Intervals, best_placement
from chunkcache.store.lru import LruPolicy
from chunkcache.store.policy import Policy
from chunkcache.store.windowed import WindowedFrequencyPolicy

FOLDER = os.environ.get("CHUNKCACHE_TRACES", "")
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]  # chunk, tokens and request of every use

pytestmark = pytest.mark.skipif(not FOLDER, reason="CHUNKCACHE_TRACES names no folder of traces")


@pytest.fixture(scope="module")
def passages() -> Columns:
    columns = Path(FOLDER) / "ragpulse_all.npz"
    rows = [
        (int(chunk), tokens, number)
        for number, request in enumerate(read_trace(columns if columns.exists() else Path(FOLDER)))
        for chunk, tokens in request.passages()
    ]
    chunk, tokens, request = np.array(rows).T
    return chunk, tokens, request


def footprint(passages: Columns) -> int:
    return int(passages[1][np.unique(passages[0], return_index=True)[1]].sum())


def missed(passages: Columns, room: int, policy: Policy, look_ahead: int = 0) -> float:
    return replay_cascade(
        *passages, [CascadeTier(room, 0.0, policy)], compute_cost=1.0, look_ahead=look_ahead,
        saves_by_size=False,
    ).object_miss  # fmt: skip


@pytest.mark.parametrize(
    ("share", "lru", "shipped", "seeing_16", "best"),
    [(0.05, 0.643, 0.532, 0.501, 0.3885), (0.10, 0.512, 0.400, 0.389, 0.280)],
)
def test_one_tier(
    passages: Columns, share: float, lru: float, shipped: float, seeing_16: float, best: float
) -> None:
    room = int(share * footprint(passages))
    intervals = Intervals.of(*passages)
    saved = best_placement(intervals, np.ones(intervals.size.size), [room]).saved
    assert 1 - saved / passages[0].size == pytest.approx(best, abs=0.001)
    assert missed(passages, room, LruPolicy()) == pytest.approx(lru, abs=0.001)
    policy = WindowedFrequencyPolicy(room)
    assert missed(passages, room, policy) == pytest.approx(shipped, abs=0.001)
    policy = WindowedFrequencyPolicy(room)
    assert missed(passages, room, policy, 16) == pytest.approx(seeing_16, abs=0.001)


def test_the_learnt_policy_does_not_win_the_second_half(passages: Columns) -> None:
    room = int(0.05 * footprint(passages))
    half = passages[0].size // 2
    density = HitDensity.learn(passages[0][:half], passages[2][:half])
    hits = replay_learnt(passages[0], passages[1], room, density)
    assert 1 - hits[half:].mean() == pytest.approx(0.532, abs=0.001)
    assert missed(passages, room, WindowedFrequencyPolicy(room)) < 1 - hits.mean()


def test_three_tiers(passages: Columns) -> None:
    """Of 1, 5 and 30 %: 37 % dearer than the optimum (.273), 21 % with a queue of 64 in sight."""
    rooms = [int(share * footprint(passages)) for share in (0.01, 0.05, 0.30)]

    def cost(look_ahead: int) -> float:
        loads = (0.0, 5.24, 26.2)
        tiers = [
            CascadeTier(room, load, WindowedFrequencyPolicy(room))
            for room, load in zip(rooms, loads, strict=True)
        ]
        return replay_cascade(*passages, tiers, compute_cost=50.0, look_ahead=look_ahead).cost

    assert cost(0) == pytest.approx(0.373, abs=0.001)
    assert cost(64) == pytest.approx(0.330, abs=0.001)
