"""Observers: what is read from rows while they run, layer by layer.

`CaptureKV` makes chunk records, `QuestionScores` and `DeviationScores` score tokens for repair.
Each costs what it says, and nothing when it is not attached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import chunkcache_kernels as kernels
from chunkcache.chunk import ChunkStats
from chunkcache.repair.base import DEVIATION_LAYERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.chunk import ChunkKV
    from chunkcache.engine.attention import LayerView
    from chunkcache.engine.model import DecoderModel


class CaptureKV:
    """Collects K before RoPE, V and attention statistics of a chunk's rows.

    The sequence is `head ‖ prior chunks ‖ chunk`; `boundaries` are the start positions of the prior
    chunks and, last, of the chunk itself. Cost per layer: one more softmax over the rows.
    """

    def __init__(self, model: DecoderModel, boundaries: Sequence[int], num_tokens: int) -> None:
        geometry = model.geometry
        self._start = boundaries[-1]
        shape = (geometry.num_layers, 2, num_tokens, geometry.num_kv_heads, geometry.head_dim)
        self.kv = torch.empty(shape, dtype=model.dtype)
        end = self._start + num_tokens
        edges = torch.tensor(boundaries)
        # segment 0 is the head, 1.. the prior chunks, the last one the chunk itself
        self._segments = torch.searchsorted(edges, torch.arange(end), right=True)
        self._num_segments = len(boundaries) + 1
        self._mass = torch.zeros((num_tokens, self._num_segments), dtype=torch.float32)
        self.layer_mass = torch.zeros((geometry.num_layers, self._num_segments))
        self._num_layers = geometry.num_layers

    def before_write(self, view: LayerView) -> None:
        """Copy K before RoPE and V of the rows that belong to the chunk."""
        own, into = self._own_rows(view)
        self.kv[view.layer, 0, into] = view.key_before_rope[own].cpu()
        self.kv[view.layer, 1, into] = view.value[own].cpu()

    def after_write(self, view: LayerView) -> None:
        """Add up where the rows look."""
        own, into = self._own_rows(view)
        if own.numel() == 0:
            return
        positions = view.rows.positions[own]
        # the chunk comes last, so its rows see all that the step's rows see
        keys, _ = kernels.gather_kv(view.pool_keys, view.pool_values, view.plan.read)
        segments = self._segments[: view.plan.context].to(keys.device)
        mass = kernels.attention_mass(
            view.query[own], keys, positions, view.scale, segments, self._num_segments
        ).cpu()
        self._mass[into] += mass / self._num_layers
        self.layer_mass[view.layer] += mass.sum(0)

    def _own_rows(self, view: LayerView) -> tuple[torch.Tensor, torch.Tensor]:
        positions = view.rows.positions
        own = (positions >= self._start).nonzero()[:, 0]
        return own, (positions[own] - self._start).cpu()

    def stats(self, prior: Sequence[tuple[bytes, int]] = ()) -> ChunkStats:
        """The statistics once all rows have run. `prior`: digest and length of the prior chunks."""
        mass = self._mass.numpy()
        return ChunkStats(
            token_inter=mass[:, 1:-1].sum(axis=1).astype(np.float32),
            token_head=np.ascontiguousarray(mass[:, 0]),
            chunk_inter=mass[:, 1:-1].sum(axis=0).astype(np.float32),
            intra=float(mass[:, -1].sum()),
            prior_digests=tuple(digest for digest, _ in prior),
            prior_lengths=tuple(length for _, length in prior),
        )


class QuestionScores:
    """What the question looks at: attention that its rows pay to every position, in late layers.

    ProphetKV (arXiv 2602.02579, §4) with three changes that were measured (docs/log.md). Only the
    second half of the layers votes: early ones look at form. The mean over the question's rows and
    the mean over its last `ANSWER_ROWS`, which open the answer, count alike: the first finds the
    passage, the second the words that will be read next. And rows before `score_from` (history) run
    but do not vote. Cost: one more softmax over the voting rows in the layers that vote.
    """

    ANSWER_ROWS = 4

    def __init__(self, num_tokens: int, score_from: int, first_layer: int = 0) -> None:
        self._first_layer = first_layer
        self._groups = [
            (first, 1.0 / (num_tokens - first))
            for first in (score_from, max(score_from, num_tokens - self.ANSWER_ROWS))
        ]
        self._received = torch.zeros(num_tokens, dtype=torch.float32)

    def before_write(self, view: LayerView) -> None:
        """Nothing to read before the write."""

    def after_write(self, view: LayerView) -> None:
        """Score all positions up to the rows'."""
        if view.layer < self._first_layer:
            return
        keys: torch.Tensor | None = None
        for first, weight in self._groups:
            voting = (view.rows.positions >= first).nonzero()[:, 0]
            if voting.numel() == 0:
                continue
            positions = view.rows.positions[voting]
            if keys is None:
                # the voting rows come last, so they see all that the step's rows see
                keys, _ = kernels.gather_kv(view.pool_keys, view.pool_values, view.plan.read)
            received = kernels.attention_received(view.query[voting], keys, positions, view.scale)
            self._received[: view.plan.context] += weight * received.cpu()

    def scores(self) -> np.ndarray:
        """float32 `[num_tokens]`; meaningful for positions below the question."""
        return self._received.numpy()


class DeviationScores:
    """Squared K and V change at one layer between fresh rows and the stored record.

    CacheBlend (arXiv 2405.16444, §4.3) looks at the second layer first, the first whose input has
    been mixed with other chunks, and at deeper ones to let go of rows that change little.
    """

    def __init__(
        self,
        num_tokens: int,
        records: Sequence[tuple[int, ChunkKV]],
        layer: int = DEVIATION_LAYERS - 1,
    ) -> None:
        self._records = records
        self._layer = layer
        self._deviation = torch.zeros(num_tokens, dtype=torch.float32)

    def before_write(self, view: LayerView) -> None:
        """Compare the rows with their records; nothing to do in other layers."""
        if view.layer != self._layer:
            return
        positions = view.rows.positions.cpu()
        for start, record in self._records:
            inside = ((positions >= start) & (positions < start + record.num_tokens)).nonzero()
            index = inside[:, 0]
            if index.numel() == 0:
                continue
            stored = record.kv[self._layer, :, positions[index] - start].float()
            fresh = torch.stack([view.key_before_rope[index], view.value[index]]).cpu().float()
            self._deviation[positions[index]] = (fresh - stored).square().sum(dim=(0, 2, 3))

    def after_write(self, view: LayerView) -> None:
        """Nothing to read after the write."""

    def scores(self) -> np.ndarray:
        """float32 `[num_tokens]`: K and V squared deviation, 0 where no row ran."""
        return self._deviation.numpy()
