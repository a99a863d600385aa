"""Where rows look, on a GPU: sums over their softmax weights, which are never laid out in a matrix.

Twin: `portable.PortableWeights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache_kernels import triton_attend
from chunkcache_kernels.portable import PortableWeights
from chunkcache_kernels.sending import sent
from chunkcache_kernels.triton_pages import (
    LOG2_E,
    NO_WINDOW,
    TritonStep,
    padded,
    tiles,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache_kernels.arena import Arena
    from chunkcache_kernels.layout import Layout, SequenceLayout
    from chunkcache_kernels.portable import Heads, Rotary

_QUERIES = 16  # that vote on a tile of keys at a time; more of 256 channels fill the registers


@dataclass(slots=True, eq=False)
class TritonWeights:
    """Rows of one sequence bound to what they see: their attention to positions, in sums."""

    step: TritonStep
    twin: PortableWeights
    tiles: torch.Tensor  # int32 [tiles, 5], see `received_kernel`
    tile_keys: int
    context: int  # positions up to the last row's

    @classmethod
    def bind(
        cls, layout: Layout, arenas: Sequence[Arena], heads: Heads, rotary: Rotary
    ) -> TritonWeights:
        """For all layers; `layout` is of one sequence."""
        (sequence,) = layout.sequences
        step = TritonStep.bind(layout, arenas, heads, rotary, shares=False)
        keys, _, _ = tiles(heads.dim, step.is_exact, _QUERIES, step.rounded_page)
        table = _tiles(sequence, arenas[0].page_tokens, keys)
        on_device = sent({"tiles": table}, arenas[0].keys.device)["tiles"]
        twin = PortableWeights(sequence, arenas, heads, rotary)
        return cls(step, twin, on_device, keys, int(layout.row_positions[-1]) + 1)

    def weights(self, layer: int, query: torch.Tensor, *, turned: bool = True) -> torch.Tensor:
        """The matrix itself, by torch: see `PortableWeights`."""
        return self.twin.weights(layer, query, turned=turned)

    def mass(
        self, layer: int, query: torch.Tensor, edges: torch.Tensor, *, turned: bool = True
    ) -> torch.Tensor:
        """See `PortableWeights`. Cost: the keys are read once, for all key heads' queries."""
        rows = query.flatten(1)
        shape = len(rows), self.step.heads.heads, len(edges) + 1
        out = torch.empty(shape, dtype=torch.float32, device=rows.device)
        at = edges.to(rows.device, torch.int32)
        self.step.attend_into(out, layer, rows, turned=turned, edges=at)
        return out.mean(1)

    def received(
        self, layer: int, query: torch.Tensor, votes: torch.Tensor, *, turned: bool = True
    ) -> torch.Tensor:
        """See `PortableWeights`. Cost: the keys are read twice, first for every row's sum."""
        step, heads, rows = self.step, self.step.heads, query.flatten(1)
        assert votes.dtype is torch.float32 and votes.shape == (len(rows),)
        assert votes.is_contiguous() and votes.device == rows.device
        lse = torch.empty((len(rows), heads.heads), dtype=torch.float32, device=rows.device)
        whole = torch.empty_like(lse)
        nowhere = torch.empty(0, dtype=torch.int32, device=rows.device)
        step.attend_into(whole, layer, rows, turned=turned, lse=lse, edges=nowhere)
        received = lse.new_zeros((heads.kv_heads, self.context))
        keys_0, _, scales_0, _, keys_1, _, scales_1, _ = step.tensors(layer)
        wide = rows.dtype is torch.float32
        triton_attend.received_kernel[(len(self.tiles), heads.kv_heads)](
            rows, keys_0, scales_0, keys_1, scales_1, step.rotary.cos, step.rotary.sin, self.tiles,
            step.arrays["pages"], step.arrays["key_positions"], step.arrays["row_positions"], votes,
            lse, received, len(rows), self.context, rows.stride(0), heads.scale * LOG2_E,
            heads.softcap * LOG2_E, heads.window or NO_WINDOW, heads.block or NO_WINDOW,
            KV_HEADS=heads.kv_heads, GROUP=heads.heads // heads.kv_heads, QUERIES=_QUERIES,
            KEYS=self.tile_keys, WIDE=wide, PRECISION="ieee" if step.is_exact or wide else "tf32",
            CAPPED=heads.softcap > 0, num_warps=4 if padded(heads.dim) <= 128 else 8,
            enable_fp_fusion=True, **step.sizes(turned),
        )  # fmt: skip
        return received.sum(dim=0)


def _tiles(sequence: SequenceLayout, page_tokens: int, keys: int) -> np.ndarray:
    """Tiles of keys that any row sees, int32 `[tiles, 5]`, as `received_kernel` takes them."""
    tables, first_page = [], 0
    for segment in sequence.segments:
        count = len(segment.pages)
        starts = np.arange(0, count * page_tokens, keys)
        # a tile nobody sees would be read in vain; its positions may be anything
        shown = segment.key_positions <= sequence.positions[-1]
        starts = starts[np.logical_or.reduceat(shown, starts)] if len(starts) else starts
        table = np.empty((len(starts), 5), np.int32)
        table[:] = first_page, count, 0, segment.begin, segment.arena
        table[:, 2] = starts
        tables.append(table)
        first_page += count
    return np.concatenate(tables)
