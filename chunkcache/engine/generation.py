"""Answering a prompt: missing rows, probe, repair, then one token a step."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chunkcache.chunk import SpanKind
from chunkcache.engine.observe import DeviationScores, QuestionScores
from chunkcache.engine.planner import RepairPlan, make_plan
from chunkcache.engine.request import Pass, Placement, Request
from chunkcache.engine.sample import Sampler
from chunkcache.engine.text import TextStream
from chunkcache.repair import Scoring
from chunkcache.repair.select import reusable_positions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from chunkcache.chunk import ChunkKV
    from chunkcache.engine.model import DecoderModel
    from chunkcache.engine.prompt import Prompt
    from chunkcache.errors import ChunkCacheError
    from chunkcache.protocol import Sampling
    from chunkcache.repair import RepairPolicy


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A finished generation and everything a report is made of."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str  # "stop" or "length"
    plan: RepairPlan
    recomputed: np.ndarray  # int64 positions of reused rows that were computed again
    probe_rows: int  # rows run only to choose what to recompute
    cost_ratio: float  # rows × layers run for the prompt ÷ rows × layers of full prefill
    first_logits: torch.Tensor  # fp32 [vocab] on CPU: what the first token was drawn from
    queue_ms: float
    place_ms: float
    probe_ms: float
    compute_ms: float
    ttft_ms: float
    total_ms: float


class Generation(Request):
    """One answer. The caller reads `events()`; the engine thread does everything else."""

    def __init__(
        self,
        prompt: Prompt,
        records: Mapping[int, ChunkKV],
        *,
        policy: RepairPolicy,
        budget: float,
        exact_only: bool,
        sampling: Sampling,
        max_new_tokens: int,
        salt: bytes,
    ) -> None:
        super().__init__(prompt.token_ids, max_new_tokens=max_new_tokens, salt=salt)
        self._prompt = prompt
        self._records = records
        self._policy = policy
        self._budget = budget
        self._exact_only = exact_only
        self._sampling = sampling
        self._max_new_tokens = max_new_tokens
        self._sampler = Sampler(sampling)
        self._mailbox: queue.SimpleQueue[Delta | Outcome | ChunkCacheError] = queue.SimpleQueue()
        self._plan: RepairPlan | None = None
        self._recomputed = np.empty(0, dtype=np.int64)
        self._scores: QuestionScores | DeviationScores | None = None
        self._probe_rows = 0
        self._cost = 0.0  # prompt rows run, in rows of full depth
        self._probe_ended_at = 0.0
        self._first_token_at = 0.0
        self._first_logits: torch.Tensor | None = None
        self._text: TextStream | None = None
        self._new_ids: list[int] = []

    def events(self) -> Iterator[Delta | Outcome]:
        """Deltas, then the outcome. Blocks; raises the request's error."""
        while True:
            event = self._mailbox.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Outcome):
                return

    def fail(self, error: ChunkCacheError) -> None:
        """Hand the error to whoever reads the events."""
        self._mailbox.put(error)

    # ------------------------------------------------------------ passes

    def begin(self, model: DecoderModel, prefix_tokens: int) -> list[Placement]:
        """Plan, and set the pass that comes first for this policy."""
        self._text = TextStream(model.tokenizer, self._sampling.stop)
        plan = make_plan(
            self._prompt, prefix_tokens, self._records,
            exact_only=self._exact_only, budget=self._budget,
        )  # fmt: skip
        self._plan = plan
        self._probe_ended_at = self.started_at
        missing = np.array(plan.missing, dtype=np.int64)
        needs = self._policy.needs if plan.task.max_rows else Scoring.NONE
        if needs is Scoring.QUESTION:
            question = next(s for s in self._prompt.spans if s.kind is SpanKind.QUESTION)
            self._scores = QuestionScores(plan.num_tokens, question.start)
            self.current = Pass(missing, observer=self._scores)
        elif needs is Scoring.DEVIATION:
            self._scores = DeviationScores(
                plan.num_tokens,
                [(p.span.start, self._records[i]) for i, p in enumerate(plan.spans) if p.placed],
            )
            rows = np.union1d(missing, reusable_positions(plan.task))
            depth = min(DeviationScores.LAYER + 1, model.geometry.num_layers)
            self.current = Pass(rows, self._scores, num_layers=depth, wants_logits=False)
        else:
            self._recomputed = self._policy.choose(plan.task, None)
            self.current = Pass(np.union1d(missing, self._recomputed))
        return [
            Placement(p.span.start + p.prefix, p.prefix, self._records[i])
            for i, p in enumerate(plan.spans)
            if p.placed
        ]

    def advance(self, model: DecoderModel, logits: torch.Tensor | None) -> None:
        """After scoring: choose and repair. After that, and from then on: sample."""
        assert self._plan is not None and self.current is not None
        if self.is_decoding:
            assert logits is not None
            self._take_token(model, logits)
            return
        depth = (self.current.num_layers or model.geometry.num_layers) / model.geometry.num_layers
        self._cost += len(self.current.positions) * depth
        if self._scores is not None:
            scores, self._scores = self._scores.scores(), None
            self._recomputed = self._policy.choose(self._plan.task, scores)
            self._probe_ended_at = time.perf_counter()
            if len(self._recomputed) or logits is None:
                self._probe_rows = len(self.current.positions)
                self.current = Pass(self._repair_rows(was_full_depth=logits is not None))
                return
        assert logits is not None
        if len(self._recomputed) == self._plan.task.reusable_rows:
            self.exact_tokens = self._plan.num_tokens
        else:
            self.exact_tokens = self._plan.exact_until
        self._first_token_at = time.perf_counter()
        self._first_logits = logits.cpu()
        self.is_decoding = True
        self._take_token(model, logits)

    def _repair_rows(self, *, was_full_depth: bool) -> np.ndarray:
        """The chosen rows, and the missing rows that can see one of them."""
        assert self._plan is not None
        missing = np.array(self._plan.missing, dtype=np.int64)
        if was_full_depth:
            missing = missing[missing > self._recomputed.min()]
        return np.union1d(missing, self._recomputed)

    # ------------------------------------------------------------ tokens

    def _take_token(self, model: DecoderModel, logits: torch.Tensor) -> None:
        assert self._text is not None
        token = self._sampler.draw(logits)
        self._new_ids.append(token)
        if token in model.eos_ids:
            self._finish("stop")
            return
        if delta := self._text.push(token):
            self._mailbox.put(Delta(delta))
        if self._text.stopped:
            self._finish("stop")
        elif len(self._new_ids) >= self._max_new_tokens:
            self._finish("length")
        else:
            self.token_ids.append(token)
            if self.exact_tokens == len(self.token_ids) - 1:
                self.exact_tokens += 1
            row = np.array([len(self.token_ids) - 1], dtype=np.int64)
            self.current = Pass(row)

    def _finish(self, reason: str) -> None:
        assert self._text is not None and self._plan is not None
        assert self._first_logits is not None
        if delta := self._text.finish():
            self._mailbox.put(Delta(delta))
            if self._text.stopped:
                reason = "stop"
        self.current = None
        now = time.perf_counter()
        self._mailbox.put(
            Outcome(
                text=self._text.text,
                token_ids=tuple(self._new_ids),
                finish_reason=reason,
                plan=self._plan,
                recomputed=self._recomputed,
                probe_rows=self._probe_rows,
                cost_ratio=self._cost / self._plan.num_tokens,
                first_logits=self._first_logits,
                queue_ms=(self.started_at - self.submitted_at) * 1e3,
                place_ms=self.place_ms,
                probe_ms=(self._probe_ended_at - self.started_at) * 1e3,
                compute_ms=(self._first_token_at - self._probe_ended_at) * 1e3,
                ttft_ms=(self._first_token_at - self.submitted_at) * 1e3,
                total_ms=(now - self.submitted_at) * 1e3,
            )
        )
