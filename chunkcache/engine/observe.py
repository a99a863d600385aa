"""Observers: what is read from rows while they run, layer by layer.

`CaptureKV` makes chunk records, `QuestionScores` and `DeviationScores` score tokens for repair.
All add up on the device, so that nobody waits for it before the last layer. Each costs what it
says, and nothing when it is not attached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.chunk import ChunkStats
from chunkcache.repair.base import DEVIATION_LAYERS
from chunkcache_kernels import turned
from chunkcache_kernels.sending import index_of, sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.engine.attention import LayerView
    from chunkcache.engine.decoder import DecoderModel
    from chunkcache.engine.sequence_kv import PlacedChunk


class CaptureKV:
    """Collects K before RoPE, V and attention statistics of a chunk's rows.

    The sequence is `head ‖ prior chunks ‖ chunk`; `boundaries` are the start positions of the prior
    chunks and, last, of the chunk itself. Cost per layer: one more softmax over the rows.
    """

    def __init__(self, model: DecoderModel, boundaries: Sequence[int], num_tokens: int) -> None:
        geometry = model.geometry
        self._start = boundaries[-1]
        shape = (geometry.num_layers, 2, num_tokens, geometry.num_kv_heads, geometry.head_dim)
        self._device = model.device
        self._kv = torch.empty(shape, dtype=model.dtype, device=self._device)
        self._num_layers = geometry.num_layers
        self._count_between(boundaries, num_tokens)

    def _count_between(self, edges: Sequence[int], num_tokens: int) -> None:
        """Segment 0 is the head, 1.. the prior chunks, the last one the chunk itself."""
        count = len(edges) + 1
        self._edges = sent({"edges": np.array(edges)}, self._device)["edges"]
        self._mass = torch.zeros((num_tokens, count), device=self._device)
        self.layer_mass = torch.zeros((self._num_layers, count), device=self._device)

    @property
    def kv(self) -> torch.Tensor:
        """`[layers, 2, tokens, kv_heads, head_dim]` on the device, once all rows have run."""
        return self._kv

    def look(self, view: LayerView) -> None:
        """Copy K before RoPE and V of the rows that belong to the chunk; add up where they look."""
        positions = view.rows.positions
        first = int(np.searchsorted(positions, self._start))  # they increase
        if first == len(positions):
            return
        into = slice(int(positions[first]) - self._start, int(positions[-1]) + 1 - self._start)
        assert into.stop - into.start == len(positions) - first, "rows that are no piece"
        self._kv[view.layer, 0, into] = view.key_before_rope[first:]
        self._kv[view.layer, 1, into] = view.value[first:]
        mass = view.mass(first, self._edges)
        self._mass[into] += mass / self._num_layers
        self.layer_mass[view.layer] += mass.sum(0)

    def stats(self, prior: Sequence[tuple[bytes, int]] = ()) -> ChunkStats:
        """The statistics once all rows have run. `prior`: digest and length of the prior chunks."""
        mass = self._mass.cpu().numpy()
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

    def look(self, view: LayerView) -> None:
        """Score all positions up to the rows'."""
        if view.layer < self._first_layer:
            return
        positions = view.rows.positions
        # they increase: those that vote are the last ones
        begins = np.searchsorted(positions, [first for first, _ in self._groups]).tolist()
        if begins[0] == len(positions):
            return
        device = view.query.device
        if self._received.device != device:
            self._received = torch.zeros_like(self._received, device=device)
        votes = torch.zeros(len(positions) - begins[0], device=device)
        for begin, (_, weight) in zip(begins, self._groups, strict=True):
            votes[begin - begins[0] :] += weight
        received = view.received(begins[0], votes)
        self._received[: len(received)] += received

    @property
    def measured(self) -> torch.Tensor:
        """fp32 `[num_tokens]`, where the rows ran; meaningful for positions below the question."""
        return self._received

    def scores(self) -> np.ndarray:
        """What was `measured`, on the host, which waits for it."""
        return self._received.cpu().numpy()


class DeviationScores:
    """Squared K and V change at one layer between fresh rows and a chunk's own.

    CacheBlend (arXiv 2405.16444, §4.3) looks at the second layer first, the first whose input has
    been mixed with other chunks, and at deeper ones to let go of rows that change little.
    """

    def __init__(
        self,
        num_tokens: int,
        chunks: Sequence[PlacedChunk],
        layer: int = DEVIATION_LAYERS - 1,
    ) -> None:
        self._chunks = chunks
        self._layer = layer
        self._deviation = torch.zeros(num_tokens, dtype=torch.float32)

    def look(self, view: LayerView) -> None:
        """Compare the rows with the chunks'; nothing to do in other layers.

        K is compared as both lie in a page, turned to its place in the chunk: a rotation changes no
        distance.
        """
        if view.layer != self._layer:
            return
        positions, device = view.rows.positions, view.value.device
        if self._deviation.device != device:
            self._deviation = torch.zeros_like(self._deviation, device=device)
        where = index_of(positions, device)
        for chunk in self._chunks:
            begin, used = chunk.begin, chunk.rows
            edges = np.searchsorted(positions, [begin + used.start, begin + used.stop])
            rows = slice(*edges.tolist())
            if rows.start == rows.stop:
                continue
            place = where[rows] - begin
            keys, values = view.pool.chunks.read_rows(view.layer, chunk.resident.pages)
            fresh = view.key_before_rope[rows].float()
            if view.turned:
                fresh = turned(fresh, *view.rotary.at(place))
            change = (fresh - keys[place].float()).square().sum(dim=(1, 2))
            change += (view.value[rows].float() - values[place].float()).square().sum(dim=(1, 2))
            self._deviation[where[rows]] = change

    @property
    def measured(self) -> torch.Tensor:
        """fp32 `[num_tokens]`, where the rows ran: K and V squared deviation, 0 where none did."""
        return self._deviation

    def scores(self) -> np.ndarray:
        """What was `measured`, on the host, which waits for it."""
        return self._deviation.cpu().numpy()
