"""What a repair policy is: given the reused chunks and a budget, which rows to recompute.

To add one: write a file here with a class that has `name`, `needs` and `choose`, list it in
`repair/__init__.py`, and its name in `policy_names.py`. A policy that lets rows go on the way also
has `watches` and `steps`, and `narrow` where not the largest scores decide. Policies are pure: no
tensors, no engine, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from chunkcache.repair.select import top_rows

if TYPE_CHECKING:
    import numpy as np

    from chunkcache.chunk import ChunkStats


DEVIATION_LAYERS = 2  # the second layer is the first whose input has been mixed with other chunks


class Scoring(StrEnum):
    """What scores of rows are made of.

    As `needs`, what must run before rows can be chosen; as `watches`, what is measured of the
    chosen rows, and of the question's, while they run.
    """

    NONE = "none"
    # needs: the question's rows over unrepaired KV, all layers; watches: its attention so far
    QUESTION = "question"
    # needs: every reused row through the first two layers; watches: K and V in the last layer run
    DEVIATION = "deviation"


@dataclass(frozen=True, slots=True)
class Step:
    """From `layer` on at most `max_rows` of the rows go on; the others have stored KV from there.

    A row that has been left behind has no hidden states any more and cannot come back, so that
    rows only ever become fewer on the way up.
    """

    layer: int
    max_rows: int


@dataclass(frozen=True, slots=True)
class RowSelection:
    """Rows with the largest scores, each score averaged over its neighbours in the same chunk."""

    count: int
    before: int = 0  # neighbours; with none at all scores are taken as they are
    after: int = 0


@dataclass(frozen=True, slots=True)
class ReusedChunk:
    """A chunk whose KV was placed from a record that had not seen this context.

    Where the exact-prefix cache holds its first rows, `start` and `num_tokens` are of the rest;
    `stats` are always of the whole chunk as it was born.
    """

    start: int  # position of its first placed token in the prompt
    num_tokens: int
    stats: ChunkStats
    prior_digests: tuple[bytes, ...]  # content digests of the chunks before it now, in order
    prior_lengths: tuple[int, ...]
    first_row: int = 0  # rows of the record before the first placed one


@dataclass(frozen=True, slots=True)
class RepairTask:
    """The rows that may be recomputed and how many of them.

    The budget is an honest one: looking for the rows is paid from it as well. A whole budget, 1,
    buys every row, and there is nothing to look for. With `max_residual` the policy may stop
    earlier: as soon as no more than that share of its scores is left on rows not recomputed.
    """

    chunks: tuple[ReusedChunk, ...]
    budget: float  # share of the reusable rows, 0..1
    scoring_rows: float = 0.0  # what scoring costs, in rows of full depth
    row_cost: float = 1.0  # of a chosen row: below 1 where scoring has run its first layers
    max_residual: float | None = None
    num_layers: int = 1  # of the model
    scoring_is_dear: bool = False  # it would take too much of the budget and is left out

    @property
    def reusable_rows(self) -> int:
        """Rows of all chunks that need repair."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def max_rows(self) -> int:
        """Rows the budget pays for, rounded down; the 1e-9 undoes binary fractions."""
        if self.budget >= 1.0:
            return self.reusable_rows
        paid = self.budget * self.reusable_rows - self.scoring_rows
        if paid < 0.0:
            return 0
        if paid >= self.reusable_rows * self.row_cost:
            return self.reusable_rows
        return int(paid / self.row_cost + 1e-9)

    def cost(self, rows: int) -> float:
        """What scoring and repairing that many rows costs together, in rows of full depth."""
        return self.scoring_rows + rows * self.row_cost

    @property
    def needs_no_scores(self) -> bool:
        """Whether rows are chosen without: no row can be paid for, every row is, or it is dear."""
        everything = self.budget >= 1.0 and self.max_residual is None
        return self.max_rows == 0 or everything or self.scoring_is_dear


class RepairPolicy(Protocol):
    """Chooses rows. Policies subclass it, for the methods that most of them need not write."""

    name: str
    needs: Scoring
    watches: Scoring = Scoring.NONE
    # the question's rows are not run again through that share of the layers after the probe
    probe_keeps: float = 0.0
    # above that share of the budget scoring is left out, and rows are chosen without scores
    max_scoring_share: float = 1.0

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """Positions to recompute: int64, increasing, at most `task.max_rows`, inside the chunks.

        `scores` is float32 `[prompt tokens]` when `needs` asks for it, else None; None, too, where
        the task needs none. A policy with `steps` may begin with more rows, as long as all its
        steps together cost no more than `task.max_rows` through all layers would.
        """
        ...

    def selection(self, task: RepairTask) -> RowSelection | None:
        """What `choose` comes to where it needs scores, if it is no more than such a selection.

        Rows may then be chosen where the scores lie, and the scores never come to the host; None:
        only `choose` knows. Who has a `choose` or `weigh` of its own says this anew, too.
        """
        return None

    def kept_layers(self, num_layers: int) -> int:
        """Through how many of a model's layers the question's rows run once, not twice."""
        return int(self.probe_keeps * num_layers)

    def weigh(self, task: RepairTask, scores: np.ndarray) -> np.ndarray:
        """What `choose` ranks rows by, from the scores measured, `[prompt tokens]`: as they are."""
        return scores

    def steps(self, task: RepairTask) -> tuple[Step, ...]:
        """Where chosen rows are left behind, by increasing layer: nowhere.

        Each layer lies above those that scoring has run of any row, and below the model's last.
        """
        return ()

    def narrow(
        self, task: RepairTask, step: Step, rows: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        """Those of `rows` that go on at a step: increasing, at most `step.max_rows`.

        Unless a policy says otherwise, those with the largest scores. `scores` float32
        `[prompt tokens]`: what `watches` asks for, of the layers run so far; zeros where it asks
        for nothing.
        """
        return top_rows(rows, scores[rows], step.max_rows)
