"""Cache-Craft's choice (arXiv 2502.15734, §3): ⌈CFO·|C|⌉ rows per chunk, most outward-looking."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from chunkcache.repair.base import RepairPolicy, Scoring
from chunkcache.repair.overlap import (
    adjusted_overlap,
    context_impact,
    fix_overhead,
    novelty,
    order_penalty,
    overlap,
)
from chunkcache.repair.select import top_rows

if TYPE_CHECKING:
    from chunkcache.repair.base import RepairTask, ReusedChunk


DEFAULT_ALPHA = 0.4  # the paper names none; see `fix_overhead` for what is useful


class FixOverhead(RepairPolicy):
    """Rows per chunk from CFO; the budget is a ceiling over all chunks, shared in proportion.

    `alpha` None stands for `DEFAULT_ALPHA`.
    """

    name = "cfo"
    needs = Scoring.NONE

    def __init__(self, alpha: float | None = None) -> None:
        self._alpha = DEFAULT_ALPHA if alpha is None else alpha

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """Per chunk the rows that sent most attention outside the chunk when it was made."""
        return self.rows_within(task, task.max_rows)

    def rows_within(self, task: RepairTask, max_rows: int) -> np.ndarray:
        """The same under a ceiling of `max_rows`."""
        # the 1e-9 undoes binary fractions: 0.28 · 25 is 7.000…001
        wanted = [math.ceil(self.overhead(c) * c.num_tokens - 1e-9) for c in task.chunks]
        counts = share(wanted, max_rows)
        chosen = [
            top_rows(np.arange(c.start, c.start + c.num_tokens, dtype=np.int64), outward(c), count)
            for c, count in zip(task.chunks, counts, strict=True)
        ]
        return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)

    def overhead(self, chunk: ReusedChunk) -> float:
        """CFO of one chunk in its new context."""
        stats = chunk.stats
        beta = overlap(stats.prior_digests, stats.chunk_inter.tolist(), chunk.prior_digests)
        gamma = order_penalty(stats.prior_digests, chunk.prior_digests)
        unseen = novelty(stats.prior_digests, chunk.prior_digests, chunk.prior_lengths)
        impact = context_impact(
            stats.chunk_inter.tolist(), stats.prior_lengths, stats.intra, len(stats.token_inter)
        )
        return fix_overhead(self._alpha, impact, adjusted_overlap(beta, gamma, unseen))


def outward(chunk: ReusedChunk) -> np.ndarray:
    """Per-token attention to earlier chunks (eq. 14); for a chunk born alone, to the head.

    float32 `[num_tokens]`, of the placed rows only.

    Born alone there were no earlier chunks to look at; the mass a token sends to the head is then
    the only sign of how little it needs its neighbours' text.
    """
    stats = chunk.stats
    sent = stats.token_inter if stats.prior_digests else stats.token_head
    return sent[chunk.first_row : chunk.first_row + chunk.num_tokens]


def share(wanted: list[int], limit: int) -> list[int]:
    """Scale whole numbers down in proportion so that they sum to at most `limit`.

    Largest remainders first, earlier entries first among equals.

    >>> share([4, 4, 2], 5)
    [2, 2, 1]
    """
    total = sum(wanted)
    if total <= limit:
        return wanted
    counts = [w * limit // total for w in wanted]
    order = sorted(range(len(wanted)), key=lambda i: (-(wanted[i] * limit % total), i))
    for index in order[: limit - sum(counts)]:
        counts[index] += 1
    return counts
