"""The planner against a slow twin that decides position by position."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.chunk import (
    ChunkKey,
    ChunkStats,
    Rung,
    Span,
    SpanKind,
    content_digest,
)
from chunkcache.engine.planner import (
    RepairPlan,
    SpanPlan,
    make_plan,
    rows_in,
    span_rung,
    weakest,
    with_scoring,
)
from chunkcache.engine.prompt import Prompt
from chunkcache.engine.resident import Resident
from chunkcache.repair import RepairPolicy, Scoring

HEAD = (1, 2, 3)


def resident_of(
    token_ids: tuple[int, ...], prior: tuple[tuple[int, ...], ...] = (), *, exact: bool = True
) -> Resident:
    """A chunk born after the head and `prior` chunks; the planner never looks at the KV itself."""
    count = len(token_ids)
    born = [*HEAD, *(t for ids in prior for t in ids)]
    stats = ChunkStats(
        token_inter=np.zeros(count, np.float32),
        token_head=np.ones(count, np.float32),
        chunk_inter=np.zeros(len(prior), np.float32),
        intra=0.0,
        prior_digests=tuple(content_digest(ids) for ids in prior),
        prior_lengths=tuple(len(ids) for ids in prior),
    )
    key = ChunkKey.of(token_ids, fingerprint=b"m", born_prefix=born, salt=b"s")
    return Resident(key, stats, np.empty(0, np.int32), 0, is_exact=exact)


def prompt_of(
    chunks: list[tuple[int, ...]],
    *,
    head: tuple[int, ...] = HEAD,
    history: tuple[int, ...] = (),
    question: tuple[int, ...] = (90, 91),
    canonical: bool = True,
) -> Prompt:
    pieces = [(SpanKind.HEAD, head), *[(SpanKind.CHUNK, ids) for ids in chunks]]
    pieces += [(SpanKind.HISTORY, history), (SpanKind.QUESTION, question)]
    spans, start = [], 0
    for kind, ids in pieces:
        if ids:
            spans.append(Span(kind, start, ids))
            start += len(ids)
    return Prompt(tuple(spans), head_is_canonical=canonical)


@dataclass(frozen=True)
class Case:
    prompt: Prompt
    records: dict[int, Resident]
    prefix_tokens: int
    exact_only: bool


# few different chunks, so that duplicates are common; one of a single token
chunk_ids = st.sampled_from([(10,), (11, 12), (13, 14, 15, 16), (17,) * 7])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    chunks = draw(st.lists(chunk_ids, max_size=5))
    prompt = prompt_of(
        chunks,
        history=draw(st.sampled_from([(), (80, 81)])),
        canonical=draw(st.booleans()),
    )
    records = {}
    for index, span in enumerate(prompt.spans):
        if span.kind is SpanKind.CHUNK and draw(st.booleans()):
            prior = draw(st.sampled_from([(), (), ((11, 12),)]))
            records[index] = resident_of(span.token_ids, prior)
    prefix = draw(st.integers(0, prompt.num_tokens - 1))
    return Case(prompt, records, prefix, draw(st.booleans()))


def plan_of(case: Case, budget: float = 0.5) -> RepairPlan:
    return make_plan(
        case.prompt, case.prefix_tokens, case.records, exact_only=case.exact_only, budget=budget
    )


def twin(case: Case) -> tuple[list[str], list[bool]]:
    """Where each row comes from, and whether its record stands where it was born."""
    sources, exact = [], []
    for index, span in enumerate(case.prompt.spans):
        record = case.records.get(index)
        at_home = (
            record is not None
            and case.prompt.head_is_canonical
            and index == 1
            and record.stats.prior_digests == ()
        )
        for position in range(span.start, span.end):
            if position < case.prefix_tokens:
                sources.append("prefix")
            elif record is not None and (at_home or not case.exact_only):
                sources.append("placed")
            else:
                sources.append("computed")
            exact.append(sources[-1] != "placed" or at_home)
    return sources, exact


@given(case=cases())
@settings(deadline=None, max_examples=300)
def test_every_row_has_one_source_and_it_is_the_twins(case: Case) -> None:
    plan = plan_of(case)
    sources, exact = twin(case)
    assert plan.num_tokens == case.prompt.num_tokens == len(sources)
    assert tuple(p.span for p in plan.spans) == case.prompt.spans
    for p in plan.spans:
        here = sources[p.span.start : p.span.end]
        assert (p.prefix, p.placed, p.computed) == tuple(
            here.count(s) for s in ("prefix", "placed", "computed")
        )
        assert p.approximate == (not all(exact[p.span.start : p.span.end]))
    assert plan.missing == tuple(i for i, s in enumerate(sources) if s == "computed")
    assert len(plan.missing) + sum(p.prefix + p.placed for p in plan.spans) == plan.num_tokens
    first_wrong = exact.index(False) if False in exact else len(exact)
    assert plan.exact_until == first_wrong
    # what may be repaired is exactly what was placed away from home
    reusable = [i for chunk in plan.task.chunks for i in range(chunk.start, chunk.start
                + chunk.num_tokens)]  # fmt: skip
    assert reusable == [i for i, right in enumerate(exact) if not right]
    assert plan.task.reusable_rows == len(reusable)


@given(case=cases())
@settings(deadline=None, max_examples=100)
def test_a_reused_chunk_knows_everything_that_precedes_it(case: Case) -> None:
    plan = plan_of(case)
    by_start = {p.span.start + p.prefix: i for i, p in enumerate(plan.spans) if p.approximate}
    assert [c.start for c in plan.task.chunks] == sorted(by_start)
    for chunk in plan.task.chunks:
        index = by_start[chunk.start]
        before = [s for s in case.prompt.spans[:index] if s.kind is SpanKind.CHUNK]
        assert chunk.prior_digests == tuple(content_digest(s.token_ids) for s in before)
        assert chunk.prior_lengths == tuple(len(s) for s in before)
        assert chunk.first_row + chunk.num_tokens == len(case.prompt.spans[index])
        assert chunk.stats is case.records[index].stats


@given(case=cases())
@settings(deadline=None, max_examples=100)
def test_exact_only_leaves_nothing_to_repair(case: Case) -> None:
    plan = plan_of(Case(case.prompt, case.records, case.prefix_tokens, exact_only=True))
    assert plan.task.chunks == ()
    assert not any(p.approximate for p in plan.spans)
    assert plan.exact_until == plan.num_tokens
    assert weakest([span_rung(p, 0) for p in plan.spans]) is not Rung.REPAIRED


A, B, C = (10, 11, 12, 13), (20, 21, 22), (30, 31, 32, 33, 34)


def rungs(plan: RepairPlan, recomputed: tuple[int, ...] = ()) -> list[Rung]:
    rows = np.array(recomputed, dtype=np.int64)
    return [span_rung(p, len(rows_in(p, rows))) for p in plan.spans]


def test_without_records_everything_is_computed() -> None:
    plan = make_plan(prompt_of([A, B]), 0, {}, exact_only=False, budget=0.5)
    assert plan.missing == tuple(range(12))
    assert plan.exact_until == plan.num_tokens == 12
    assert rungs(plan) == [Rung.FULL] * 4


def test_with_all_records_the_first_chunk_is_exact_and_the_others_need_repair() -> None:
    prompt = prompt_of([A, B, C])
    records = {1: resident_of(A), 2: resident_of(B), 3: resident_of(C)}
    plan = make_plan(prompt, 0, records, exact_only=False, budget=0.5)
    assert plan.missing == (0, 1, 2, 15, 16)
    assert plan.exact_until == 3 + len(A)
    assert [c.start for c in plan.task.chunks] == [7, 10]
    assert plan.task.budget == 0.5
    assert rungs(plan) == [Rung.FULL, Rung.EXACT, Rung.REPAIRED, Rung.REPAIRED, Rung.FULL]


@pytest.mark.parametrize(
    ("prompt", "record"),
    [
        pytest.param(prompt_of([A], canonical=False), resident_of(A), id="another head"),
        pytest.param(prompt_of([A], head=()), resident_of(A), id="no head"),
        pytest.param(prompt_of([A]), resident_of(A, prior=(B,)), id="born after another chunk"),
        pytest.param(prompt_of([A]), resident_of(A, exact=False), id="rounded to int8"),
    ],
)
def test_a_first_chunk_that_is_not_where_it_was_born_is_approximate(
    prompt: Prompt, record: Resident
) -> None:
    index = next(i for i, s in enumerate(prompt.spans) if s.kind is SpanKind.CHUNK)
    plan = make_plan(prompt, 0, {index: record}, exact_only=False, budget=0.5)
    assert plan.spans[index].approximate
    assert plan.exact_until == prompt.spans[index].start
    strict = make_plan(prompt, 0, {index: record}, exact_only=True, budget=0.5)
    assert strict.spans[index].placed == 0
    assert strict.spans[index].computed == len(A)


def test_a_part_of_a_passage_is_where_it_was_born_nowhere() -> None:
    """Row 0 of its record stands at the head's end; its part does not, though nothing precedes."""
    passage = (11, 12, 13, 14, 15, 16)
    part = Span(SpanKind.CHUNK, 3, passage[2:], passage_ids=passage, first_row=2)
    head, question = Span(SpanKind.HEAD, 0, HEAD), Span(SpanKind.QUESTION, 7, (90, 91))
    prompt = Prompt((head, part, question), head_is_canonical=True)
    plan = make_plan(prompt, 4, {1: resident_of(passage)}, exact_only=False, budget=0.5)
    assert plan.spans[1] == SpanPlan(part, prefix=1, placed=3, approximate=True)
    assert plan.exact_until == 4 and plan.first_reused == 4
    (reused,) = plan.task.chunks
    assert (reused.start, reused.num_tokens, reused.first_row) == (4, 3, 3)
    exact = make_plan(prompt, 4, {1: resident_of(passage)}, exact_only=True, budget=0.5)
    assert exact.missing == (4, 5, 6, 7, 8) and not exact.task.chunks


def test_a_chunk_that_comes_twice_is_exact_once() -> None:
    record = resident_of(A)
    plan = make_plan(prompt_of([A, A]), 0, {1: record, 2: record}, exact_only=False, budget=0.5)
    assert [p.approximate for p in plan.spans] == [False, False, True, False]
    (again,) = plan.task.chunks
    assert again.prior_digests == (content_digest(A),)
    assert rungs(plan)[1:3] == [Rung.EXACT, Rung.REPAIRED]


def test_a_chunk_that_was_computed_between_reused_ones_is_full_and_shares_nothing() -> None:
    plan = make_plan(
        prompt_of([A, B, C]),
        0,
        {1: resident_of(A), 2: resident_of(B)},
        exact_only=False,
        budget=0.5,
    )
    assert plan.exact_until == 7  # C was computed, but over B's approximate rows
    assert rungs(plan)[1:4] == [Rung.EXACT, Rung.REPAIRED, Rung.FULL]


@pytest.mark.parametrize("inside", [1, 2])
def test_a_prefix_that_ends_inside_a_chunk_leaves_the_rest_of_it_to_its_record(inside: int) -> None:
    prompt = prompt_of([A, B])
    prefix = prompt.spans[2].start + inside
    plan = make_plan(
        prompt, prefix, {1: resident_of(A), 2: resident_of(B)}, exact_only=False, budget=1
    )
    assert plan.spans[1] == SpanPlan(prompt.spans[1], 4, 0, approximate=False)
    assert plan.spans[2] == SpanPlan(prompt.spans[2], inside, 3 - inside, approximate=True)
    assert plan.exact_until == prefix
    (chunk,) = plan.task.chunks
    assert (chunk.start, chunk.num_tokens, chunk.first_row) == (prefix, 3 - inside, inside)
    assert plan.missing == (10, 11)


def test_a_prefix_that_ends_with_a_chunk_makes_its_record_needless() -> None:
    plan = make_plan(
        prompt_of([A, B]), 10, {1: resident_of(A), 2: resident_of(B)}, exact_only=False, budget=1
    )
    assert plan.task.chunks == ()
    assert plan.exact_until == plan.num_tokens
    assert rungs(plan) == [Rung.EXACT, Rung.EXACT, Rung.EXACT, Rung.FULL]


def test_a_reused_chunk_is_full_once_all_its_rows_were_computed_here() -> None:
    prompt = prompt_of([A, B])
    records = {1: resident_of(A), 2: resident_of(B)}
    plan = make_plan(prompt, 0, records, exact_only=False, budget=1)
    assert rungs(plan, (7, 9))[2] is Rung.REPAIRED
    assert rungs(plan, (7, 8, 9))[2] is Rung.FULL
    # with a row of the exact prefix in it, it was not all computed
    plan = make_plan(prompt, 8, records, exact_only=False, budget=1)
    assert rungs(plan, (8,))[2] is Rung.REPAIRED
    assert rungs(plan, (8, 9))[2] is Rung.EXACT


def test_rows_in_a_span_are_counted_to_its_last_position_and_no_further() -> None:
    plan = make_plan(prompt_of([A, B]), 0, {}, exact_only=False, budget=1)
    positions = np.array([2, 3, 6, 7, 9], dtype=np.int64)
    assert [rows_in(p, positions) for p in plan.spans] == [[2], [3, 6], [7, 9], []]


@given(rungs=st.lists(st.sampled_from(list(Rung)), max_size=6))
@settings(deadline=None, max_examples=100)
def test_an_answer_is_as_exact_as_the_least_exact_of_its_spans(rungs: list[Rung]) -> None:
    ladder = [Rung.FULL, Rung.EXACT, Rung.REPAIRED]
    assert weakest(rungs) is ladder[max((ladder.index(r) for r in rungs), default=0)]


class Priced(RepairPolicy):
    """A policy that is only asked what its scoring costs."""

    name = "priced"

    def __init__(self, needs: Scoring, keeps: float = 0.0) -> None:
        self.needs = needs
        self.probe_keeps = keeps


@given(case=cases(), kept=st.integers(0, 6))
@settings(deadline=None, max_examples=100)
def test_scoring_costs_the_rows_and_layers_that_run_twice(case: Case, kept: int) -> None:
    plan, layers = plan_of(case), 8
    of_chunks = behind = 0
    if plan.task.chunks:
        for position in plan.missing:
            if position < plan.first_reused:
                continue
            asks = any(
                p.span.kind in {SpanKind.HISTORY, SpanKind.QUESTION}
                and p.span.start <= position < p.span.end
                for p in plan.spans
            )
            behind += asks
            of_chunks += not asks
    asked = with_scoring(plan, Priced(Scoring.QUESTION, kept / layers), layers).task
    assert asked.scoring_rows == pytest.approx(of_chunks + behind * (1 - kept / layers))
    assert asked.row_cost == 1.0 and not asked.scoring_is_dear
    deviating = with_scoring(plan, Priced(Scoring.DEVIATION), layers).task
    assert deviating.cost(deviating.reusable_rows) == pytest.approx(deviating.reusable_rows)
    assert deviating.scoring_rows == pytest.approx(deviating.reusable_rows / 4)
    unscored = with_scoring(plan, Priced(Scoring.NONE), layers).task
    assert unscored == replace(plan.task, num_layers=layers)


@given(case=cases(), most=st.sampled_from([0.1, 0.3, 0.9]))
@settings(deadline=None, max_examples=200)
def test_scoring_above_its_share_of_the_budget_is_left_out(case: Case, most: float) -> None:
    plan, policy = plan_of(case), Priced(Scoring.QUESTION)
    whole = with_scoring(plan, policy, 8).task
    policy.max_scoring_share = most
    task = with_scoring(plan, policy, 8).task
    limit = most * task.budget * task.reusable_rows
    if task.budget < 1.0 and whole.scoring_rows > limit:
        assert task.scoring_is_dear and task.needs_no_scores
        assert task.scoring_rows == 0.0  # not looked, not paid
    else:
        assert task == whole
    promised = replace(plan, task=replace(plan.task, max_residual=0.2))
    assert not with_scoring(promised, policy, 8).task.scoring_is_dear
