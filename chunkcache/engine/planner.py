"""Spans + what the caches hold → a frozen plan: reuse, compute, repair. Pure, no torch.

Exactness flows left to right. The prompt is exact until the first chunk whose record was born in
another context; from there on reused rows need repair, and no page is registered as exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chunkcache.chunk import Rung, SpanKind, content_digest
from chunkcache.repair.base import DEVIATION_LAYERS, RepairTask, ReusedChunk, Scoring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from chunkcache.chunk import Span
    from chunkcache.engine.prompt import Prompt
    from chunkcache.engine.resident import Resident
    from chunkcache.repair import RepairPolicy


@dataclass(frozen=True, slots=True)
class SpanPlan:
    """What happens to one span: the first `prefix` rows, then `placed` rows or computed rows."""

    span: Span
    prefix: int  # rows held by the exact-prefix cache
    placed: int  # rows read from a chunk's pages, after the prefix rows
    approximate: bool  # the record was born in another context

    @property
    def computed(self) -> int:
        """Rows that no cache holds."""
        return len(self.span) - self.prefix - self.placed


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """Everything decided before the first row runs."""

    spans: tuple[SpanPlan, ...]
    missing: tuple[int, ...]  # positions whose rows must be computed
    exact_until: int  # positions below have exact KV once the missing rows have run
    task: RepairTask

    @property
    def num_tokens(self) -> int:
        """Length of the prompt."""
        return self.spans[-1].span.end

    @property
    def first_reused(self) -> int:
        """Where the first row that needs repair is; the prompt's length without any."""
        return self.task.chunks[0].start if self.task.chunks else self.num_tokens

    @property
    def chunks_end(self) -> int:
        """Where the last chunk ends: from there on are history and question."""
        return max((p.span.end for p in self.spans if p.span.kind is SpanKind.CHUNK), default=0)


def make_plan(
    prompt: Prompt,
    prefix_tokens: int,
    residents: Mapping[int, Resident],
    *,
    exact_only: bool,
    budget: float,
    max_residual: float | None = None,
) -> RepairPlan:
    """Decide what every span gets.

    Args:
        prompt: the spans, covering all positions.
        prefix_tokens: leading tokens found in the exact-prefix cache.
        residents: chunks on the device by span index.
        exact_only: use a record only where it is exact.
        budget: share of the approximate rows that may be recomputed.
        max_residual: stop earlier, see `RepairTask`.
    """
    plans: list[SpanPlan] = []
    missing: list[int] = []
    reused: list[ReusedChunk] = []
    prior: list[tuple[bytes, int]] = []
    exact_until, exact = prompt.num_tokens, True
    for index, span in enumerate(prompt.spans):
        prefix = min(len(span), max(0, prefix_tokens - span.start))
        resident = residents.get(index)
        in_place = resident is not None and _is_in_place(prompt, index, resident)
        placed = 0
        if resident is not None and (in_place or not exact_only):
            placed = len(span) - prefix
        approximate = placed > 0 and not in_place and resident is not None
        if approximate and resident is not None:
            if exact:
                exact_until, exact = span.start + prefix, False
            reused.append(_reused(span, prefix, resident, prior))
        if not placed:
            missing.extend(range(span.start + prefix, span.end))
        if span.kind is SpanKind.CHUNK:
            prior.append((content_digest(span.token_ids), len(span)))
        plans.append(SpanPlan(span, prefix, placed, approximate))
    task = RepairTask(tuple(reused), budget, max_residual=max_residual)
    return RepairPlan(tuple(plans), tuple(missing), exact_until, task)


def _is_in_place(prompt: Prompt, index: int, resident: Resident) -> bool:
    """Whether a chunk born right after the canonical head stands there again, unrounded."""
    opens_documents = (
        index > 0
        and prompt.spans[index].kind is SpanKind.CHUNK
        and prompt.spans[index - 1].kind is SpanKind.HEAD
    )
    if not resident.is_exact or prompt.spans[index].passage_ids is not None:
        return False
    return prompt.head_is_canonical and opens_documents and not resident.stats.prior_digests


def _reused(
    span: Span, prefix: int, resident: Resident, prior: Sequence[tuple[bytes, int]]
) -> ReusedChunk:
    return ReusedChunk(
        start=span.start + prefix,
        num_tokens=len(span) - prefix,
        first_row=span.first_row + prefix,
        stats=resident.stats,
        prior_digests=tuple(digest for digest, _ in prior),
        prior_lengths=tuple(length for _, length in prior),
    )


def with_scoring(plan: RepairPlan, policy: RepairPolicy, num_layers: int) -> RepairPlan:
    """The same plan with the price of scoring taken from its budget.

    To score, the question's rows run once more, but for the layers that `probe_keeps` of the policy
    keeps, and so do missing chunks that see a row to repair. Deviation runs every row to repair
    through its first layers; those chosen go on from there, and so do missing rows.

    Scoring that would take more than the policy's `max_scoring_share` of the budget is not done,
    unless a residual was promised or everything is repaired anyway.
    """
    task = replace(plan.task, num_layers=num_layers)
    priced = task
    if policy.needs is Scoring.QUESTION and task.chunks:
        seeing = [p for p in plan.missing if p > plan.first_reused]
        spared = sum(p >= plan.chunks_end for p in seeing) * policy.kept_layers(num_layers)
        priced = replace(task, scoring_rows=len(seeing) - spared / num_layers)
    elif policy.needs is Scoring.DEVIATION:
        share = min(1.0, DEVIATION_LAYERS / num_layers)
        priced = replace(task, scoring_rows=task.reusable_rows * share, row_cost=1.0 - share)
    most = policy.max_scoring_share * task.budget * task.reusable_rows
    has_choice = policy.max_scoring_share < 1.0 and task.max_residual is None and task.budget < 1.0
    if has_choice and priced.scoring_rows > most:
        priced = replace(task, scoring_is_dear=True)
    return replace(plan, task=priced)


def span_rung(plan: SpanPlan, recomputed: int) -> Rung:
    """The rung a span ends on, once `recomputed` of its placed rows have been recomputed."""
    if plan.approximate and recomputed < plan.placed:
        return Rung.REPAIRED
    if plan.prefix or (plan.placed and not plan.approximate):
        return Rung.EXACT
    return Rung.FULL


def weakest(rungs: Sequence[Rung]) -> Rung:
    """The rung of a whole answer: the least exact one that any span got.

    Repaired if any span is, else exact if any is, else full; full, too, for no spans at all.
    """
    for rung in (Rung.REPAIRED, Rung.EXACT):
        if rung in rungs:
            return rung
    return Rung.FULL


def rows_in(plan: SpanPlan, positions: np.ndarray) -> list[int]:
    """Those of `positions` that fall into the span."""
    inside = (positions >= plan.span.start) & (positions < plan.span.end)
    return [int(p) for p in positions[inside]]
