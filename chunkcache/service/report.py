"""From what the engine did to what the response says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.chunk import SpanKind
from chunkcache.engine.planner import rows_in, span_rung, weakest
from chunkcache.protocol import Citation, Report, SpanReport, Timings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chunkcache.chunk import Chunk
    from chunkcache.engine.outcome import Outcome
    from chunkcache.engine.planner import SpanPlan


def citation(chunk: Chunk) -> Citation:
    """What the reader needs to find the passage again."""
    return Citation(
        chunk_id=chunk.chunk_id,
        document_id=chunk.document_id,
        title=chunk.title,
        url=chunk.url,
        start_char=chunk.start_char,
        end_char=chunk.end_char,
        text=chunk.text,
        score=chunk.score,
        collection=chunk.collection,
        headings=list(chunk.headings),
    )


def build_report(
    outcome: Outcome,
    *,
    policy: str,
    budget: float,
    tiers: Mapping[int, str],
    misses: Mapping[int, str],
    codecs: Mapping[int, str],
    timings: Timings,
    notes: Sequence[str],
    predicted_drift: float | None,
) -> Report:
    """The `chunkcache` object. `tiers`, `misses` and `codecs` are by span index.

    A chunk that was in no tier was computed on its own before the prompt ran; its rows count as
    computed, except those repaired afterwards, which ran twice and count as recomputed.
    """
    spans = [
        _span_report(plan, outcome, tiers.get(index), misses.get(index), codecs.get(index))
        for index, plan in enumerate(outcome.plan.spans)
    ]
    return Report(
        rung=weakest([span.rung for span in spans]),
        policy=policy,
        budget=budget,
        prompt_tokens=outcome.plan.num_tokens,
        reused_tokens=sum(s.reused for s in spans),
        recomputed_tokens=sum(s.recomputed for s in spans),
        computed_tokens=sum(s.computed for s in spans),
        probe_rows=outcome.probe_rows,
        cost_ratio=outcome.cost_ratio,
        predicted_drift=predicted_drift,
        spans=spans,
        timings=timings,
        notes=list(notes),
    )


def _span_report(
    plan: SpanPlan, outcome: Outcome, tier: str | None, miss: str | None, codec: str | None
) -> SpanReport:
    recomputed = rows_in(plan, outcome.recomputed)
    fresh = plan.placed if miss is not None else 0
    span = plan.span
    if not plan.placed or miss is not None:  # no row of its record was used
        tier = "prefix" if plan.prefix else None
    if plan.prefix == len(span):
        miss = None  # no row of the record was needed
    return SpanReport(
        kind=span.kind,
        start=span.start,
        tokens=len(span),
        rung=span_rung(plan, len(recomputed)),
        reused=plan.prefix + plan.placed - max(fresh, len(recomputed)),
        recomputed=len(recomputed),
        computed=plan.computed + max(0, fresh - len(recomputed)),
        tier=tier,
        miss=miss,
        codec=codec if plan.placed > len(recomputed) else None,
        chunk_id=span.chunk.chunk_id if span.chunk else None,
        document_id=span.chunk.document_id if span.chunk else None,
        matched=span.passage_ids is not None,
        first_row=span.first_row,
        title=span.chunk.title if span.kind is SpanKind.CHUNK and span.chunk else None,
        recomputed_positions=recomputed,
    )
