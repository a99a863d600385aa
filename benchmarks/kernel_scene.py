"""Pages of some prompts and the rows that read them, and what attention over them must come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from kernel_cases import cold_copies
from torch.nn.attention.bias import causal_lower_right

from chunkcache_kernels import (
    Arena,
    Heads,
    Layout,
    Rotary,
    Segment,
    SequenceLayout,
    lay_out,
    turned,
)

THETA = 1e5
PAGE, CHUNK = 32, 512
OWN, CHUNKS = 0, 1


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of `chunks` chunks and `own` tokens; the last `rows` of each are run, or `scattered`
    ones in its chunks and the last one. Several sequences have the same chunks, each in its order,
    or each its own.
    """

    what: str
    rows: int
    chunks: int
    own: int = 64
    sequences: int = 1
    scattered: bool = False
    shares: bool = True
    flexes: bool = False  # beside FlexAttention too, which compiles for many seconds

    @property
    def written(self) -> int:
        """Chunks there are."""
        return self.chunks if self.shares else self.chunks * self.sequences

    @property
    def tokens(self) -> int:
        """Length of each."""
        return self.chunks * CHUNK + self.own

    @property
    def size(self) -> str:
        """As the table shows it."""
        of = f" of {self.sequences}" if self.sequences > 1 else ""
        return f"{self.what}: {self.rows * self.sequences} rows{of}, {self.tokens} keys"


class Scene:
    """Pages of some prompts and their rows, in `layers` equal layers; queries make scores with a
    standard deviation of 2, as measured in SmolLM2.

    The chunks' keys and values lie in pages as `pages` says, rows and their own pages as `rows`.
    """

    def __init__(
        self, of: Prompts, pages: torch.dtype, rows: torch.dtype, device: torch.device, heads: Heads
    ) -> None:
        self.of, self.device, self.heads = of, device, heads
        self.dtype = rows
        self.rotary = angles(of.tokens + PAGE, heads.dim, device)
        in_torch = of.sequences * 2 * of.tokens * heads.kv_heads * heads.dim * self.dtype.itemsize
        self.layers = cold_copies(in_torch)
        chunks = self._drawn(of.written * CHUNK)
        spare = 0 if of.chunks else PAGE  # an arena has a page
        self.arenas = [
            self._arena(of.sequences * of.tokens + PAGE * of.sequences, self.dtype),
            self._arena(of.written * CHUNK + spare, pages),
        ]
        self.chunks = self._write_chunks(chunks) if of.chunks else chunks.double()
        self.rows = [self._positions() for _ in range(of.sequences)]
        self.keys, self.values, self.sequences, slots = [], [], [], []
        for number in range(of.sequences):
            slots.append(self._sequence(number))
        self.slots = np.concatenate(slots)
        group = heads.heads // heads.kv_heads
        self.layout: Layout = lay_out(self.sequences, page_tokens=PAGE, group=group)
        width = (heads.heads + 2 * heads.kv_heads) * heads.dim
        self.qkv = torch.randn(of.sequences * of.rows, width, device=device).to(self.dtype)
        self.qkv[:, : heads.heads * heads.dim] *= 2

    def _drawn(self, tokens: int) -> torch.Tensor:
        """K before RoPE and V `[2, tokens, heads, dim]`, fp32 numbers of the rows' type."""
        shape = (2, tokens, self.heads.kv_heads, self.heads.dim)
        return torch.randn(shape, device=self.device).to(self.dtype).float()

    def _arena(self, tokens: int, dtype: torch.dtype) -> Arena:
        pages = -(-tokens // PAGE)
        sizes = self.layers, pages, self.heads.kv_heads, self.heads.dim, PAGE
        return Arena.empty(*sizes, dtype=dtype, device=self.device)

    def _write(self, arena: int, pages: np.ndarray, places: torch.Tensor, kv: torch.Tensor) -> None:
        keys = turned(kv[0], *self.rotary.at(places))
        layers = [x.expand(self.layers, *x.shape) for x in (keys, kv[1])]
        self.arenas[arena].write_chunk(pages, *layers)

    def _write_chunks(self, kv: torch.Tensor) -> torch.Tensor:
        """K before RoPE and V of the chunks as their pages have them, fp64."""
        places = torch.arange(CHUNK).repeat(self.of.written)
        every = np.arange(self.of.written * CHUNK // PAGE, dtype=np.int64)
        self._write(CHUNKS, every, places, kv)
        if self.arenas[CHUNKS].key_scales is None:
            return kv.double()
        keys, values = self.arenas[CHUNKS].read_rows(0, every)
        return torch.stack((rotated(keys, -places), values.double()))

    def _positions(self) -> np.ndarray:
        of = self.of
        if not of.scattered:
            return np.arange(of.tokens - of.rows, of.tokens)
        inside = torch.randperm(of.chunks * CHUNK)[: of.rows - 1].sort().values.numpy()
        return np.append(inside, of.tokens - 1)

    def _sequence(self, number: int) -> np.ndarray:
        """Lay out one sequence, keep what torch is to see of it; the slots of its rows."""
        of, rows = self.of, self.rows[number]
        first = 0 if of.shares else number * of.chunks
        order = (first + torch.randperm(of.chunks)).tolist()
        segments = []
        for place, chunk in enumerate(order):
            pages = np.arange(CHUNK // PAGE, dtype=np.int32) + chunk * (CHUNK // PAGE)
            segments.append(Segment.of_chunk(CHUNKS, pages, PAGE, place * CHUNK, 0, CHUNK))
            segments[-1].hide(rows)
        tail = np.arange(of.chunks * CHUNK, of.tokens)
        own = np.union1d(rows, tail)
        count = -(-len(own) // PAGE)
        first = number * (self.arenas[OWN].num_pages // of.sequences)
        pages = np.arange(first, first + count, dtype=np.int32)
        shown = np.full(count * PAGE, np.iinfo(np.int32).max, dtype=np.int32)
        shown[: len(own)] = own
        segments.append(Segment(OWN, pages, 0, shown))
        kv, standing = self._drawn(len(own)), torch.from_numpy(own)
        self._write(OWN, pages.astype(np.int64), standing, kv)
        shape = 2, of.written, CHUNK, *self.chunks.shape[2:]
        chunked = self.chunks.view(shape)[:, order].flatten(1, 2)
        seen = torch.cat((chunked, chunked.new_zeros((2, of.own, *shape[3:]))), dim=1)
        seen[:, standing] = kv.double()
        self.keys.append(rotated(seen[0], torch.arange(of.tokens)))
        self.values.append(seen[1])
        self.sequences.append(SequenceLayout(rows, segments))
        slots = first * PAGE + np.searchsorted(own, rows)
        return slots.astype(np.int32)

    # ------------------------------------------------------------ the slow twins

    def queries(self, number: int) -> torch.Tensor:
        """Of one sequence, before RoPE, `[rows, heads, dim]`."""
        rows = slice(number * self.of.rows, (number + 1) * self.of.rows)
        return self.every_query()[rows]

    def every_query(self) -> torch.Tensor:
        """Of all sequences, before RoPE, `[rows of all, heads, dim]`."""
        heads, dim = self.heads.heads, self.heads.dim
        return self.qkv[:, : heads * dim].unflatten(1, (heads, dim))

    def sees(self, number: int) -> torch.Tensor:
        """bool `[rows, tokens]`."""
        rows = torch.from_numpy(self.rows[number]).to(self.device)
        return torch.arange(self.of.tokens, device=self.device)[None] <= rows[:, None]

    def exact_weights(self, number: int) -> torch.Tensor:
        """fp64 `[kv_heads, group, rows, tokens]`: one explicit softmax over keys as they stand."""
        at = torch.from_numpy(self.rows[number])
        query = rotated(self.queries(number), at).unflatten(1, (self.heads.kv_heads, -1))
        scores = torch.einsum("rkgd,tkd->kgrt", query, self.keys[number]) * self.heads.scale
        return scores.masked_fill_(~self.sees(number), -torch.inf).softmax(-1)

    def exact(self) -> torch.Tensor:
        """fp64 `[rows of all, heads · dim]`."""
        parts = [
            torch.einsum("kgrt,tkd->rkgd", self.exact_weights(n), self.values[n]).flatten(1)
            for n in range(self.of.sequences)
        ]
        return torch.cat(parts)

    def for_torch(self) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Queries `[S, heads, rows, dim]`, KV `[layers, 2, S, kv_heads, tokens, dim]`, and a mask:
        none for one row, a word for the last rows, which flash attention knows, else numbers.

        All are rotated, in one piece, in the rows' number type.
        """
        at = torch.from_numpy(np.concatenate(self.rows))
        query = turned(self.every_query(), *self.rotary.at(at)).to(self.dtype)
        query = query.view(self.of.sequences, self.of.rows, *query.shape[1:]).transpose(1, 2)
        kv = torch.stack((torch.stack(self.keys), torch.stack(self.values)))
        kv = kv.to(self.dtype).transpose(2, 3)
        kv = kv.expand(self.layers, *kv.shape).contiguous()
        if self.of.rows == 1:
            return query, kv, None
        if not self.of.scattered and self.device.type == "cuda":
            return query, kv, causal_lower_right(self.of.rows, self.of.tokens)
        return query, kv, self.mask()

    def mask(self) -> torch.Tensor:
        """`[S, 1, rows, tokens]`: 0 where a row sees a key, else -inf."""
        sees = torch.stack([self.sees(n) for n in range(self.of.sequences)])[:, None]
        mask = torch.zeros(sees.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~sees, -torch.inf)


def angles(positions: int, dim: int, device: torch.device) -> Rotary:
    """RoPE's, taken in fp64."""
    turns = torch.outer(torch.arange(positions).double(), frequencies(dim))
    parts = [part.float().repeat(1, 2).to(device) for part in (turns.cos(), turns.sin())]
    return Rotary(*parts)


def frequencies(dim: int) -> torch.Tensor:
    """fp64 `[dim / 2]`."""
    return THETA ** -(torch.arange(0, dim, 2).double() / dim)


def rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`x` `[n, heads, dim]` turned to `positions`, all in fp64."""
    dim = x.shape[-1]
    turns = torch.outer(positions.double(), frequencies(dim)).to(x.device)
    pairs = torch.complex(x[..., : dim // 2].double(), x[..., dim // 2 :].double())
    pairs = pairs * torch.polar(torch.ones_like(turns), turns)[:, None]
    return torch.cat((pairs.real, pairs.imag), dim=-1)
