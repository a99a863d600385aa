"""Answering a prompt: missing rows, probe, repair, then one token a step."""

from __future__ import annotations

import queue
import time
from enum import Enum, auto
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.chunk import SpanKind
from chunkcache.engine.attention import KeptRows, Logits
from chunkcache.engine.observe import DeviationScores, QuestionScores
from chunkcache.engine.outcome import Delta, Outcome
from chunkcache.engine.planner import make_plan, with_scoring
from chunkcache.engine.request import Pass, Request
from chunkcache.engine.sample import Sampler
from chunkcache.engine.sequence_kv import PlacedChunk
from chunkcache.engine.text import TextStream
from chunkcache.repair import Scoring
from chunkcache.repair.base import DEVIATION_LAYERS
from chunkcache.repair.select import residual, reusable_positions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from chunkcache.engine.chunk_pages import Resident
    from chunkcache.engine.decoder import DecoderModel
    from chunkcache.engine.planner import RepairPlan
    from chunkcache.engine.prompt import Prompt
    from chunkcache.errors import ChunkCacheError
    from chunkcache.protocol import Sampling
    from chunkcache.repair import RepairPolicy
    from chunkcache.repair.base import Step


class Stage(Enum):
    """What the current pass is for."""

    OPENING = auto()  # what comes before the first row to repair; nothing changes it later
    SCORE = auto()  # look before choosing rows to repair
    NARROW = auto()  # missing and repaired rows, up to a layer from which fewer go on
    PROMPT = auto()  # missing and repaired rows; ends in the logits of the first token
    FORCED = auto()  # a given continuation, for its logits only
    DECODE = auto()


class Generation(Request):
    """One answer. The caller reads `events()`; the engine thread does everything else.

    `residents` are the chunks on the device that it may read, by span index, each leased for it.

    With `keep_logits` the outcome has the logits every token was drawn from. With `forced_ids`
    (a continuation to compare with) its logits are those at each of the forced tokens instead; the
    answer itself is then decoded as ever.
    """

    def __init__(
        self,
        prompt: Prompt,
        residents: Mapping[int, Resident],
        *,
        policy: RepairPolicy,
        budget: float,
        exact_only: bool,
        max_residual: float | None = None,
        sampling: Sampling,
        max_new_tokens: int,
        salt: bytes,
        forced_ids: Sequence[int] = (),
        keep_logits: bool = False,
        takes_prefix: bool = True,
        gives_prefix: bool = True,
    ) -> None:
        room = max(max_new_tokens, len(forced_ids))
        super().__init__(
            prompt.token_ids,
            max_new_tokens=room,
            salt=salt,
            takes_prefix=takes_prefix,
            gives_prefix=gives_prefix,
        )
        self._prompt = prompt
        self._residents = residents
        self.leases = list(residents.values())
        self._policy = policy
        self._budget = budget
        self._max_residual = max_residual
        self._exact_only = exact_only
        self._sampling = sampling
        self._max_new_tokens = max_new_tokens
        self._forced_ids = tuple(forced_ids)
        self._keep_logits = keep_logits
        self._step_logits: list[torch.Tensor] = []
        self._stage = Stage.PROMPT
        self._sampler = Sampler(sampling)
        self._mailbox: queue.SimpleQueue[Delta | Outcome | ChunkCacheError] = queue.SimpleQueue()
        self._plan: RepairPlan | None = None
        self._recomputed = np.empty(0, dtype=np.int64)
        self._residual: float | None = None
        self._scores: QuestionScores | DeviationScores | None = None
        self._kept: KeptRows | None = None
        self._steps: list[Step] = []  # still to come, where rows are let go
        self._probe_rows = 0
        self._cost = 0.0  # prompt rows run, in rows of full depth
        self._probe_began_at = self._probe_ended_at = 0.0
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

    def plan(self, model: DecoderModel, prefix_tokens: int) -> int:
        """Decide what every span gets; rows that no cache holds, may be repaired, or are new."""
        plan = make_plan(
            self._prompt, prefix_tokens, self._residents,
            exact_only=self._exact_only, budget=self._budget, max_residual=self._max_residual,
        )  # fmt: skip
        plan = with_scoring(plan, self._policy, model.geometry.num_layers)
        self._plan, task = plan, plan.task
        looks = self._policy.needs is not Scoring.NONE and not task.needs_no_scores
        if not looks:
            self._recomputed = self._policy.choose(task, None)
            repaired = len(self._recomputed)
        elif self._policy.needs is Scoring.QUESTION and not self._policy.steps(task):
            repaired = task.max_rows
        else:
            repaired = task.reusable_rows  # any of them may be run, if only through some layers
        return len(plan.missing) + repaired + self.max_tokens - plan.num_tokens

    @property
    def chunks(self) -> list[PlacedChunk]:
        """The chunks it reads, by position."""
        assert self._plan is not None
        return [
            PlacedChunk(self._residents[i], p.span.start, p.prefix)
            for i, p in enumerate(self._plan.spans)
            if p.placed
        ]

    def begin(self, model: DecoderModel) -> None:
        """Set the pass that comes first for this policy."""
        assert self._plan is not None
        plan = self._plan
        self._text = TextStream(model.tokenizer, self._sampling.stop)
        missing = np.array(plan.missing, dtype=np.int64)
        if self._policy.needs is Scoring.NONE or plan.task.needs_no_scores:
            self._steps = list(self._policy.steps(plan.task))
            self.current = self._to_next_step(Pass(np.union1d(missing, self._recomputed)))
        elif len(opening := missing[missing < plan.first_reused]):
            self._stage = Stage.OPENING
            self.current = Pass(opening, logits=Logits.NONE)
        else:
            self._start_scoring(model)

    def _start_scoring(self, model: DecoderModel) -> None:
        assert self._plan is not None
        plan, layers = self._plan, model.geometry.num_layers
        self._probe_began_at = time.perf_counter()
        self._stage = Stage.SCORE
        missing = np.array(plan.missing, dtype=np.int64)
        rows = missing[missing >= plan.first_reused]
        if self._policy.needs is Scoring.QUESTION:
            question = next(s for s in self._prompt.spans if s.kind is SpanKind.QUESTION)
            self._scores = QuestionScores(plan.num_tokens, question.start, layers // 2)
            if kept := self._policy.kept_layers(layers):
                self._kept = KeptRows(kept, rows)
            self.current = Pass(rows, self._scores, keep=self._kept)
        else:
            self._scores = DeviationScores(plan.num_tokens, self.chunks)
            rows = np.union1d(rows, reusable_positions(plan.task))
            depth = min(DEVIATION_LAYERS, layers)
            self._kept = KeptRows(depth, rows)
            self.current = Pass(
                rows, self._scores, end_layer=depth, keep=self._kept, logits=Logits.NONE
            )

    def advance(self, model: DecoderModel, logits: torch.Tensor | None) -> None:
        """After scoring: choose and repair. After that, and from then on: sample."""
        if self._stage in {Stage.OPENING, Stage.SCORE, Stage.NARROW, Stage.PROMPT}:
            assert self.current is not None
            self._cost += self.current.full_rows(model.geometry.num_layers)
        if self._stage is Stage.OPENING:
            self._start_scoring(model)
            return
        if self._stage is Stage.NARROW:
            self._narrow()
            return
        if self._stage is Stage.SCORE and not self._chose_nothing(logits):
            return
        assert logits is not None
        if self._stage is Stage.FORCED:
            self._step_logits += logits.cpu().unbind(0)
            del self.token_ids[self._prompt.num_tokens :]
            assert self._first_logits is not None
            self._start_decoding(model, self._first_logits)
        elif self._stage is Stage.DECODE:
            if self.exact_tokens == len(self.token_ids) - 1:
                self.exact_tokens += 1  # only now has the row of the last token been written
            self._take_token(model, logits)
        else:
            self._end_prompt(model, logits)

    def _chose_nothing(self, logits: torch.Tensor | None) -> bool:
        """Choose rows from the scores. False: a repair pass was set, and must run first."""
        assert self._plan is not None and self._scores is not None and self.current is not None
        scores = self._scores.scores()
        self._recomputed = self._policy.choose(self._plan.task, scores)
        if self._policy.needs is Scoring.QUESTION:
            weighed = self._policy.weigh(self._plan.task, scores)
            self._residual = residual(self._plan.task, weighed, self._recomputed)
        self._scores = None
        self._probe_ended_at = time.perf_counter()
        if len(self._recomputed) == 0 and logits is not None:
            return True
        self._stage = Stage.PROMPT
        self._probe_rows = len(self.current.positions)
        self._steps = list(self._policy.steps(self._plan.task))
        self.current = self._to_next_step(self._repair_pass())
        return False

    def _repair_pass(self) -> Pass:
        """The chosen rows, and those of the rows not in any cache that can see one of them."""
        assert self._plan is not None
        plan = self._plan
        missing = np.array(plan.missing, dtype=np.int64)
        missing = missing[missing >= plan.first_reused]
        kept, self._kept = self._kept, None
        if self._policy.needs is Scoring.DEVIATION:  # all that was scored has run its first layers
            return Pass(np.union1d(missing, self._recomputed), resumed=kept)
        rows = np.union1d(missing[missing > self._recomputed.min()], self._recomputed)
        if len(self._recomputed) == plan.task.reusable_rows:
            kept = None  # everything is repaired: exact, if nothing is kept of before
        return Pass(rows, resumed=kept, resumed_from=plan.chunks_end)

    def _to_next_step(self, rows: Pass) -> Pass:
        """The pass, up to the layer where some of its rows are let go, if there is one."""
        assert self._plan is not None
        if not self._steps or len(self._recomputed) == 0:
            return rows
        layer = self._steps[0].layer
        started = rows.resumed.layer if rows.resumed else 0
        if not started < layer < self._plan.task.num_layers:
            raise ValueError(
                f"policy {self._policy.name!r}: a step at layer {layer}, must be above {started}, "
                f"where rows go on from, and below {self._plan.task.num_layers}"
            )
        if self._policy.watches is Scoring.DEVIATION:
            self._scores = DeviationScores(self._plan.num_tokens, self.chunks, layer - 1)
        elif self._policy.watches is Scoring.QUESTION and self._scores is None:
            # only at the first step: from there on it goes on adding up
            question = next(s for s in self._prompt.spans if s.kind is SpanKind.QUESTION)
            self._scores = QuestionScores(self._plan.num_tokens, question.start)
        self._stage = Stage.NARROW
        self._kept = KeptRows(layer, rows.positions)
        rows.observer, rows.keep = self._scores, self._kept
        rows.end_layer, rows.logits = layer, Logits.NONE
        return rows

    def _narrow(self) -> None:
        """Let go of the rows that the policy has no use for from here on; the others go on."""
        assert self._plan is not None and self.current is not None
        before, plan = self._recomputed, self._plan
        step = self._steps.pop(0)
        nothing = np.zeros(plan.num_tokens, dtype=np.float32)
        scores = self._scores.scores() if self._scores is not None else nothing
        self._recomputed = self._policy.narrow(plan.task, step, before, scores)
        gone = np.setdiff1d(before, self._recomputed)
        rows = np.setdiff1d(self.current.positions, gone)
        self._stage = Stage.PROMPT
        self.current = self._to_next_step(Pass(rows, resumed=self._kept))
        if self._stage is Stage.PROMPT:
            self._scores = None

    def _end_prompt(self, model: DecoderModel, logits: torch.Tensor) -> None:
        assert self._plan is not None
        if len(self._recomputed) == self._plan.task.reusable_rows:
            self.exact_tokens = self._plan.num_tokens
        else:
            self.exact_tokens = self._plan.exact_until
        self._first_token_at = time.perf_counter()
        self._first_logits = logits.cpu()
        if not self._forced_ids:
            self._start_decoding(model, logits)
            return
        self._step_logits.append(self._first_logits)
        if len(self._forced_ids) == 1:
            self._start_decoding(model, logits)
            return
        self._stage = Stage.FORCED
        start = self._prompt.num_tokens
        self.token_ids += self._forced_ids[:-1]
        rows = np.arange(start, len(self.token_ids), dtype=np.int64)
        self.current = Pass(rows, logits=Logits.ALL)

    def _start_decoding(self, model: DecoderModel, logits: torch.Tensor) -> None:
        self._stage = Stage.DECODE
        self.is_decoding = True
        self._take_token(model, logits)

    # ------------------------------------------------------------ tokens

    def _take_token(self, model: DecoderModel, logits: torch.Tensor) -> None:
        assert self._text is not None
        if self._keep_logits and not self._forced_ids:
            self._step_logits.append(logits.cpu())
        token = self._sampler.draw(logits)
        self._new_ids.append(token)
        if token in model.eos_ids:
            self._finish("stop")
            return
        if delta := self._text.push(token):
            self._mailbox.put(Delta(delta, len(self._new_ids)))
        if self._text.stopped:
            self._finish("stop")
        elif len(self._new_ids) >= self._max_new_tokens:
            self._finish("length")
        else:
            self.token_ids.append(token)
            row = np.array([len(self.token_ids) - 1], dtype=np.int64)
            self.current = Pass(row)

    def _finish(self, reason: str) -> None:
        assert self._text is not None and self._plan is not None
        assert self._first_logits is not None
        if delta := self._text.finish():
            self._mailbox.put(Delta(delta, len(self._new_ids)))
            if self._text.stopped:
                reason = "stop"
        self.current = None
        now = time.perf_counter()
        probe_s = self._probe_ended_at - self._probe_began_at  # both 0 without a probe
        self._mailbox.put(
            Outcome(
                text=self._text.text,
                token_ids=tuple(self._new_ids),
                finish_reason=reason,
                plan=self._plan,
                recomputed=self._recomputed,
                probe_rows=self._probe_rows,
                cost_ratio=self._cost / self._plan.num_tokens,
                probed_residual=self._residual,
                first_logits=self._first_logits,
                step_logits=torch.stack(self._step_logits) if self._step_logits else None,
                queue_ms=(self.started_at - self.submitted_at) * 1e3,
                probe_ms=probe_s * 1e3,
                compute_ms=(self._first_token_at - self.started_at - probe_s) * 1e3,
                ttft_ms=(self._first_token_at - self.submitted_at) * 1e3,
                total_ms=(now - self.submitted_at) * 1e3,
            )
        )
