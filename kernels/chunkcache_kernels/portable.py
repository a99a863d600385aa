"""Attention over pages in torch: what runs on a GPU without Triton's kernels and on a CPU without a
compiler, and the twin that the compiled kernels are held to.

Shapes: R rows, Hq query heads, Hkv key heads, D head dimension, T keys of a segment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache_kernels import fours
from chunkcache_kernels.rotary import turned

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chunkcache_kernels.arena import Arena, Segment
    from chunkcache_kernels.layout import Layout, SequenceLayout

ROW_BLOCK = 128  # rows whose scores are held at a time


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """What attention must know of a layer beside its numbers."""

    heads: int
    kv_heads: int
    dim: int
    scale: float  # multiplies q · k
    rotary_dim: int  # the first so many channels are turned; 0: none
    window: int = 0  # positions up to its own that a row sees; 0: all
    softcap: float = 0.0  # c: scores are c · tanh(score / c); 0: as they are
    block: int = 0  # a row sees keys of its own block of so many positions; 0: of all


@dataclass(slots=True, eq=False)
class Rotary:
    """fp32 angles by position, `[positions, rotary_dim]`, halves side by side."""

    cos: torch.Tensor
    sin: torch.Tensor

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin `[n, rotary_dim]`; int64 positions below 0 count as 0."""
        index = positions.clamp(min=0).to(self.cos.device)
        return self.cos[index], self.sin[index]


def write_rows(
    arena: Arena,
    layer: int,
    slots: np.ndarray,
    positions: np.ndarray,
    key: torch.Tensor,
    value: torch.Tensor,
    heads: Heads,
    rotary: Rotary,
) -> None:
    """Rotate `key` `[R, Hkv, D]` to its positions in fp32 and write it and `value` to `slots`.

    `slots` int `[R]`: page · page_tokens + place; -1 writes nothing.
    """
    if heads.rotary_dim:
        key = turned(key, *rotary.at(torch.from_numpy(positions.astype(np.int64))))
    keep = slots >= 0
    if not keep.all():
        rows = torch.from_numpy(np.flatnonzero(keep)).to(key.device)
        key, value, slots = key[rows], value[rows], slots[keep]
    where = torch.from_numpy(slots.astype(np.int64)).to(key.device)
    page, place = where // arena.page_tokens, where % arena.page_tokens
    arena.keys[layer].permute(0, 3, 1, 2)[page, place] = key.to(arena.keys.dtype)
    arena.values[layer].permute(0, 2, 1, 3)[page, place] = value.to(arena.values.dtype)


def place_chunk(
    arena: Arena,
    first: int,
    kv: torch.Tensor,
    pages: np.ndarray,
    angles: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Layers of a chunk from its record to its pages; K is rotated in fp32 and cast once.

    Args:
        first: the layer of the arena that the first one is.
        kv: `[layers, 2, tokens, heads, dim]`, K before RoPE.
        pages: int64, ceil(tokens / page_tokens) of them.
        angles: fp32 cos and sin `[tokens, rotary_dim]` of the places in the chunk; 0 wide where
            keys have no positions.
    """
    by_token = kv[:, 0].transpose(0, 1)
    rotated = turned(by_token.flatten(1, 2), *angles).view(by_token.shape).transpose(0, 1)
    arena.write_chunk(pages, rotated, kv[:, 1], first)


def attend(
    layout: Layout,
    arenas: Sequence[Arena],
    layer: int,
    query: torch.Tensor,
    heads: Heads,
    rotary: Rotary,
    sinks: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of a step's rows `[R, Hq, D]` before RoPE → like them.

    `sinks` fp32 `[Hq]`: a score of each head that takes weight and gives no value. `lse` fp32
    `[R, Hq]` becomes the logarithm of the sum of e^score over the keys, sinks aside. Scores and
    softmax in fp32. Cost: the keys of every segment are gathered once for each `ROW_BLOCK` rows.
    """
    out = torch.empty_like(query)
    first = 0
    for sequence in layout.sequences:
        for block in _blocks(sequence):
            rows = slice(first + block.start, first + block.stop)
            weights, values = _weigh(
                sequence, block, arenas, layer, query[rows], heads, rotary, sinks=sinks,
                lse=None if lse is None else lse[rows],
            )  # fmt: skip
            mixed = (weights @ values).view(
                heads.kv_heads, heads.heads // heads.kv_heads, -1, heads.dim
            )
            out[rows] = mixed.permute(2, 0, 1, 3).flatten(1, 2).to(out.dtype)
        first += len(sequence.positions)
    return out


def attention_weights(
    sequence: SequenceLayout,
    arenas: Sequence[Arena],
    layer: int,
    query: torch.Tensor,
    heads: Heads,
    rotary: Rotary,
) -> torch.Tensor:
    """fp32 `[R, last position + 1]`: attention of rows `[R, Hq, D]` to every position, mean over
    query heads; rows sum to 1, as if there were no sinks.
    """
    parts = []
    for block in _blocks(sequence):
        weights, positions = _weigh(
            sequence, block, arenas, layer, query[block], heads, rotary, values=False
        )
        grouped = weights.view(len(weights), heads.heads // heads.kv_heads, -1, weights.shape[-1])
        mean = grouped.mean(dim=(0, 1))
        spread = mean.new_zeros((mean.shape[0], int(sequence.positions[-1]) + 1))
        parts.append(spread.index_add_(1, positions, mean))
    return torch.cat(parts)


def _blocks(sequence: SequenceLayout) -> Iterator[slice]:
    count = len(sequence.positions)
    for start in range(0, count, ROW_BLOCK):
        yield slice(start, min(start + ROW_BLOCK, count))


def _weigh(
    sequence: SequenceLayout,
    block: slice,
    arenas: Sequence[Arena],
    layer: int,
    query: torch.Tensor,
    heads: Heads,
    rotary: Rotary,
    *,
    values: bool = True,
    sinks: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax weights fp32 `[Hkv, group · R, T]` over all segments, and the keys' values
    `[Hkv, T, D]`, or without them their positions int64 `[T]`.
    """
    positions = torch.from_numpy(sequence.positions[block].astype(np.int64))
    floors = positions - (heads.window or 1 << 40)
    if heads.block:
        floors = torch.maximum(floors, positions - positions % heads.block - 1)
    first, last = int(floors[0]), int(positions[-1])
    scores, others = [], []
    for segment in sequence.segments:
        there = segment.key_positions  # what nobody sees may be unwritten
        index = np.flatnonzero((there <= last) & (there > first))
        if not len(index):
            continue
        seen = torch.from_numpy(segment.key_positions[index].astype(np.int64)).to(query.device)
        keys, value = _gather(arenas[segment.arena], layer, segment, index, values=values)
        q = _folded(query, positions - segment.begin, heads, rotary)
        part = (q @ keys) * heads.scale
        if heads.softcap:
            part = heads.softcap * torch.tanh(part / heads.softcap)
        hidden = seen[None] > positions[:, None].to(query.device)
        hidden |= seen[None] <= floors[:, None].to(query.device)
        scores.append(part.masked_fill_(hidden.repeat(part.shape[1] // len(hidden), 1), -torch.inf))
        others.append(seen if value is None else value)
    if lse is not None:
        sums = torch.cat(scores, dim=-1).logsumexp(dim=-1)
        lse.copy_(sums.view(heads.heads, -1).t())
    if sinks is not None:
        group = heads.heads // heads.kv_heads
        of_head = sinks.float().view(heads.kv_heads, group, 1).expand(-1, -1, len(positions))
        scores.append(of_head.flatten(1)[..., None])
    weights = torch.cat(scores, dim=-1).softmax(dim=-1)
    weights = weights if sinks is None else weights[..., :-1]
    return weights, torch.cat(others, dim=1 if values else 0)


def _folded(
    query: torch.Tensor, distance: torch.Tensor, heads: Heads, rotary: Rotary
) -> torch.Tensor:
    """fp32 `[Hkv, group · R, D]`: the query heads of a group as rows of one head, turned."""
    wide = query.float()
    if heads.rotary_dim:
        wide = turned(wide, *rotary.at(distance))
    rows = wide.shape[0]
    grouped = wide.reshape(rows, heads.kv_heads, -1, heads.dim).permute(1, 2, 0, 3)
    return grouped.flatten(1, 2)


def _gather(
    arena: Arena, layer: int, segment: Segment, index: np.ndarray, *, values: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Keys `[Hkv, D, T]` and values `[Hkv, T, D]` in fp32."""
    device, size = arena.keys.device, arena.page_tokens
    pages = torch.from_numpy(segment.pages[index // size].astype(np.int64)).to(device)
    place = torch.from_numpy(index % size).to(device)
    if arena.keys.dtype is fours.PAGE_TYPE:
        assert arena.key_scales is not None and arena.value_scales is not None
        keys = fours.keys_at(arena.keys[layer], arena.key_scales[layer], pages, place)
        if not values:
            return keys, None
        return keys, fours.values_at(arena.values[layer], arena.value_scales[layer], pages, place)
    keys = arena.keys[layer].permute(0, 3, 1, 2)[pages, place].permute(1, 2, 0).float()
    if arena.key_scales is not None:
        keys *= arena.key_scales[layer, pages].permute(1, 2, 0)
    if not values:
        return keys, None
    value = arena.values[layer].permute(0, 2, 1, 3)[pages, place].transpose(0, 1).float()
    if arena.value_scales is not None:
        value *= arena.value_scales[layer].transpose(1, 2)[pages, place].t()[..., None]
    return keys, value


def mass_of(weights: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """fp32 `[R, E + 1]` of weights by position `[R, positions]`, summed between `edges` `[E]`."""
    edges = edges.to(weights.device)
    at = torch.arange(weights.shape[1], device=edges.device, dtype=edges.dtype)
    named = torch.searchsorted(edges, at, right=True)
    return weights @ torch.nn.functional.one_hot(named, len(edges) + 1).float()


@dataclass(slots=True, eq=False)
class PortableWeights:
    """Rows of one sequence bound to what they see: their attention to every position."""

    sequence: SequenceLayout
    arenas: Sequence[Arena]
    heads: Heads
    rotary: Rotary

    def weights(self, layer: int, query: torch.Tensor, *, turned: bool = True) -> torch.Tensor:
        """fp32 `[R, last position + 1]` of queries `[R, heads, dim]` before RoPE; rows sum to 1."""
        heads = self.heads if turned else replace(self.heads, rotary_dim=0)
        return attention_weights(self.sequence, self.arenas, layer, query, heads, self.rotary)

    def mass(
        self, layer: int, query: torch.Tensor, edges: torch.Tensor, *, turned: bool = True
    ) -> torch.Tensor:
        """fp32 `[R, E + 1]`: the weights that fall between positions `edges` `[E]`, increasing."""
        return mass_of(self.weights(layer, query, turned=turned), edges)

    def received(
        self, layer: int, query: torch.Tensor, votes: torch.Tensor, *, turned: bool = True
    ) -> torch.Tensor:
        """fp32 `[last position + 1]`: what every position gets from all rows, each times its vote,
        fp32 `[R]`.
        """
        return votes @ self.weights(layer, query, turned=turned)


@dataclass(slots=True, eq=False)
class PortableStep:
    """A layout bound to arenas and angles: the verbs of a step, in torch."""

    layout: Layout
    arenas: Sequence[Arena]
    heads: Heads
    rotary: Rotary

    def write(
        self,
        layer: int,
        qkv: torch.Tensor,
        slots: np.ndarray,
        *,
        arena: int = 0,
        turned: bool = True,
        query_norm: torch.Tensor | None = None,
        key_norm: torch.Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        """Norm queries and keys in place, rotate keys and write them and the values to `slots`.

        `qkv` `[R, (heads + 2 kv_heads) · dim]`; `slots` int32 `[R]`, -1 writes nothing.
        """
        query, key, value = split_qkv(qkv, self.heads)
        for part, norm in ((query, query_norm), (key, key_norm)):
            if norm is not None:
                part.copy_(torch.nn.functional.rms_norm(part.float(), norm.shape, norm, eps))
        heads = self.heads if turned else replace(self.heads, rotary_dim=0)
        positions = self.layout.row_positions
        write_rows(self.arenas[arena], layer, slots, positions, key, value, heads, self.rotary)

    def attend(
        self,
        layer: int,
        qkv: torch.Tensor,
        *,
        turned: bool = True,
        sinks: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`[R, heads · dim]`, like `qkv`, whose rows begin with their queries before RoPE.

        `sinks` fp32 `[heads]`: scores that take weight and give no value. `lse` as in `attend`.
        """
        heads = self.heads if turned else replace(self.heads, rotary_dim=0)
        query = split_qkv(qkv, heads)[0]
        out = attend(self.layout, self.arenas, layer, query, heads, self.rotary, sinks, lse)
        return out.flatten(1)


def split_qkv(qkv: torch.Tensor, heads: Heads) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries `[R, heads, dim]`, keys and values `[R, kv_heads, dim]`, as views of the rows."""
    sizes = [heads.heads, heads.kv_heads, heads.kv_heads]
    query, key, value = qkv.view(len(qkv), -1, heads.dim).split_with_sizes(sizes, dim=1)
    return query, key, value
