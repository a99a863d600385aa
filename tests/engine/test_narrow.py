"""Rows that are let go on the way up: what runs, what stays as it was stored, what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from chunkcache.engine.decoder import DecoderModel
from chunkcache.errors import ChunkCacheError
from chunkcache.repair import RepairPolicy, RepairTask, Scoring, Step
from chunkcache.repair.select import reusable_positions

TIGHT = 2e-4  # fp32 logits of the tiny models have a spread of about 5
LENGTHS = [25, 40, 31]


class EveryOther(RepairPolicy):
    """Every other row; at each of the given layers a share of them goes on."""

    name = "every other"
    probe_keeps = 0.25

    def __init__(
        self, needs: Scoring, layers: tuple[int, ...], kept: float, watches: Scoring = Scoring.NONE
    ) -> None:
        self.needs = needs
        self.watches = watches
        self._layers = layers
        self._kept = kept
        self.seen: list[tuple[Step, np.ndarray, np.ndarray]] = []

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        return reusable_positions(task)[::2]

    def steps(self, task: RepairTask) -> tuple[Step, ...]:
        return tuple(Step(layer, task.reusable_rows) for layer in self._layers)

    def narrow(
        self, task: RepairTask, step: Step, rows: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        self.seen.append((step, rows, scores.copy()))
        return rows[: int(len(rows) * self._kept)]


@pytest.fixture(params=[16, 512])
def deep(request: Any, build: Callable[..., DecoderModel], open_bench: Callable[..., Any]) -> Any:
    """Eight layers; in steps of 16 rows a pass takes several of them."""
    return open_bench(build(num_hidden_layers=8), step_tokens=request.param)


def case(bench: Any, hits: set[int]) -> tuple[Any, dict[int, Any]]:
    chunks = [bench.tokens(n, seed) for seed, n in enumerate(LENGTHS)]
    prompt = bench.prompt(chunks, history=bench.tokens(5, 9))
    return prompt, {i: bench.record(chunks[i - 1]) for i in hits}


@pytest.mark.parametrize("needs", list(Scoring))
@pytest.mark.parametrize("hits", [{1, 2, 3}, {2}, {1, 3}])
def test_a_step_where_every_row_goes_on_changes_nothing(
    deep: Any, needs: Scoring, hits: set[int]
) -> None:
    """In one pass, and in four: the same K and V in every row and layer, at the same cost."""
    prompt, records = case(deep, hits)
    whole, kv = deep.answer_and_kv(
        prompt, records, EveryOther(needs, (), 1.0), budget=0.9, salt=b"1"
    )
    stepwise = EveryOther(needs, (3, 4, 7), 1.0)
    parts, other = deep.answer_and_kv(prompt, records, stepwise, budget=0.9, salt=b"2")
    assert len(stepwise.seen) == 3 and len(parts.recomputed) > 0
    assert (kv - other).abs().max() < TIGHT
    assert (whole.first_logits - parts.first_logits).abs().max() < TIGHT
    assert whole.recomputed.tolist() == parts.recomputed.tolist()
    assert whole.cost_ratio == pytest.approx(parts.cost_ratio)


@pytest.mark.parametrize("needs", [Scoring.NONE, Scoring.QUESTION])
def test_rows_let_go_stay_fresh_below_and_as_stored_above(deep: Any, needs: Scoring) -> None:
    prompt, records = case(deep, {1, 2, 3})
    whole, fresh = deep.answer_and_kv(
        prompt, records, EveryOther(needs, (), 1.0), budget=0.9, salt=b"1"
    )
    _, stored = deep.answer_and_kv(prompt, records, "none", salt=b"2")
    outcome, ours = deep.answer_and_kv(
        prompt, records, EveryOther(needs, (3, 6), 0.5), budget=0.9, salt=b"3"
    )
    began = whole.recomputed
    first, last = began[: len(began) // 2], began[: len(began) // 4]
    assert outcome.recomputed.tolist() == last.tolist()
    assert (ours[:3] - fresh[:3]).abs().max() < TIGHT  # nobody has gone yet
    # what enters layer 3 is of layers in which everybody ran
    assert (ours[3][:, first] - fresh[3][:, first]).abs().max() < TIGHT
    gone, later = np.setdiff1d(began, first), np.setdiff1d(first, last)
    for layer, rows in ((3, gone), (6, later)):
        torch.testing.assert_close(
            ours[layer:, 0, rows], stored[layer:, 0, rows], rtol=1e-5, atol=1e-5
        )
        assert torch.equal(ours[layer:, 1, rows], stored[layer:, 1, rows])
    assert (ours[3:6][:, :, later] - stored[3:6][:, :, later]).abs().amax() > 100 * TIGHT
    assert (ours[6:][:, :, last] - stored[6:][:, :, last]).abs().amax() > 100 * TIGHT


def test_cost_counts_the_layers_that_rows_ran(deep: Any) -> None:
    prompt, records = case(deep, {1, 2, 3})
    missing, reusable = 13 + 5 + 7, sum(LENGTHS[1:])
    policy = EveryOther(Scoring.NONE, (2, 4), 0.5)
    outcome = deep.answer(prompt, records, policy, budget=0.9)
    began = -(-reusable // 2)
    layers = began * 2 + began // 2 * 2 + began // 2 // 2 * 4
    assert outcome.cost_ratio * prompt.num_tokens == pytest.approx(missing + layers / 8)
    assert outcome.repair_ratio == pytest.approx(layers / 8 / reusable)


def test_deviation_is_watched_in_the_last_layer_that_ran(deep: Any) -> None:
    prompt, records = case(deep, {1, 2, 3})
    _, stored = deep.answer_and_kv(prompt, records, "none", salt=b"1")
    policy = EveryOther(Scoring.NONE, (3, 6), 1.0, Scoring.DEVIATION)
    _, fresh = deep.answer_and_kv(prompt, records, policy, budget=0.9, salt=b"2")
    assert [step.layer for step, _, _ in policy.seen] == [3, 6]
    for step, rows, scores in policy.seen:
        # turning K does not change its length
        change = (fresh[step.layer - 1] - stored[step.layer - 1]).square().sum(dim=(0, 2, 3))
        assert scores[rows] == pytest.approx(change[rows].numpy(), rel=1e-3, abs=1e-6)
        assert scores[rows].min() > 0


def test_the_questions_attention_adds_up(deep: Any) -> None:
    prompt, records = case(deep, {1, 2, 3})
    policy = EveryOther(Scoring.NONE, (3, 6), 1.0, Scoring.QUESTION)
    deep.answer(prompt, records, policy, budget=0.9)
    question, last = prompt.spans[-1], prompt.num_tokens
    for step, _, scores in policy.seen:
        # each row spends 1 in a layer, and the means of two groups of rows are added
        assert scores.sum() == pytest.approx(2 * step.layer, rel=1e-3)
        assert scores[: question.start].min() > 0 and len(scores) == last
    assert (policy.seen[1][2] >= policy.seen[0][2]).all()


def test_no_rows_left_is_no_rows_recomputed(deep: Any) -> None:
    prompt, records = case(deep, {1, 2, 3})
    policy = EveryOther(Scoring.NONE, (3, 6), 0.0)
    outcome = deep.answer(prompt, records, policy, budget=0.9)
    assert len(policy.seen) == 1  # there is nobody to ask about at the second step
    assert len(outcome.recomputed) == 0 and outcome.residual == 1.0
    assert outcome.repair_ratio == pytest.approx(36 * 3 / 8 / sum(LENGTHS[1:]))


@pytest.mark.parametrize(
    ("needs", "layers"),
    [(Scoring.NONE, (0,)), (Scoring.NONE, (3, 3)), (Scoring.NONE, (8,)), (Scoring.QUESTION, (2,))],
)
def test_a_step_where_no_row_can_end_is_refused(
    deep: Any, needs: Scoring, layers: tuple[int, ...]
) -> None:
    """A question's rows go on from a quarter of the depth; nobody can leave before."""
    prompt, records = case(deep, {1, 2, 3})
    with pytest.raises(ChunkCacheError, match=f"a step at layer {layers[-1]}, must be above"):
        deep.answer(prompt, records, EveryOther(needs, layers, 1.0), budget=0.9)


@pytest.mark.parametrize("policy", ["gradual", "focused"])
@pytest.mark.parametrize("budget", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_policies_that_let_rows_go_keep_their_budget(deep: Any, policy: str, budget: float) -> None:
    prompt, records = case(deep, {1, 2, 3})
    outcome = deep.answer(prompt, records, policy, budget=budget)
    assert outcome.repair_ratio <= budget + 1e-9
    if policy == "gradual" and budget > 0.3:
        assert outcome.repair_ratio > budget - 3 / sum(LENGTHS[1:])


@pytest.mark.parametrize("policy", ["deviation", "gradual", "focused"])
def test_rows_that_ran_through_some_of_the_layers_are_shared_with_nobody(
    deep: Any, policy: str
) -> None:
    """They lie page by page behind the exact ones, as if the rest of the prompt were exact."""
    prompt, records = case(deep, {2, 3})
    approximate = deep.answer(prompt, records, policy, budget=0.6, salt=b"shared")
    exact = deep.answer(prompt, {}, exact_only=True, salt=b"shared")
    taken = sum(span.prefix for span in exact.plan.spans)
    assert 0 < taken <= approximate.plan.exact_until < prompt.num_tokens
    other = deep.answer(prompt, {}, exact_only=True, salt=b"of its own")
    assert (exact.first_logits - other.first_logits).abs().max() < TIGHT
