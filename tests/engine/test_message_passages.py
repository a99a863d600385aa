"""Parts of records as spans anywhere in a prompt: cut at both ends, near its beginning, twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from chunkcache.chunk import Rung, SpanKind
from chunkcache.engine.cut import Cut, cut_out
from chunkcache.engine.planner import span_rung
from chunkcache.engine.prompt import Prompt
from chunkcache.policy_names import RepairPolicyName

TIGHT = 2e-4
LENGTHS = (70, 25, 40)
# which record, its rows in the message; the first stands nearer to the beginning than in its record
PARTS = ((0, 45, 70), (1, 0, 25), (2, 3, 38), (1, 2, 24), (0, 0, 12))


def message_of(bench: Any, before: int = 2) -> tuple[Prompt, dict[int, Any], Prompt]:
    """A prompt that brings parts of records, the records by span, and the same prompt uncut."""
    texts = [bench.tokens(n, seed) for seed, n in enumerate(LENGTHS)]
    records = [bench.record(ids) for ids in texts]
    message, cuts, owners = list(bench.tokens(before, 50)), [], []
    for number, first, end in PARTS:
        start = len(message)
        message += texts[number][first:end]
        cuts.append(Cut(SpanKind.QUESTION, start, len(message), texts[number], first))
        owners.append(records[number])
        message += bench.tokens(3, 60 + len(cuts))
    bench.question = (*message, *bench.question)
    whole = bench.prompt([], canonical=False)
    cut = cut_out(whole, cuts)
    spans = [i for i, span in enumerate(cut.spans) if span.kind is SpanKind.CHUNK]
    return cut, dict(zip(spans, owners, strict=True)), whole


def worst(one: Any, other: Any) -> float:
    return float((one.first_logits - other.first_logits).abs().max())


@pytest.mark.parametrize("policy", get_args(RepairPolicyName))
def test_a_whole_budget_buys_the_answer_of_the_uncut_prompt(bench: Any, policy: str) -> None:
    cut, records, whole = message_of(bench)
    assert cut.token_ids == whole.token_ids
    outcome = bench.answer(cut, records, policy, budget=1.0)
    placed = [p.placed for p in outcome.plan.spans if p.span.kind is SpanKind.CHUNK]
    assert placed == [end - first for _, first, end in PARTS]
    if policy not in {"none", "first_k", "cfo", "focused"}:  # these choose fewer rows than all
        assert worst(outcome, bench.full(whole)) < TIGHT


def test_in_a_model_that_knows_no_context_parts_need_no_repair(build: Any, open_bench: Any) -> None:
    """One layer: K and V are made of the token alone, so a row in the wrong place would show."""
    bench = open_bench(build(num_hidden_layers=1))
    cut, records, whole = message_of(bench)
    outcome = bench.answer(cut, records, "none", budget=0.0)
    assert outcome.plan.task.reusable_rows == sum(end - first for _, first, end in PARTS)
    assert worst(outcome, bench.full(whole)) < TIGHT
    shifted = [replace(s, first_row=2) if s.first_row == 3 else s for s in cut.spans]
    other = bench.answer(Prompt(tuple(shifted), False), records, "none", budget=0.0)
    assert worst(other, bench.full(whole)) > 10 * TIGHT  # else this test could not fail


def test_angles_reach_further_than_positions_where_a_record_begins_before_the_prompt(
    build: Any, open_bench: Any
) -> None:
    """The table of angles is doubled as needed: the last row turns by more than the prompt has."""
    bench = open_bench(build(num_hidden_layers=1))
    cut, records, _ = message_of(bench)
    short = 1024 - cut.num_tokens  # the table has 1,024 positions at first
    bench.question = (*bench.question, *bench.tokens(short, 90))
    long = bench.prompt([], canonical=False)
    cuts = [
        Cut(SpanKind.QUESTION, s.start - 13, s.end - 13, s.record_ids, s.first_row)
        for i, s in enumerate(cut.spans)
        if i in records
    ]
    again = cut_out(long, cuts)
    assert again.num_tokens == 1024 and again.spans[2].start < again.spans[2].first_row
    outcome = bench.answer(again, records, "none", budget=0.0, max_new_tokens=1)
    assert worst(outcome, bench.full(long, max_new_tokens=1)) < TIGHT


@pytest.mark.parametrize(
    ("policy", "budget"),
    [("deviation", 0.9), ("question", 0.5), ("gradual", 0.9), ("cfo", 0.4), ("first_k", 0.4)],
)
def test_rows_outside_of_passages_are_never_chosen(bench: Any, policy: str, budget: float) -> None:
    cut, records, _ = message_of(bench)
    outcome = bench.answer(cut, records, policy, budget=budget)
    inside = np.concatenate(
        [np.arange(s.start, s.end) for i, s in enumerate(cut.spans) if i in records]
    )
    assert 0 < len(outcome.recomputed) <= budget * len(inside) + 1e-9
    assert np.isin(outcome.recomputed, inside).all()
    assert [span_rung(p, 0) for p in outcome.plan.spans if p.placed] == [Rung.REPAIRED] * 5
    assert outcome.plan.exact_until == cut.spans[2].start


def test_deviation_compares_a_row_with_its_own_row_of_the_record(bench: Any) -> None:
    """Of a record whose one row is spoilt, that row is the first to be repaired, and no other."""
    cut, records, _ = message_of(bench)
    index = next(i for i, s in enumerate(cut.spans) if s.first_row == 3)
    span, record = cut.spans[index], records[index]
    kv = record.kv.clone()
    kv[:, :, 3 + 20] += 50.0
    kv[:, :, 1] += 500.0  # below the rows in use
    spoilt = type(record)(record.key, record.geometry, kv, record.stats)
    outcome = bench.answer(cut, {**records, index: spoilt}, "deviation", budget=0.7)
    assert span.start + 20 in outcome.recomputed
    plans = outcome.plan.task
    assert torch.isfinite(outcome.first_logits).all() and plans.reusable_rows == 119


def test_a_prefix_may_end_inside_of_a_passage(bench: Any) -> None:
    cut, records, whole = message_of(bench)
    for tokens in (24, 40, 64):
        salt = b"prefix%d" % tokens
        before, bench.question = bench.question, whole.token_ids[13 : tokens + 1]
        bench.answer(bench.prompt([], canonical=False), {}, exact_only=True, salt=salt)
        bench.question = before
        outcome = bench.answer(cut, records, "all", salt=salt)
        assert sum(p.prefix for p in outcome.plan.spans) >= tokens // 8 * 8
        assert worst(outcome, bench.full(whole)) < TIGHT
