"""What the probe measures, against sums by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from chunkcache.engine.attention import LayerView, SequenceRows
from chunkcache.engine.observe import QuestionScores
from chunkcache.engine.pool import KVPool
from chunkcache_kernels import HIDDEN, Arena, Heads, Rotary, Segment, SequenceLayout

TOKENS, LAYERS, PAGE = 37, 3, 8
HEADS = Heads(heads=4, kv_heads=2, dim=8, scale=8**-0.5, rotary_dim=0)


class Passes:
    """Three layers of random queries and keys; the keys lie scattered in poisoned pages."""

    def __init__(self, seed: int) -> None:
        made = torch.Generator().manual_seed(seed)
        self.queries = torch.randn(LAYERS, TOKENS, HEADS.heads, HEADS.dim, generator=made) * 2
        self.keys = torch.randn(LAYERS, TOKENS, HEADS.kv_heads, HEADS.dim, generator=made) * 2
        self.slots = torch.randperm(12 * PAGE, generator=made)[:TOKENS]

    def attention(self, layer: int) -> np.ndarray:
        """`[tokens, tokens]`: the mean over heads of every row's weights."""
        keys = self.keys[layer].repeat_interleave(HEADS.heads // HEADS.kv_heads, dim=1)
        scores = torch.einsum("qhd,khd->hqk", self.queries[layer], keys) * HEADS.scale
        hidden = torch.ones(TOKENS, TOKENS).triu(1).bool()
        return scores.masked_fill(hidden, -torch.inf).softmax(-1).mean(0).numpy()

    def show(self, observer: QuestionScores, rows: list[int], step: int) -> None:
        """Run the rows past the observer, `step` of them at a time, every layer."""
        for begin in range(0, len(rows), step):
            positions = np.array(rows[begin : begin + step])
            for layer in range(LAYERS):
                observer.look(self._view(layer, positions))

    def _view(self, layer: int, positions: np.ndarray) -> LayerView:
        size = (LAYERS, 12, HEADS.kv_heads, HEADS.dim, PAGE)
        own, chunks = (
            Arena.empty(*size, dtype=torch.float32, device=torch.device("cpu")) for _ in range(2)
        )
        for part in (own.keys, own.values, chunks.keys, chunks.values):
            part.fill_(torch.nan)
        slots = self.slots[: positions[-1] + 1]
        page, place = slots // PAGE, slots % PAGE
        own.keys[layer].permute(0, 3, 1, 2)[page, place] = self.keys[layer, : len(slots)]
        where = np.full(12 * PAGE, HIDDEN, dtype=np.int32)
        where[slots] = np.arange(len(slots))
        halves = [
            Segment(0, np.arange(i, i + 6, dtype=np.int32), 0, where[i * PAGE : (i + 6) * PAGE])
            for i in (0, 6)
        ]
        nothing: Any = None
        return LayerView(
            layer=layer,
            rows=SequenceRows(nothing, positions, nothing, nothing),
            sequence=SequenceLayout(positions, halves),
            query=self.queries[layer, positions],
            key_before_rope=nothing, value=nothing,
            pool=KVPool(own, chunks, None), heads=HEADS,
            rotary=Rotary(torch.empty(0, 0), torch.empty(0, 0)), turned=False, bound={},
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
