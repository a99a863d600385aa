"""Answering a prompt: missing rows, probe, repair, then one token a step."""

from __future__ import annotations

import queue
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.engine.attention import KeptRows, Logits
from chunkcache.engine.choice import Branch, Choice
from chunkcache.engine.observe import DeviationScores, QuestionScores
from chunkcache.engine.outcome import Delta, Outcome
from chunkcache.engine.planner import make_plan, with_scoring
from chunkcache.engine.ranked import chosen, ranks_on
from chunkcache.engine.request import Pass, Request
from chunkcache.engine.sequence_kv import PlacedChunk
from chunkcache.repair import Scoring
from chunkcache.repair.base import DEVIATION_LAYERS
from chunkcache.repair.select import residual, reusable_positions

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from chunkcache.chunk import ChunkKey
    from chunkcache.engine.choice import Matcher
    from chunkcache.engine.decoder import DecoderModel
    from chunkcache.engine.outcome import Written
    from chunkcache.engine.planner import RepairPlan
    from chunkcache.engine.prompt import Prompt
    from chunkcache.engine.request import Passes
    from chunkcache.engine.resident import Resident
    from chunkcache.errors import ChunkCacheError
    from chunkcache.protocol import Sampling
    from chunkcache.repair import RepairPolicy
    from chunkcache.repair.base import Step

    Answered = torch.Tensor | None


class Generation(Request):
    """One answer. The caller reads `events()`; the engine thread does everything else.

    `residents` are the chunks on the device that it may read, by span index, each leased for it.

    With `keep_logits` the outcome has the logits every token was drawn from. With `forced_ids`
    (a continuation to compare with) its logits are those at each of the forced tokens instead; the
    answer itself is then decoded as ever. Either way whoever asked judges whether they are finite
    numbers; else no answer comes of such as are not. `new_matcher` makes what each choice must
    follow. Forced tokens and kept logits go with one choice only.
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
        new_matcher: Callable[[], Matcher] | None = None,
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
        self._forced_ids = tuple(forced_ids)
        self._forced_logits: list[torch.Tensor] = []
        self._mailbox: queue.SimpleQueue[Delta | Outcome | ChunkCacheError] = queue.SimpleQueue()
        self._choices = [
            Choice(
                index, sampling, prompt.token_ids,
                max_new_tokens=max_new_tokens, matcher=new_matcher() if new_matcher else None,
                keep_logits=keep_logits and not forced_ids,
                judges_logits=not (keep_logits or forced_ids), send=self._mailbox.put,
            )
            for index in range(sampling.n)
        ]  # fmt: skip
        assert len(self._choices) == 1 or not forced_ids
        self._branches = [Branch(self, choice, self._choice_ended) for choice in self._choices[1:]]
        self.branches = list(self._branches)
        self._plan: RepairPlan | None = None
        self._recomputed = np.empty(0, dtype=np.int64)
        self._residual: float | None = None
        self._probe_rows = 0
        self._cost = 0.0  # prompt rows run, in rows of full depth
        self._probe_s = 0.0
        self._first_token_at = 0.0
        self._first_logits: torch.Tensor | None = None

    @property
    def lost(self) -> dict[int, str]:
        """By span index: why a chunk that was to be read did not come up, and was computed."""
        failures = {i: r.arrival.failure for i, r in self._residents.items()}
        return {index: failure for index, failure in failures.items() if failure is not None}

    @property
    def chunk_keys(self) -> list[ChunkKey]:
        """Of the chunks that it was to read."""
        return [resident.key for resident in self._residents.values()]

    def events(self) -> Iterator[Delta | Outcome]:
        """Deltas of all choices, then the outcome. Blocks; raises the request's error."""
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
        here = {i: r for i, r in self._residents.items() if r.arrival.failure is None}
        plan = make_plan(
            self._prompt, prefix_tokens, here,
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
            PlacedChunk(
                self._residents[i],
                p.span.start - p.span.first_row,
                p.span.first_row + p.prefix,
                p.span.first_row + len(p.span),
            )
            for i, p in enumerate(self._plan.spans)
            if p.placed
        ]

    def passes(self, model: DecoderModel) -> Passes:
        """The prompt, then a given continuation for its logits, then the answer's tokens."""
        plan = self._planned
        logits = yield from self._prompt_passes(model)
        everything_is_exact = len(self._recomputed) == plan.task.reusable_rows
        self.exact_tokens = plan.num_tokens if everything_is_exact else plan.exact_until
        self._first_logits = logits.cpu()  # on a GPU the prompt has only now been run
        self._first_token_at = time.perf_counter()
        if self._forced_ids:
            yield from self._forced_passes()
        for branch in self._branches:
            branch.logits = logits
        self.is_decoding = True
        yield from self._choices[0].passes(self, model, logits)
        self._choice_ended()

    def _prompt_passes(self, model: DecoderModel) -> Generator[Pass, Answered, torch.Tensor]:
        """Missing and repaired rows, and what must run to choose those; the last row's logits."""
        plan = self._planned
        missing = np.array(plan.missing, dtype=np.int64)
        if self._policy.needs is Scoring.NONE or plan.task.needs_no_scores:
            rows = Pass(np.union1d(missing, self._recomputed))
            return (yield from self._repair_passes(rows))
        if len(opening := missing[missing < plan.first_reused]):
            # what comes before the first row to repair: nothing changes it later
            yield from self._pay(Pass(opening, logits=Logits.NONE))
        began = self._computing_s()
        scores = self._new_scores(model)
        probe = self._probe(scores, model.geometry.num_layers)
        logits = yield from self._pay(probe)
        self._choose(scores)
        self._probe_s = self._computing_s() - began
        if len(self._recomputed) == 0 and logits is not None:
            return logits
        self._probe_rows = len(probe.positions)
        return (yield from self._repair_passes(self._repair(probe.keep)))

    def give_up(self) -> None:
        """See `Request`."""
        super().give_up()
        del self.token_ids[self._prompt.num_tokens :]  # a forced continuation is no prompt
        self._forced_logits.clear()
        self._recomputed = np.empty(0, dtype=np.int64)
        self._residual = None
        self._probe_rows, self._cost, self._probe_s = 0, 0.0, 0.0

    def _computing_s(self) -> float:
        """A clock that stands still while layers of chunks are waited for."""
        assert self.kv is not None
        return time.perf_counter() - self.kv.waited_s

    def _pay(self, rows: Pass) -> Generator[Pass, Answered, Answered]:
        """Run rows of the prompt and count what they cost."""
        logits = yield rows
        self._cost += rows.full_rows(self._planned.task.num_layers)
        return logits

    def _new_scores(self, model: DecoderModel) -> QuestionScores | DeviationScores:
        """What looks at the rows of the probe."""
        plan = self._planned
        if self._policy.needs is Scoring.QUESTION:
            num_layers = model.geometry.num_layers
            return QuestionScores(plan.num_tokens, self._prompt.question_start, num_layers // 2)
        return DeviationScores(plan.num_tokens, self.chunks)

    def _probe(self, scores: QuestionScores | DeviationScores, num_layers: int) -> Pass:
        """Look before rows to repair are chosen."""
        plan = self._planned
        missing = np.array(plan.missing, dtype=np.int64)
        rows = missing[missing >= plan.first_reused]
        if self._policy.needs is Scoring.QUESTION:
            kept_layers = self._policy.kept_layers(num_layers)
            return Pass(rows, scores, keep=KeptRows(kept_layers, rows) if kept_layers else None)
        rows = np.union1d(rows, reusable_positions(plan.task))
        depth = min(DEVIATION_LAYERS, num_layers)
        keep = KeptRows(depth, rows)
        return Pass(rows, scores, end_layer=depth, keep=keep, logits=Logits.NONE)

    def _choose(self, scores: QuestionScores | DeviationScores) -> None:
        task, policy = self._planned.task, self._policy
        selection, left = policy.selection(task), None
        if selection is not None and ranks_on(scores.measured.device):
            self._recomputed, left = chosen(task, selection, scores.measured)
        else:
            measured = scores.scores()
            self._recomputed = policy.choose(task, measured)
            if policy.needs is Scoring.QUESTION:
                left = residual(task, policy.weigh(task, measured), self._recomputed)
        if policy.needs is Scoring.QUESTION:
            self._residual = left

    def _repair(self, kept: KeptRows | None) -> Pass:
        """The chosen rows, and those of the rows not in any cache that can see one of them."""
        plan = self._planned
        missing = np.array(plan.missing, dtype=np.int64)
        missing = missing[missing >= plan.first_reused]
        if self._policy.needs is Scoring.DEVIATION:  # all that was scored has run its first layers
            return Pass(np.union1d(missing, self._recomputed), resumed=kept)
        rows = np.union1d(missing[missing > self._recomputed.min()], self._recomputed)
        if len(self._recomputed) == plan.task.reusable_rows:
            kept = None  # everything is repaired: exact, if nothing is kept of before
        return Pass(rows, resumed=kept, resumed_from=plan.chunks_end)

    def _repair_passes(self, rows: Pass) -> Generator[Pass, Answered, torch.Tensor]:
        """Run rows; at each layer where the policy has no use for some, the others go on alone."""
        watched: QuestionScores | DeviationScores | None = None
        for step in self._policy.steps(self._planned.task):
            if len(self._recomputed) == 0:
                break
            self._check_step(step, rows)
            watched = self._watch(step, watched)
            kept = KeptRows(step.layer, rows.positions)
            rows.observer, rows.keep = watched, kept
            rows.end_layer, rows.logits = step.layer, Logits.NONE
            yield from self._pay(rows)
            rows = Pass(self._narrowed(step, rows.positions, watched), resumed=kept)
        logits = yield from self._pay(rows)
        assert logits is not None
        return logits

    def _check_step(self, step: Step, rows: Pass) -> None:
        num_layers = self._planned.task.num_layers
        started = rows.resumed.layer if rows.resumed else 0
        if not started < step.layer < num_layers:
            raise ValueError(
                f"policy {self._policy.name!r}: a step at layer {step.layer}, must be above "
                f"{started}, where rows go on from, and below {num_layers}"
            )

    def _watch(
        self, step: Step, before: QuestionScores | DeviationScores | None
    ) -> QuestionScores | DeviationScores | None:
        """What looks at the rows on their way to a step."""
        num_tokens = self._planned.num_tokens
        if self._policy.watches is Scoring.DEVIATION:
            return DeviationScores(num_tokens, self.chunks, step.layer - 1)
        if self._policy.watches is Scoring.QUESTION and before is None:
            # only at the first step: from there on it goes on adding up
            return QuestionScores(num_tokens, self._prompt.question_start)
        return before

    def _narrowed(
        self, step: Step, rows: np.ndarray, scores: QuestionScores | DeviationScores | None
    ) -> np.ndarray:
        """The rows without those that the policy lets go of at a step."""
        before, plan = self._recomputed, self._planned
        nothing = np.zeros(plan.num_tokens, dtype=np.float32)
        measured = scores.scores() if scores is not None else nothing
        self._recomputed = self._policy.narrow(plan.task, step, before, measured)
        gone = np.setdiff1d(before, self._recomputed)
        return np.setdiff1d(rows, gone)

    def _forced_passes(self) -> Passes:
        """Logits at each of the given tokens; the sequence ends with the prompt again after it."""
        assert self._first_logits is not None
        self._forced_logits.append(self._first_logits)
        if len(self._forced_ids) == 1:
            return
        start = self._prompt.num_tokens
        self.token_ids += self._forced_ids[:-1]
        rows = np.arange(start, len(self.token_ids), dtype=np.int64)
        logits = yield Pass(rows, logits=Logits.ALL)
        assert logits is not None
        self._forced_logits += logits.cpu().unbind(0)
        del self.token_ids[start:]

    @property
    def _planned(self) -> RepairPlan:
        assert self._plan is not None
        return self._plan

    def _choice_ended(self) -> None:
        written = [choice.written for choice in self._choices if choice.written is not None]
        if len(written) == len(self._choices):
            self._mailbox.put(self._outcome(tuple(written)))

    def _outcome(self, choices: tuple[Written, ...]) -> Outcome:
        plan = self._planned
        assert self._first_logits is not None and self.kv is not None
        now, wait_s = time.perf_counter(), self.kv.waited_s
        step_logits = self._forced_logits or self._choices[0].step_logits
        return Outcome(
            choices=choices,
            plan=plan,
            recomputed=self._recomputed,
            probe_rows=self._probe_rows,
            cost_ratio=self._cost / plan.num_tokens,
            probed_residual=self._residual,
            first_logits=self._first_logits,
            step_logits=torch.stack(step_logits) if step_logits else None,
            queue_ms=(self.started_at - self.submitted_at) * 1e3,
            probe_ms=self._probe_s * 1e3,
            wait_ms=wait_s * 1e3,
            compute_ms=(self._first_token_at - self.started_at - self._probe_s - wait_s) * 1e3,
            ttft_ms=(self._first_token_at - self.submitted_at) * 1e3,
            total_ms=(now - self.submitted_at) * 1e3,
        )
