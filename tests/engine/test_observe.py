"""What the probe measures, against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import chunkcache_kernels as kernels
from chunkcache.engine.attention import LayerView, SequenceRows
from chunkcache.engine.observe import QuestionScores

TOKENS, HEADS, KV_HEADS, DIM, LAYERS = 37, 4, 2, 8, 3
SCALE = DIM**-0.5


class Passes:
    """Three layers of random queries and keys; the keys lie scattered in a poisoned pool."""

    def __init__(self, seed: int) -> None:
        made = torch.Generator().manual_seed(seed)
        self.queries = torch.randn(LAYERS, TOKENS, HEADS, DIM, generator=made) * 2
        self.keys = torch.randn(LAYERS, TOKENS, KV_HEADS, DIM, generator=made) * 2
        self.slots = torch.randperm(3 * TOKENS, generator=made)[:TOKENS]

    def attention(self, layer: int) -> np.ndarray:
        """`[tokens, tokens]`: the mean over heads of every row's weights."""
        keys = self.keys[layer].repeat_interleave(HEADS // KV_HEADS, dim=1)
        scores = torch.einsum("qhd,khd->hqk", self.queries[layer], keys) * SCALE
        hidden = torch.ones(TOKENS, TOKENS).triu(1).bool()
        return scores.masked_fill(hidden, -torch.inf).softmax(-1).mean(0).numpy()

    def show(self, observer: QuestionScores, rows: list[int], step: int) -> None:
        """Run the rows past the observer, `step` of them at a time, every layer."""
        for begin in range(0, len(rows), step):
            positions = torch.tensor(rows[begin : begin + step])
            for layer in range(LAYERS):
                observer.after_write(self._view(layer, positions))

    def _view(self, layer: int, positions: torch.Tensor) -> LayerView:
        pool = torch.full((3 * TOKENS, KV_HEADS, DIM), torch.nan)
        context = int(positions[-1]) + 1
        slots = self.slots[:context]
        pool[slots] = self.keys[layer, :context]
        nothing = torch.empty(0)
        return LayerView(
            layer=layer,
            rows=SequenceRows(positions, positions, slots),
            plan=kernels.plan_rows(positions, slots, like=pool, num_heads=HEADS),
            query=self.queries[layer, positions],
            key_before_rope=nothing, value=nothing,
            pool_keys=pool, pool_values=pool, cos=nothing, sin=nothing, scale=SCALE,
        )  # fmt: skip


@pytest.mark.parametrize("step", [1, 4, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_the_question_looks_at(step: int, seed: int) -> None:
    passes, asking, behind = Passes(seed), 29, 21  # a history of eight rows, then the question
    observer = QuestionScores(TOKENS, asking, first_layer=1)
    # a missing chunk's rows run along, in the middle of reused ones
    passes.show(observer, [9, 10, 11, *range(behind, TOKENS)], step)
    late = [passes.attention(layer) for layer in (1, 2)]
    received = sum(a[asking:].mean(0) + a[-4:].mean(0) for a in late)
    np.testing.assert_allclose(observer.scores() / observer.scores().sum(),
                               received / received.sum(), atol=1e-5)  # fmt: skip
