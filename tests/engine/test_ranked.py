"""Rows chosen where their scores lie are those that the policies choose on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from chunkcache.chunk import ChunkStats
from chunkcache.config import RepairSettings
from chunkcache.engine import generation, ranked
from chunkcache.engine.ranked import chosen
from chunkcache.policy_names import RepairPolicyName
from chunkcache.repair import RepairTask, ReusedChunk, RowSelection, policy_named
from chunkcache.repair.scored import QuestionRows
from chunkcache.repair.select import residual

NOTHING = ChunkStats(
    token_inter=np.zeros(0, np.float32), token_head=np.zeros(0, np.float32),
    chunk_inter=np.zeros(0, np.float32), intra=0.0, prior_digests=(), prior_lengths=(),
)  # fmt: skip
POLICIES: list[RepairPolicyName] = ["question", "deviation", "gradual"]


def task_of(seed: int, budget: float) -> RepairTask:
    """Chunks side by side and apart, some shorter than a window of neighbours."""
    draw, start, chunks = np.random.default_rng(seed), 3, []
    for length in draw.choice([1, 2, 5, 9, 70], size=6):
        chunks.append(ReusedChunk(start, int(length), NOTHING, (), ()))
        start += int(length) + int(draw.integers(0, 3))
    return RepairTask(tuple(chunks), budget, num_layers=12)


def scores_of(seed: int, count: int) -> np.ndarray:
    """float32: of any size, with equal ones, equal windows, and what a broken model leaves."""
    draw = np.random.default_rng(seed)
    scores = draw.lognormal(-8, 3, count).astype(np.float32)
    if seed % 3 == 1:  # ties everywhere
        scores = draw.choice(np.array([0.0, 0.1, 0.3, 0.7], np.float32), count)
    if seed % 3 == 2:
        scores[::7], scores[::11], scores[1::13] = np.nan, np.inf, -0.0
    return scores


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(9))
def test_rows_are_those_of_the_host_with_ties(name: RepairPolicyName, seed: int) -> None:
    task, policy = task_of(seed, [0.1, 0.4, 0.9][seed // 3]), policy_named(name, RepairSettings())
    end = task.chunks[-1].start + task.chunks[-1].num_tokens
    scores = scores_of(seed, end + 20)
    selection = policy.selection(task)
    assert selection is not None
    rows, left = chosen(task, selection, torch.from_numpy(scores))
    expected = policy.choose(task, scores)
    assert rows.dtype == np.int64 and np.array_equal(rows, expected) and len(rows)
    assert left == pytest.approx(residual(task, policy.weigh(task, scores), expected), abs=1e-12)


def test_a_prompt_without_any_mass_and_more_rows_than_there_are() -> None:
    task = task_of(0, 0.5)
    rows, left = chosen(task, RowSelection(10_000, 6, 2), torch.full((500,), torch.nan))
    assert len(rows) == task.reusable_rows and left == 0.0


def test_a_residual_is_found_on_the_host() -> None:
    task = task_of(0, 1.0)
    aimed = RepairTask(task.chunks, 1.0, max_residual=0.3)
    assert QuestionRows().selection(task) is not None
    assert QuestionRows().selection(aimed) is None


@pytest.mark.parametrize("name", POLICIES)
def test_an_answer_is_the_same_wherever_rows_are_chosen(
    bench: Any, name: RepairPolicyName, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([25, 40, 19, 31])]
    prompt = bench.prompt(chunks)
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    host = bench.answer(prompt, records, name, budget=0.9, salt=b"host")
    asked: list[int] = []

    def counted(*given: Any) -> tuple[np.ndarray, float]:
        asked.append(len(given))
        return ranked.chosen(*given)

    monkeypatch.setattr(generation, "ranks_on", lambda device: True)
    monkeypatch.setattr(generation, "chosen", counted)
    device = bench.answer(prompt, records, name, budget=0.9, salt=b"device")
    assert asked == [3] and 0 < len(host.recomputed) < host.plan.task.reusable_rows
    assert np.array_equal(device.recomputed, host.recomputed)
    assert torch.equal(device.first_logits, host.first_logits)
    if host.probed_residual is None:
        assert device.probed_residual is None
    else:
        assert device.probed_residual == pytest.approx(host.probed_residual, abs=1e-12)
