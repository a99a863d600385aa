"""One question, from retrieved chunks to a stream of events."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from chunkcache.chunk import Rung, SpanKind
from chunkcache.engine.outcome import Outcome
from chunkcache.errors import Cancelled, NotFinite
from chunkcache.forms import CallForm
from chunkcache.protocol import (
    AnswerDelta,
    AnswerEvent,
    AnswerFinished,
    AnswerStarted,
    Choice,
    ChosenToken,
    Timings,
    TokenLogprob,
)
from chunkcache.service.calls import CallReader, read_call
from chunkcache.service.report import build_report, citation
from chunkcache.store.cost import Planned, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from chunkcache.chunk import Chunk
    from chunkcache.engine.generation import Generation
    from chunkcache.engine.outcome import Delta, TokenChances, Written
    from chunkcache.engine.prompt import Prompt
    from chunkcache.metrics import Metrics
    from chunkcache.protocol import AnswerRequest, Report
    from chunkcache.service.calibration import Calibration
    from chunkcache.service.runtime import Runtime

log = structlog.get_logger(__name__)

LOWEST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's own floor


@dataclass(slots=True)
class Preparation:
    """What was found out before the engine got the prompt."""

    prompt: Prompt
    chunks: Sequence[Chunk]
    policy: str
    budget: float
    started_at: float
    retrieve_ms: float
    load_ms: float = 0.0
    rows: Rows = field(default_factory=Rows)  # that run whatever was found
    planned: Planned | None = None  # to the first token, from the look-up on
    from_memory: bool = False  # every chunk was on the device
    is_stored: bool = False  # or in a tier below it
    tiers: dict[int, str] = field(default_factory=dict)  # by span index
    misses: dict[int, str] = field(default_factory=dict)
    codecs: dict[int, str] = field(default_factory=dict)  # lossy ones that chunks came through
    notes: list[str] = field(default_factory=list)
    calibration: Calibration | None = None
    on_exact: Callable[[], None] = lambda: None  # the answer is exact: its prefix is shared now


class AnswerHandle:
    """A running answer. `events()` is read by one thread; `cancel()` may be called from any.

    Args:
        on_end: called once, in the thread that reads the events, with the outcome (`ok`,
            `cancelled`, `error`) and the last event if there was one.
    """

    def __init__(
        self,
        generation: Generation,
        preparation: Preparation,
        request: AnswerRequest,
        runtime: Runtime,
        metrics: Metrics,
        on_end: Callable[[str, AnswerFinished | None], None] | None = None,
    ) -> None:
        self._generation = generation
        self._preparation = preparation
        self._engine = runtime.engine
        self._doubt = runtime.doubt
        self._cost = runtime.store.cost
        self._vocabulary = runtime.vocabulary
        self._calls: list[CallReader] | None = None  # by choice, where the answer is a call
        if isinstance(request.form, CallForm):
            self._calls = [CallReader() for _ in range(request.sampling.n)]
        self._generated = [0] * request.sampling.n  # tokens so far, by choice
        self._wants_logprobs = request.sampling.logprobs is not None
        self._metrics = metrics
        self._on_end = on_end
        self.outcome: Outcome | None = None  # after the last event; in-process callers only

    @property
    def prompt(self) -> Prompt:
        """The prompt as laid out: spans of token ids."""
        return self._preparation.prompt

    def cancel(self) -> None:
        """Stop at the next step; `events()` raises `Cancelled`. Idempotent."""
        self._engine.cancel(self._generation)

    def events(self) -> Iterator[AnswerEvent]:
        """Started, deltas, finished. Blocks; closing the iterator early cancels the answer.

        Raises:
            Cancelled, ShuttingDown, ChunkCacheError: there will be no (more) answer.
        """
        citations = [citation(chunk) for chunk in self._preparation.chunks]
        outcome = "error"
        finished: AnswerFinished | None = None
        try:
            yield AnswerStarted(citations=citations, prompt_tokens=self.prompt.num_tokens)
            for event in self._generation.events():
                if isinstance(event, Outcome):
                    outcome = "ok"
                    finished = self._finished(event)
                    yield finished
                elif (delta := self._delta(event)) is not None:
                    yield delta
        except Cancelled:
            outcome = "cancelled"
            raise
        except NotFinite:
            self._doubt(self._generation.chunk_keys)
            raise
        except GeneratorExit:
            outcome = outcome if outcome == "ok" else "cancelled"
            raise
        finally:
            self.cancel()
            self._metrics.requests.labels(outcome).inc()
            if self._on_end is not None:
                self._on_end(outcome, finished)

    def _delta(self, delta: Delta) -> AnswerDelta | None:
        """None: a part of a call's name, of which there is nothing to say yet."""
        text, call = delta.text, None
        logprobs = self._logprobs(delta.chances)
        self._generated[delta.index] = delta.num_tokens
        if self._calls is not None:
            reader = self._calls[delta.index]
            text, call = reader.push(text), reader.name
            if call is None and not logprobs:
                return None
        return AnswerDelta(
            text=text, completion_tokens=sum(self._generated), index=delta.index, call=call,
            logprobs=logprobs,
        )  # fmt: skip

    def _choice(self, written: Written) -> Choice:
        is_call = self._calls is not None
        return Choice(
            text="" if is_call else written.text,
            finish_reason="stop" if written.finish_reason == "stop" else "length",
            call=read_call(written.text) if is_call else None,
            logprobs=self._logprobs(written.chances),
        )

    def _logprobs(self, chances: Sequence[TokenChances]) -> list[ChosenToken] | None:
        if not self._wants_logprobs:
            return None
        return [
            ChosenToken(
                **self._named(token.token_id, token.logprob),
                top_logprobs=[TokenLogprob(**self._named(*other)) for other in token.top],
            )
            for token in chances
        ]

    def _named(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._vocabulary.token_bytes(token_id)
        try:
            text = raw.decode()
        except UnicodeDecodeError:  # part of a character: shown as OpenAI does
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return {"token": text, "logprob": max(logprob, LOWEST_LOGPROB), "bytes": list(raw)}

    def _finished(self, outcome: Outcome) -> AnswerFinished:
        self.outcome = outcome
        report = self._report(outcome)
        if report.rung is not Rung.REPAIRED:
            self._preparation.on_exact()
        metrics = self._metrics
        metrics.ttft_seconds.labels(report.rung.value).observe(report.timings.ttft_ms / 1e3)
        metrics.request_seconds.observe(report.timings.total_ms / 1e3)
        generated = sum(len(choice.token_ids) for choice in outcome.choices)
        metrics.generated.inc(generated)
        metrics.tokens.labels("reused").inc(report.reused_tokens)
        metrics.tokens.labels("recomputed").inc(report.recomputed_tokens)
        metrics.tokens.labels("computed").inc(report.computed_tokens)
        first, *others = [self._choice(written) for written in outcome.choices]
        return AnswerFinished(
            **dict(first),
            others=others,
            completion_tokens=generated,
            report=report,
            citations=[citation(chunk) for chunk in self._preparation.chunks],
        )

    def _report(self, outcome: Outcome) -> Report:
        before = self._preparation
        # from the caller's first instruction to the engine's first: retrieval, prompt, look-up
        lead_ms = (self._generation.submitted_at - before.started_at) * 1e3
        lost = self._generation.lost
        self._compare_with_plan(outcome)
        return build_report(
            outcome,
            policy=before.policy,
            budget=before.budget,
            tiers={i: tier for i, tier in before.tiers.items() if i not in lost},
            misses={**before.misses, **lost},
            codecs={i: codec for i, codec in before.codecs.items() if i not in lost},
            notes=[*before.notes, *_scoring_note(outcome)],
            predicted_drift=_predicted_drift(before.calibration, outcome),
            timings=Timings(
                queue_ms=outcome.queue_ms,
                retrieve_ms=before.retrieve_ms,
                layout_ms=lead_ms - before.retrieve_ms - before.load_ms,
                load_ms=before.load_ms,
                probe_ms=outcome.probe_ms,
                wait_ms=outcome.wait_ms,
                compute_ms=outcome.compute_ms,
                ttft_ms=lead_ms + outcome.ttft_ms,
                planned_ms=before.planned.seconds * 1e3 if before.planned else None,
                total_ms=lead_ms + outcome.total_ms,
            ),
        )

    def _compare_with_plan(self, outcome: Outcome) -> None:
        """Tell how long it took from the look-up to the first token, beside what was planned."""
        before = self._preparation
        actual_ms = before.load_ms + outcome.ttft_ms - outcome.queue_ms
        if before.from_memory:
            self._cost.observe_prompt(before.rows, actual_ms / 1e3)
        if before.planned:
            if before.is_stored and not self._generation.lost:
                self._cost.observe_overlap(before.planned, actual_ms / 1e3)
            planned_ms = before.planned.seconds * 1e3
            self._metrics.planned_ratio.observe(actual_ms / planned_ms)
            log.info("prompt_planned", planned_ms=round(planned_ms), actual_ms=round(actual_ms))


def _scoring_note(outcome: Outcome) -> list[str]:
    task = outcome.plan.task
    if not (task.scoring_is_dear and task.max_rows):
        return []
    return [
        "in so short a prompt a look at what the question reads would take too much of the budget: "
        "the first rows of the passages were repaired instead"
    ]


def _predicted_drift(calibration: Calibration | None, outcome: Outcome) -> float | None:
    if outcome.residual == 0.0:
        return 0.0  # nothing is approximate
    if calibration is None or outcome.residual is None:
        return None
    return calibration.curve.drift_at(outcome.residual)


def chunk_spans(prompt: Prompt) -> list[int]:
    """Indices of the chunk spans, in prompt order."""
    return [i for i, span in enumerate(prompt.spans) if span.kind is SpanKind.CHUNK]


def elapsed_ms(since: float) -> float:
    """Milliseconds since a `time.perf_counter()` reading."""
    return (time.perf_counter() - since) * 1e3
