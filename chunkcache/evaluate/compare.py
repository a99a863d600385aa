"""One question answered twice, by full recompute and from the cache, and the drift between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.evaluate.drift import Drift, drift_between
from chunkcache.protocol import AnswerFinished
from chunkcache.service.asking import Measure

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.engine.outcome import Outcome
    from chunkcache.protocol import AnswerEvent, AnswerRequest
    from chunkcache.service import ChunkCache
    from chunkcache.store.codec.base import Codec


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A full recompute: the answer, and the logits at each of its tokens."""

    answer: AnswerFinished
    outcome: Outcome


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """A cached answer beside its reference."""

    answer: AnswerFinished
    outcome: Outcome
    drift: Drift
    same_text: bool


def full_answer(
    cache: ChunkCache, request: AnswerRequest, on_event: Callable[[AnswerEvent], None] | None = None
) -> Reference:
    """Answer with nothing reused. `on_event` sees every event as it comes (for streaming)."""
    options = request.options.model_copy(update={"mode": "full"})
    answer, outcome = _run(
        cache, request.model_copy(update={"options": options}), Measure(keep_logits=True), on_event
    )
    return Reference(answer, outcome)


def cached_answer(
    cache: ChunkCache,
    request: AnswerRequest,
    reference: Reference,
    on_event: Callable[[AnswerEvent], None] | None = None,
    *,
    takes_prefix: bool = True,
    codec: Codec | None = None,
) -> Comparison:
    """Answer as the request asks, and measure drift along the reference's own tokens.

    The cost of measuring (one pass over the reference's tokens) falls after the first token's
    time was taken. Without `takes_prefix` the outcome does not depend on what was asked before;
    the head is then computed, as it is for the reference. `codec`: see `Measure.reads_through`.
    """
    measure = Measure(
        forced_ids=reference.outcome.token_ids,
        takes_no_prefix=not takes_prefix,
        leaves_no_prefix=True,
        reads_through=codec,
    )
    answer, outcome = _run(cache, request, measure, on_event)
    assert reference.outcome.step_logits is not None and outcome.step_logits is not None
    drift = drift_between(reference.outcome.step_logits, outcome.step_logits)
    return Comparison(answer, outcome, drift, answer.text == reference.answer.text)


def lone_answer(
    cache: ChunkCache, request: AnswerRequest, codec: Codec | None = None
) -> AnswerFinished:
    """Answer without taking an exact prefix or leaving one; chunk records are stored as ever."""
    measure = Measure(takes_no_prefix=True, leaves_no_prefix=True, reads_through=codec)
    answer, _ = _run(cache, request, measure)
    return answer


def _run(
    cache: ChunkCache,
    request: AnswerRequest,
    measure: Measure,
    on_event: Callable[[AnswerEvent], None] | None = None,
) -> tuple[AnswerFinished, Outcome]:
    # what is compared must be one prompt: an order that follows earlier answers would change it
    options = request.options.model_copy(update={"order": "relevance"})
    handle = cache.start(request.model_copy(update={"options": options}), measure=measure)
    finished = None
    for event in handle.events():
        if on_event is not None:
            on_event(event)
        if isinstance(event, AnswerFinished):
            finished = event
    assert finished is not None and handle.outcome is not None
    return finished, handle.outcome
