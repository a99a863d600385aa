"""What comes out of a generation: pieces of text, then everything a report is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from chunkcache.engine.planner import RepairPlan


@dataclass(frozen=True, slots=True)
class TokenChances:
    """A token of the answer with its natural log probability, and the likeliest in its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # id, log probability; likeliest first


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one choice of the answer, and its tokens if they were asked for."""

    text: str
    num_tokens: int  # of the choice so far
    index: int = 0
    chances: tuple[TokenChances, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """A choice that has ended. `chances` are of all its tokens but an end-of-sequence token."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str  # "stop" or "length"
    chances: tuple[TokenChances, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A finished generation and everything a report is made of."""

    choices: tuple[Written, ...]  # at least one
    plan: RepairPlan
    recomputed: np.ndarray  # int64 positions of reused rows that were computed again
    probe_rows: int  # rows run only to choose what to recompute
    cost_ratio: float  # rows × layers run for the prompt ÷ rows × layers of full prefill
    probed_residual: float | None  # share of the question's attention left on unrepaired rows
    first_logits: torch.Tensor  # fp32 [vocab] on CPU: what the first token was drawn from
    step_logits: torch.Tensor | None  # fp32 [steps, vocab] on CPU, if they were asked for
    queue_ms: float  # these four follow or exclude each other and add up to `ttft_ms`
    probe_ms: float
    wait_ms: float  # for layers of chunks that were still coming up
    compute_ms: float
    ttft_ms: float  # since the generation was made
    total_ms: float

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The first choice's tokens."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str:
        """Why the first choice ended."""
        return self.choices[0].finish_reason

    @property
    def residual(self) -> float | None:
        """Share of the question's attention to reused rows that is left on unrepaired ones.

        0 where every row is exact, 1 where none was repaired, None where rows were repaired
        without asking the question.
        """
        if len(self.recomputed) == self.plan.task.reusable_rows:
            return 0.0
        if len(self.recomputed) == 0:
            return 1.0
        return self.probed_residual

    @property
    def repair_ratio(self) -> float:
        """Rows × layers run beyond the rows no cache held ÷ rows × layers of the reused chunks.

        The honest price of repair: probe rows and partial layers included; 0 without reuse.
        """
        reusable = self.plan.task.reusable_rows
        if reusable == 0:
            return 0.0
        return (self.cost_ratio * self.plan.num_tokens - len(self.plan.missing)) / reusable
