"""A step over poisoned pages, and what it must come to: what the tests of attention share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from chunkcache_kernels import (
    HIDDEN,
    Arena,
    Heads,
    PortableStep,
    Rotary,
    Segment,
    SequenceLayout,
    lay_out,
    turned,
)
from chunkcache_kernels.compiled import CompiledStep

Teams = Callable[[int], Any]  # by size of page; None: torch does the work
CPU = torch.device("cpu")
LAYER = 1  # of two; layer 0 stays poisoned
ROPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


def angles(rope: str, rotary_dim: int, num_positions: int) -> Rotary:
    """transformers' frequencies, the products taken in fp64."""
    if rope == "plain":
        frequencies = 1e4 ** (-torch.arange(0, rotary_dim, 2).double() / rotary_dim)
        scaling = 1.0
    else:
        config = LlamaConfig(
            hidden_size=rotary_dim, num_attention_heads=1, head_dim=rotary_dim,
            max_position_embeddings=32768, rope_parameters=ROPES[rope],
        )  # fmt: skip
        frequencies, scaling = ROPE_INIT_FUNCTIONS[rope](config, CPU)
    angle = torch.outer(torch.arange(num_positions).double(), frequencies.double()).repeat(1, 2)
    return Rotary((angle.cos() * scaling).float(), (angle.sin() * scaling).float())


@dataclass(frozen=True)
class Shape:
    """What a step is like; `seed` draws the rest."""

    seed: int
    group: int = 3
    kv_heads: int = 2
    dim: int = 64
    page_tokens: int = 8
    rope: str = "plain"
    rotary_share: float = 1.0
    turned: bool = True
    begin: int = 0
    sequences: int = 2
    chunks: tuple[int, ...] = (13, 1, 24)
    dtype: torch.dtype = torch.float32
    chunk_type: torch.dtype | None = None
    window: int = 0
    softcap: float = 0.0
    has_sinks: bool = False
    block: int = 0


@dataclass
class Served:
    """One sequence: what is at every position, and where its own rows are written."""

    segments: list[Segment]
    keys: dict[int, torch.Tensor]  # by position, before RoPE, as exact as they are kept
    values: dict[int, torch.Tensor]
    own: np.ndarray  # positions of its own rows, increasing
    slots: np.ndarray
    qkv: torch.Tensor


class World:
    """Two poisoned arenas, chunks in one, sequences over both."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.draw = np.random.default_rng(shape.seed)
        self.made = torch.Generator().manual_seed(shape.seed)
        rotary_dim = int(shape.dim * shape.rotary_share) // 2 * 2
        self.heads = Heads(
            shape.group * shape.kv_heads, shape.kv_heads, shape.dim, shape.dim**-0.5, rotary_dim,
            window=shape.window, softcap=shape.softcap, block=shape.block,
        )  # fmt: skip
        self.sinks = self._sinks()
        self.rotary = angles(shape.rope, rotary_dim, shape.begin + 400)
        size = (2, 96, shape.kv_heads, shape.dim, shape.page_tokens)
        self.arenas = [
            Arena.empty(*size, dtype=dtype, device=CPU)
            for dtype in (shape.dtype, shape.chunk_type or shape.dtype)
        ]
        for arena in self.arenas:
            poison(arena, range(arena.num_pages))
        self._pages = [list(self.draw.permutation(96)) for _ in self.arenas]
        self.chunks = [self._chunk(length) for length in shape.chunks]
        self.sequences = [self._sequence() for _ in range(shape.sequences)]

    def _sinks(self) -> torch.Tensor | None:
        return torch.randn(self.heads.heads, generator=self.made) if self.shape.has_sinks else None

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.made).to(self.shape.dtype)

    def _take(self, arena: int, tokens: int) -> np.ndarray:
        count = -(-tokens // self.shape.page_tokens)
        return np.array([self._pages[arena].pop() for _ in range(count)], dtype=np.int32)

    def _angles(self, positions: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rotary.at(torch.as_tensor(positions, dtype=torch.int64))

    def _turned(self, x: torch.Tensor, positions: Any) -> torch.Tensor:
        if not (self.shape.turned and self.heads.rotary_dim):
            return x.float()
        return turned(x, *self._angles(positions))

    def _chunk(self, length: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
        """Pages of a chunk whose last page is poisoned behind it; its K before RoPE, and V."""
        keys, values = (self._random(length, self.shape.kv_heads, self.shape.dim) for _ in "kv")
        pages, arena = self._take(1, length), self.arenas[1]
        placed = self._turned(keys, np.arange(length))
        nothing = torch.zeros_like(placed)
        arena.write_chunk(
            pages.astype(np.int64), torch.stack([nothing, placed]), torch.stack([nothing, values])
        )
        poison(arena, pages[-1:], behind=(length - 1) % self.shape.page_tokens + 1)
        if self.shape.chunk_type is torch.int8:  # what is kept is what the twin must know
            kept, values = (part[:length] for part in arena.read_rows(LAYER, pages))
            keys = self._back(kept, np.arange(length))
        return pages, keys, values

    def _back(self, x: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
        if not (self.shape.turned and self.heads.rotary_dim):
            return x
        cos, sin = (part.double() for part in self._angles(positions))
        square = cos.square() + sin.square()
        return rotated(x.double(), cos / square, -sin / square)

    def _sequence(self) -> Served:
        """[prefix] own rows, a chunk, own rows, a chunk, ...; some rows of chunks are repaired."""
        draw, shape = self.draw, self.shape
        at = shape.begin + int(draw.integers(0, 9))
        made = Served([], {}, {}, np.empty(0), np.empty(0), torch.empty(0))
        own: list[int] = []
        for number in draw.permutation(len(self.chunks)):
            gap = int(draw.integers(0, 6))
            own += range(at, at + gap)
            pages, keys, values = self.chunks[number]
            begin, length = at + gap, len(keys)
            first = int(draw.integers(0, length)) if draw.random() < 0.3 else 0
            own += range(begin, begin + first)  # a prefix of the chunk that is had otherwise
            segment = Segment.of_chunk(1, pages, shape.page_tokens, begin, first, length)
            kept = np.arange(first, length)
            made.keys |= {begin + int(i): keys[i] for i in kept}
            made.values |= {begin + int(i): values[i] for i in kept}
            hidden = begin + kept[draw.random(len(kept)) < draw.choice([0.0, 0.3, 1.0])]
            segment.hide(hidden)
            if (segment.key_positions != HIDDEN).any():
                made.segments.append(segment)
            own += hidden.tolist()
            at = begin + length
        own += range(at, at + int(draw.integers(1, 12)))
        return self._with_own_rows(made, np.array(sorted(own), dtype=np.int64))

    def _with_own_rows(self, made: Served, own: np.ndarray) -> Served:
        """Own rows lie scattered among pages that hold poison beside them."""
        shape, heads = self.shape, self.heads
        spread = len(own) + int(self.draw.integers(0, 20))
        pages = self._take(0, spread)
        places = self.draw.permutation(len(pages) * shape.page_tokens)[: len(own)]
        where = np.full(len(pages) * shape.page_tokens, HIDDEN, dtype=np.int32)
        where[places] = own
        made.segments.append(Segment(0, pages, 0, where))
        made.own, made.qkv = (
            own,
            self._random(len(own), (heads.heads + 2 * heads.kv_heads) * heads.dim),
        )
        made.slots = (
            pages[places // shape.page_tokens] * shape.page_tokens + places % shape.page_tokens
        ).astype(np.int32)
        parts = made.qkv.view(len(own), -1, heads.dim)[:, heads.heads :]
        made.keys |= dict(zip(own.tolist(), parts[:, : heads.kv_heads].clone(), strict=True))
        made.values |= dict(zip(own.tolist(), parts[:, heads.kv_heads :].clone(), strict=True))
        return made

    def placed(self, s: Served, rows: slice) -> tuple[torch.Tensor, ...]:
        """q of some rows and all keys, rotated to their positions; values; who sees what; fp64."""
        heads, own = self.heads, s.own[rows]
        positions = np.array(sorted(s.keys))
        keys = torch.stack([s.keys[p].double() for p in positions])
        values = torch.stack([s.values[p].double() for p in positions])
        query = s.qkv[rows].view(len(own), -1, heads.dim)[:, : heads.heads].double()
        if self.shape.turned and heads.rotary_dim:
            query = rotated(query, *(part.double() for part in self._angles(own)))
            keys = rotated(keys, *(part.double() for part in self._angles(positions)))
        distance = own[:, None] - positions[None]
        sees = (distance >= 0) & (distance < (self.shape.window or 1 << 30))
        block = self.shape.block or 1 << 30
        sees &= own[:, None] // block == positions[None] // block
        return query, keys, values, torch.from_numpy(sees)

    def weights(self, query: torch.Tensor, keys: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        """fp64 `[heads, R, T]`, before any sink takes its part."""
        keys = keys.repeat_interleave(self.shape.group, dim=1)
        scores = torch.einsum("rhd,thd->hrt", query, keys) * self.heads.scale
        if cap := self.shape.softcap:
            scores = cap * (scores / cap).tanh()
        scores = scores.masked_fill(~sees, -torch.inf)
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks.double()[:, None, None].expand(-1, scores.shape[1], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]

    def expected(self, s: Served, rows: slice) -> torch.Tensor:
        """fp64 `[R, heads · dim]`."""
        query, keys, values, sees = self.placed(s, rows)
        values = values.repeat_interleave(self.shape.group, dim=1)
        weights = self.weights(query, keys, sees)
        return torch.einsum("hrt,thd->rhd", weights, values).flatten(1)

    def torchs(self, s: Served, rows: slice) -> torch.Tensor:
        """The same by torch's own attention, at the number type of the rows."""
        query, keys, values, sees = self.placed(s, rows)
        q, k, v = (x.to(self.shape.dtype).transpose(0, 1)[None] for x in (query, keys, values))
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=sees, scale=self.heads.scale, enable_gqa=True
        )
        return out[0].transpose(0, 1).flatten(1)

    def run(self, teams: Teams) -> list[tuple[Served, slice, torch.Tensor]]:
        """All rows in two steps, as an engine would: each is written, then attends."""
        cuts = [int(self.draw.integers(0, len(s.own))) for s in self.sequences]
        answers = []
        for steps in (
            [(s, slice(0, cut)) for s, cut in zip(self.sequences, cuts, strict=True) if cut],
            [(s, slice(cut, len(s.own))) for s, cut in zip(self.sequences, cuts, strict=True)],
        ):
            if not steps:
                continue
            layout = lay_out(
                [SequenceLayout(s.own[rows], s.segments) for s, rows in steps],
                page_tokens=self.shape.page_tokens, group=self.shape.group,
            )  # fmt: skip
            team, of = teams(self.shape.page_tokens), (self.arenas, self.heads, self.rotary)
            step = CompiledStep.bind(team, layout, *of) if team else PortableStep(layout, *of)
            qkv = torch.cat([s.qkv[rows] for s, rows in steps])
            slots = np.concatenate([s.slots[rows] for s, rows in steps])
            step.write(LAYER, qkv, slots, turned=self.shape.turned)
            out = step.attend(LAYER, qkv, turned=self.shape.turned, sinks=self.sinks)
            parts = out.split([len(s.own[rows]) for s, rows in steps])
            answers += [(s, rows, part) for (s, rows), part in zip(steps, parts, strict=True)]
        return answers


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE as what it is: each pair of numbers turned as one complex number."""
    width = cos.shape[-1]
    half = width // 2
    pairs = torch.complex(x[..., :half], x[..., half:width])
    pairs = pairs * torch.complex(cos[:, None, :half], sin[:, None, :half])
    return torch.cat((pairs.real, pairs.imag, x[..., width:]), dim=-1)


def poison(arena: Arena, pages: Any, behind: int = 0) -> None:
    """What nobody wrote must not be read; int8 has no NaN, its scales have."""
    where = list(pages)
    if arena.key_scales is None or arena.value_scales is None:
        arena.keys[:, where, ..., behind:] = torch.nan
        arena.values[:, where, :, behind:] = torch.nan
        return
    arena.value_scales[:, where, :, behind:] = torch.nan
    if not behind:
        arena.key_scales[:, where] = torch.nan
