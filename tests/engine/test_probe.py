"""The probe, and rows that go on from where scoring left them: what is run, kept and paid for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.outcome import Outcome
from chunkcache.repair import RepairPolicy, RepairTask, Scoring
from chunkcache.repair.scored import QuestionRows

TIGHT = 2e-4  # fp32 logits of the tiny models have a spread of about 5


def worst(a: Outcome, b: Outcome) -> float:
    return float((a.first_logits - b.first_logits).abs().max())


class GivenRows(RepairPolicy):
    """Recomputes the rows it was given, without looking for them."""

    name = "given"
    needs = Scoring.NONE

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        return self._rows


class Asked(QuestionRows):
    """Asks the question at any price."""

    max_scoring_share = 1.0


class Forgetful(Asked):
    """Runs the question's rows again through all layers after the probe."""

    probe_keeps = 0.0


@pytest.mark.parametrize("hits", [{1, 2, 3, 4}, {2, 4}, {3, 4}, {4}])
@pytest.mark.parametrize("shared", [False, True])
def test_a_probe_leaves_nothing_behind(bench: Any, hits: set[int], shared: bool) -> None:
    """It runs missing chunks too, over rows that are repaired later: as if it had not been.

    In a model of three layers, of which a quarter is none; with more, the next test.
    """
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([25, 40, 19, 31])]
    prompt = bench.prompt(chunks)
    records = {i: bench.record(chunks[i - 1]) for i in hits}
    salt = b"shared" if shared else b"probed"
    if shared:  # the head, at least, is there when the prompt begins
        bench.answer(bench.prompt([]), {}, exact_only=True, salt=salt)
    probed = bench.answer(prompt, records, Asked(), budget=0.6, salt=salt)
    assert probed.probe_rows > 0 and len(probed.recomputed) > 0
    given = bench.answer(prompt, records, GivenRows(probed.recomputed), budget=0.6, salt=b"given")
    assert worst(probed, given) < TIGHT
    assert 0 < probed.repair_ratio <= 0.6


@pytest.mark.parametrize("hits", [{1, 2, 3, 4}, {3, 4}], ids=["all found", "two computed first"])
def test_times_of_a_probed_answer_follow_one_another(bench: Any, hits: set[int]) -> None:
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([25, 40, 19, 31])]
    records = {i: bench.record(chunks[i - 1]) for i in hits}
    probed = bench.answer(bench.prompt(chunks), records, Asked(), budget=0.6)
    assert probed.probe_rows > 0
    parts = (probed.queue_ms, probed.probe_ms, probed.compute_ms)
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(probed.ttft_ms, rel=0, abs=1e-3)


@pytest.fixture
def deep(build: Callable[..., DecoderModel], open_bench: Callable[..., Any]) -> Any:
    """Eight layers: a probe keeps the question's rows of the first two."""
    return open_bench(build(num_hidden_layers=8))


@pytest.mark.parametrize("step_tokens", [16, 512])
@pytest.mark.parametrize("hits", [{1, 2, 3, 4}, {2, 4}, {4}])
def test_after_the_probe_the_question_goes_on_and_chunks_start_again(
    deep: Any, open_bench: Callable[..., Any], hits: set[int], step_tokens: int
) -> None:
    bench = open_bench(deep.model, step_tokens=step_tokens)
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([25, 40, 19, 31])]
    prompt = bench.prompt(chunks, history=bench.tokens(5, 9))
    records = {i: bench.record(chunks[i - 1]) for i in hits}
    outcome, probed = bench.answer_and_kv(prompt, records, Asked(), budget=0.6, salt=b"1")
    rows = GivenRows(outcome.recomputed)
    _, given = bench.answer_and_kv(prompt, records, rows, salt=b"2")
    _, unrepaired = bench.answer_and_kv(prompt, records, "none", salt=b"3")
    asking = prompt.spans[-2].start
    assert prompt.num_tokens - asking == 12
    # chunks do not see the question: all of them as if there had been no probe
    assert (probed[:, :, :asking] - given[:, :, :asking]).abs().max() < TIGHT
    ours, fresh, old = (kv[:, :, asking:] for kv in (probed, given, unrepaired))
    # rows enter layer 2 as they were before the repair; K and V of it are already of then
    assert (ours[:3] - old[:3]).abs().max() < TIGHT
    assert (ours[1:3] - fresh[1:3]).abs().max() > TIGHT  # otherwise this could not fail
    assert (ours[3:] - old[3:]).abs().max() > 100 * TIGHT


def test_a_probe_that_keeps_nothing_and_one_that_chooses_everything_are_exact(deep: Any) -> None:
    chunks = [deep.tokens(n, seed) for seed, n in enumerate([25, 40, 31])]
    prompt = deep.prompt(chunks)
    records = {i + 1: deep.record(ids) for i, ids in enumerate(chunks)}
    full = deep.full(prompt)
    everything = deep.answer(prompt, records, "question", max_residual=0.0, salt=b"all")
    assert everything.probe_rows > 0  # it was asked, and found that everything is as cheap
    assert worst(everything, full) < TIGHT
    probed = deep.answer(prompt, records, Forgetful(), budget=0.6, salt=b"probed")
    given = deep.answer(prompt, records, GivenRows(probed.recomputed), salt=b"given")
    assert 0 < len(probed.recomputed) < probed.plan.task.reusable_rows
    assert worst(probed, given) < TIGHT


@pytest.mark.parametrize("step_tokens", [16, 512])
def test_rows_that_deviate_go_on_from_where_they_were_compared(
    deep: Any, open_bench: Callable[..., Any], step_tokens: int
) -> None:
    """Two layers of all rows, then the chosen ones: as a pass of their own through all layers."""
    bench = open_bench(deep.model, step_tokens=step_tokens)
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([25, 40, 31])]
    prompt = bench.prompt(chunks)
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    outcome, ours = bench.answer_and_kv(prompt, records, "deviation", budget=0.5, salt=b"1")
    share, reusable = 2 / 8, 71
    assert len(outcome.recomputed) == int((0.5 - share) / (1 - share) * reusable)
    _, exact = bench.answer_and_kv(prompt, {}, exact_only=True, salt=b"2")
    assert (ours[:2] - exact[:2]).abs().max() < TIGHT  # layers that every row ran through
    chosen = ours[2][:, outcome.recomputed] - exact[2][:, outcome.recomputed]
    assert chosen.abs().max() < TIGHT  # and what the chosen rows make of them
    assert (ours[4] - exact[4]).abs().max() > 100 * TIGHT


@pytest.mark.parametrize("num_layers", [3, 8])
@pytest.mark.parametrize("policy", [QuestionRows, Asked])
def test_cost_counts_every_row_that_ran(
    build: Callable[..., DecoderModel],
    open_bench: Callable[..., Any],
    num_layers: int,
    policy: type[QuestionRows],
) -> None:
    bench = open_bench(build(num_hidden_layers=num_layers))
    kept = {3: 0, 8: 2}[num_layers] / num_layers
    chunks = [bench.tokens(n, seed) for seed, n in enumerate([25, 40, 31])]
    prompt = bench.prompt(chunks)
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    head, question, reusable = 13, 7, 71
    none = bench.answer(prompt, records, "none", salt=b"1")
    assert none.cost_ratio * prompt.num_tokens == pytest.approx(head + question)
    assert none.repair_ratio == 0.0
    asked = bench.answer(prompt, records, policy(), budget=0.5, salt=b"2")
    again = question * (1 - kept)
    rows = head + question + len(asked.recomputed) + again
    assert asked.cost_ratio * prompt.num_tokens == pytest.approx(rows)
    assert asked.repair_ratio == pytest.approx((len(asked.recomputed) + again) / reusable)
    assert 0.5 - 1 / reusable < asked.repair_ratio <= 0.5  # probes are paid from the budget
    deviating = bench.answer(prompt, records, "deviation", budget=0.95, salt=b"3")
    share = 2 / num_layers
    rows = head + question + reusable * share + len(deviating.recomputed) * (1 - share)
    assert deviating.cost_ratio * prompt.num_tokens == pytest.approx(rows)
    assert 0.95 - 1 / reusable < deviating.repair_ratio <= 0.95
    full = bench.full(prompt)
    assert full.cost_ratio == pytest.approx(1.0) and full.repair_ratio == 0.0


def test_a_probe_above_half_of_the_budget_is_not_run(deep: Any) -> None:
    """Seven rows through six of eight layers are 5.25 rows: half of a budget of 10.5 of 71."""
    chunks = [deep.tokens(n, seed) for seed, n in enumerate([25, 40, 31])]
    prompt = deep.prompt(chunks)
    records = {i + 1: deep.record(ids) for i, ids in enumerate(chunks)}
    asked = deep.answer(prompt, records, "question", budget=10.51 / 71, salt=b"1")
    assert asked.probe_rows == 7 and len(asked.recomputed) == 5
    first = deep.answer(prompt, records, "question", budget=10.49 / 71, salt=b"2")
    assert first.plan.task.scoring_is_dear
    assert first.probe_rows == 0 and first.residual is None
    # the first chunk is exact; ten rows of the others, dealt round by round
    by_hand = [span.start + i for span in prompt.spans[2:4] for i in range(5)]
    assert first.recomputed.tolist() == by_hand
    assert first.repair_ratio == pytest.approx(10 / 71)
