"""Seeded steps for Triton's kernels, and what they must come to in fp64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from chunkcache_kernels import fours, portable
from chunkcache_kernels.arena import HIDDEN, Arena, Segment
from chunkcache_kernels.layout import SequenceLayout, lay_out
from chunkcache_kernels.portable import Heads, Rotary

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from chunkcache_kernels.layout import Layout
    from chunkcache_kernels.triton_pages import TritonStep

F32, BF16, F16, INT8 = torch.float32, torch.bfloat16, torch.float16, torch.int8
INT4 = fours.PAGE_TYPE
LAYER, LAYERS, PAGES, POSITIONS = 1, 2, 90, 400
PRIVATE, CHUNKS = 0, 1
NAN = float("nan")


@dataclass(slots=True)
class Shape:
    """What a problem's numbers look like."""

    heads: tuple[int, int] = (6, 2)
    dim: int = 64
    rotary_dim: int | None = None  # all of `dim`
    page_tokens: int = 16
    rows: torch.dtype = F32
    arenas: tuple[torch.dtype, torch.dtype] = (F32, F32)
    sharpness: float = 1.0
    window: int = 0
    softcap: float = 0.0
    has_sinks: bool = False
    block: int = 0
    values: float = 1.0  # how large they are


@dataclass(slots=True)
class Passage:
    """A chunk in a prompt: rows `first..end` of `tokens`, of which `replaced` are made again."""

    chunk: int
    tokens: int
    begin: int
    first: int = 0
    replaced: tuple[int, ...] = ()  # places in the chunk


# two prompts that share chunks, one of them inside a look of both; a chunk of one token; rows
# before, between and inside passages; a passage that is replaced as a whole
SHARED = [
    ([0, 1, 2, 34, 36, 90, 120, 121], [Passage(0, 40, 3, 0, (31, 33)), Passage(1, 1, 43),
                                       Passage(2, 70, 44, 2, (46,))]),
    ([7, 8, 9, 79, 80], [Passage(2, 70, 10, 0, (69,)), Passage(3, 7, 0)]),
    ([0, 1], []),
    ([3, 4], [Passage(4, 2, 1, 0, (0, 1)), Passage(1, 1, 0), Passage(5, 2, 1)]),
]  # fmt: skip
ALL_ROWS: list[Any] = [
    ([*range(50)], []),
    ([*range(20, 45)], [Passage(0, 40, 0, 0, (*range(20, 40),))]),
]
ONE_ROW: list[Any] = [([321], [Passage(0, 300, 21), Passage(1, 21, 0)])]
# rows enough for tiles of their own, over more pages than one program takes, beside rows that
# share; a chunk that stands twice in a prompt
LONG: list[Any] = [
    ([5, *range(310, 326), 340], [Passage(0, 300, 6, 0, (7, 299)), Passage(1, 9, 330)]),
    ([20, 21], [Passage(1, 9, 0), Passage(1, 9, 10, 2)]),
]


@dataclass(slots=True)
class Problem:
    """A step: rows over segments, and what it must come to."""

    shape: Shape
    layout: Layout
    arenas: list[Arena]
    heads: Heads
    rotary: Rotary
    qkv: Tensor
    slots: np.ndarray
    turned: bool
    # of each sequence: positions of its keys, keys before RoPE and values, as the model made them
    truth: list[tuple[np.ndarray, Tensor, Tensor]]

    def bind(self) -> TritonStep:
        """The step; Triton is imported no sooner."""
        from chunkcache_kernels.triton_pages import TritonStep

        return TritonStep.bind(self.layout, self.arenas, self.heads, self.rotary)

    def bind_twin(self) -> portable.PortableStep:
        """The step in torch."""
        return portable.PortableStep(self.layout, self.arenas, self.heads, self.rotary)

    def run(self) -> Tensor:
        """Write the step's rows and attend."""
        step = self.bind()
        step.write(LAYER, self.qkv, self.slots, arena=PRIVATE, turned=self.turned)
        return step.attend(LAYER, self.qkv, turned=self.turned, sinks=self.sinks())

    def sinks(self) -> Tensor | None:
        """fp32 `[heads]`, the same every time."""
        if not self.shape.has_sinks:
            return None
        made = torch.Generator().manual_seed(11)
        return torch.randn(self.heads.heads, generator=made).to(self.qkv.device)

    def run_twin(self) -> Tensor:
        """What `run` does, by torch."""
        self.write_by_torch(self.arenas[PRIVATE])
        args = LAYER, self.query(), self.torch_heads(), self.rotary, self.sinks()
        return portable.attend(self.layout, self.arenas, *args).flatten(1)

    def coarsest(self) -> torch.dtype:
        """The number type of products; int8 and int4 are widened to that of the rows."""
        dtypes = [self.shape.rows, *(of for of in self.shape.arenas if of.is_floating_point)]
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    def scores(self, number: int, dtype: torch.dtype | None = None) -> Tensor:
        """fp64 `[heads, R, keys]` of one sequence, hidden ones -inf; exact, or of queries and keys
        rounded to a number type, as torch's own attention has them.
        """
        sequence, (at, k, _) = self.layout.sequences[number], self.truth[number]
        first = sum(len(s.positions) for s in self.layout.sequences[:number])
        rows = sequence.positions
        q = self.query()[first : first + len(rows)]
        wide = torch.float64 if dtype is None else F32
        q, k = self._rotated(q, rows, wide), self._rotated(k, at, wide)
        if dtype is not None:
            q, k = q.to(dtype).double(), k.to(dtype).double()
        k = k.repeat_interleave(self.heads.heads // self.heads.kv_heads, dim=1)
        return self._scored(q, k, self._sees(rows, at))

    def weights(self, number: int, dtype: torch.dtype | None = None) -> Tensor:
        """fp64 `[R, last position + 1]` of one sequence, mean over heads, as if without sinks."""
        weights = self.scores(number, dtype).softmax(-1)
        weights = (weights if dtype is None else weights.to(dtype).double()).mean(0)
        sequence, at = self.layout.sequences[number], self.truth[number][0]
        context = int(max(at.max(), sequence.positions[-1])) + 1
        spread = weights.new_zeros((len(weights), context))
        spread[:, torch.from_numpy(at.astype(np.int64))] = weights
        return spread[:, : int(sequence.positions[-1]) + 1]

    def torch_heads(self) -> Heads:
        """The heads as torch takes them, which knows no layers that do not turn."""
        return self.heads if self.turned else replace(self.heads, rotary_dim=0)

    def write_by_torch(self, arena: Arena) -> None:
        """The step's keys and values to their slots."""
        of_keys = self.heads.heads * self.heads.dim
        key, value = self.qkv[:, of_keys:].unflatten(1, (2, self.heads.kv_heads, -1)).unbind(1)
        rows = self.slots, self.layout.row_positions, key, value
        portable.write_rows(arena, LAYER, *rows, self.torch_heads(), self.rotary)

    def query(self) -> Tensor:
        """`[R, Hq, D]`."""
        width = self.heads.heads * self.heads.dim
        return self.qkv[:, :width].unflatten(1, (self.heads.heads, -1))

    def _rotated(self, x: Tensor, positions: np.ndarray, dtype: torch.dtype) -> Tensor:
        if not self.turned or not self.heads.rotary_dim:
            return x.to(dtype)
        angle = _angles(torch.from_numpy(positions.astype(np.int64)), self.heads.rotary_dim)
        return _turned(x.to(dtype), *(of.to(device=x.device, dtype=dtype) for of in angle))

    def _answer(self, attend: Callable[..., Tensor]) -> Tensor:
        done, query, first = [], self.query(), 0
        for sequence, truth in zip(self.layout.sequences, self.truth, strict=True):
            rows = sequence.positions
            done.append(attend(query[first : first + len(rows)], rows, *truth))
            first += len(rows)
        return torch.cat(done).flatten(1)

    def _exactly(self, q: Tensor, rows: np.ndarray, at: np.ndarray, k: Tensor, v: Tensor) -> Tensor:
        """In fp64, by the definition."""
        group = self.heads.heads // self.heads.kv_heads
        q, k = self._rotated(q, rows, torch.float64), self._rotated(k, at, torch.float64)
        k, v = k.repeat_interleave(group, dim=1), v.double().repeat_interleave(group, dim=1)
        return self._weighed(q, k, v, self._sees(rows, at))

    def _sees(self, rows: np.ndarray, at: np.ndarray) -> Tensor:
        distance = rows[:, None] - at[None]
        sees = (distance >= 0) & (distance < (self.heads.window or POSITIONS))
        block = self.heads.block or POSITIONS
        sees &= rows[:, None] // block == at[None] // block
        return torch.from_numpy(sees).to(self.qkv.device)

    def _scored(self, q: Tensor, k: Tensor, sees: Tensor) -> Tensor:
        scores = torch.einsum("rhd,thd->hrt", q, k) * self.heads.scale
        if cap := self.heads.softcap:
            scores = cap * (scores / cap).tanh()
        return scores.masked_fill(~sees, -torch.inf)

    def _weighed(self, q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
        scores = self._scored(q, k, sees)
        if (sinks := self.sinks()) is not None:
            of_heads = sinks.to(scores.dtype)[:, None, None].expand(-1, len(q), 1)
            scores = torch.cat([scores, of_heads], dim=-1)
        weights = scores.softmax(-1)[..., : len(k)]
        return torch.einsum("hrt,thd->rhd", weights, v)

    def _torchs(self, q: Tensor, rows: np.ndarray, at: np.ndarray, k: Tensor, v: Tensor) -> Tensor:
        """Torch's own attention over rotated keys, at the coarsest number type of the problem."""
        q, k = self._rotated(q, rows, F32), self._rotated(k, at, F32)
        coarsest, sees = self.coarsest(), self._sees(rows, at)
        if self.heads.softcap or self.shape.has_sinks:  # which torch's own function does not know
            group = self.heads.heads // self.heads.kv_heads
            wide = (x.repeat_interleave(group, dim=1).to(coarsest) for x in (k, v))
            return self._weighed(q.to(coarsest), *wide, sees)
        q, k, v = (x.to(coarsest).transpose(0, 1)[None] for x in (q, k, v))
        scale = self.heads.scale
        out = scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1)

    def check(self, answer: Tensor) -> None:
        """Fail unless the answer is as good as torch's own, within a factor of two."""
        assert answer.shape == (len(self.qkv), self.heads.heads * self.heads.dim)
        assert answer.dtype == self.qkv.dtype
        exact = self._answer(self._exactly)
        torchs = float((self._answer(self._torchs).double() - exact).norm() / exact.norm())
        ours = float((answer.double() - exact).norm() / exact.norm())
        limit = 2 * torchs + 2 * torch.finfo(F32).eps
        assert ours <= limit, f"error {ours:.2e}, torch's own {torchs:.2e}"


def scribble(arena: Arena) -> None:
    """Fill pages with what memory may hold that nobody has written: any bits, those of infinite,
    quiet and signalling NaN and numbers near overflow among them; the same every time.
    """
    made = torch.Generator().manual_seed(13)
    for part in (arena.keys, arena.values, arena.key_scales, arena.value_scales):
        if part is not None:
            bits = part.view(torch.uint8)
            bits.copy_(torch.randint(0, 256, bits.shape, dtype=torch.uint8, generator=made))


def _angles(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """fp64 cos and sin `[n, width]`."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.outer(positions.double(), frequencies).repeat(1, 2)
    return angle.cos(), angle.sin()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE as pairs of channels."""
    half = cos.shape[1] // 2
    low, high, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=-1)


class Maker:
    """Builds seeded problems of a shape out of rows and passages."""

    def __init__(self, shape: Shape, device: torch.device, turned: bool) -> None:
        heads, kv_heads = shape.heads
        rotary_dim = shape.dim if shape.rotary_dim is None else shape.rotary_dim
        self.shape, self.device, self.turned = shape, device, turned
        self.heads = Heads(
            heads, kv_heads, shape.dim, shape.dim**-0.5, rotary_dim, shape.window, shape.softcap,
            shape.block,
        )  # fmt: skip
        cos, sin = _angles(torch.arange(POSITIONS), rotary_dim)
        self.rotary = Rotary(cos.float().to(device), sin.float().to(device))
        sizes = LAYERS, PAGES, kv_heads, shape.dim, shape.page_tokens
        self.arenas = [Arena.empty(*sizes, dtype=dtype, device=device) for dtype in shape.arenas]
        for arena in self.arenas:
            scribble(arena)
        self.draw = torch.Generator().manual_seed(7)
        free = np.random.default_rng(7).permutation(PAGES).astype(np.int32)
        self.free = [free, free[::-1]]
        self.chunks: dict[int, tuple[np.ndarray, Tensor, Tensor]] = {}

    def numbers(self, *shape: int) -> Tensor:
        """Random rows of the model's number type."""
        return torch.randn(*shape, generator=self.draw).to(self.device, self.shape.rows)

    def pages(self, arena: int, tokens: int) -> np.ndarray:
        """Pages that nobody has, in no order."""
        taken, rest = np.split(self.free[arena], [-(-tokens // self.shape.page_tokens)])
        self.free[arena] = rest
        return taken

    def chunk(self, passage: Passage) -> tuple[np.ndarray, Tensor, Tensor]:
        """The pages of a chunk, written the first time."""
        if passage.chunk not in self.chunks:
            pages = self.pages(CHUNKS, passage.tokens)
            k, v = self.numbers(2, passage.tokens, self.heads.kv_heads, self.heads.dim)
            v = v * self.shape.values
            places, size = np.arange(passage.tokens), self.shape.page_tokens
            slots = pages[places // size] * size + places % size
            heads = self.heads if self.turned else replace(self.heads, rotary_dim=0)
            arena = self.arenas[CHUNKS]
            if arena.key_scales is not None:
                k, v = self._rounded(pages, k, v)
            else:
                portable.write_rows(arena, LAYER, slots, places, k, v, heads, self.rotary)
            self.chunks[passage.chunk] = pages, k, v
        return self.chunks[passage.chunk]

    def _rounded(self, pages: np.ndarray, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write a chunk to rounded pages; what they keep of it, K before RoPE, is the truth."""
        arena, width = self.arenas[CHUNKS], self.heads.rotary_dim if self.turned else 0
        cos, sin = (x.to(k.device) for x in _angles(torch.arange(len(k)), width))
        placed = _turned(k.double(), cos, sin).float()
        arena.write_chunk(pages.astype(np.int64), placed[None], v[None], LAYER)
        keys, values = (x[: len(k)].double() for x in arena.read_rows(LAYER, pages))
        return _turned(keys, cos, -sin), values

    def make(self, sequences: list[tuple[list[int], list[Passage]]]) -> Problem:
        """Sequences given by their rows' positions and the passages they read."""
        heads, size = self.heads, self.shape.page_tokens
        width = heads.heads + 2 * heads.kv_heads
        qkv = self.numbers(sum(len(rows) for rows, _ in sequences), width, heads.dim)
        qkv[:, : heads.heads] *= self.shape.sharpness
        qkv[:, heads.heads + heads.kv_heads :] *= self.shape.values
        layouts, truths, slots, done = [], [], [], 0
        for rows, passages in sequences:
            segments, at, keys, values = [], [], [], []
            for of in passages:
                pages, k, v = self.chunk(of)
                segment = Segment.of_chunk(CHUNKS, pages, size, of.begin, of.first, of.tokens)
                segment.hide(np.array(of.replaced, dtype=np.int32) + of.begin)
                shown = np.flatnonzero(segment.key_positions != HIDDEN)
                segments.append(segment)
                at.append(segment.key_positions[shown])
                keys.append(k[shown])
                values.append(v[shown])
            pages = self.pages(PRIVATE, len(rows) + 3)
            # the first three slots belong to nobody, and so does the end of the last page
            stands = np.full(len(pages) * size, HIDDEN, dtype=np.int32)
            stands[3 : 3 + len(rows)] = rows
            segments.append(Segment(PRIVATE, pages, 0, stands))
            places = np.arange(3, 3 + len(rows))
            slots.append(pages[places // size] * size + places % size)
            own = qkv[done : done + len(rows), heads.heads :]
            done += len(rows)
            at.append(np.array(rows, dtype=np.int32))
            keys.append(own[:, : heads.kv_heads])
            values.append(own[:, heads.kv_heads :])
            layouts.append(SequenceLayout(np.array(rows, dtype=np.int64), segments))
            truths.append((np.concatenate(at), torch.cat(keys), torch.cat(values)))
        self.poison(layouts)
        group = heads.heads // heads.kv_heads
        layout = lay_out(layouts, page_tokens=size, group=group)
        args = self.shape, layout, self.arenas, heads, self.rotary, qkv.flatten(1)
        return Problem(*args, np.concatenate(slots).astype(np.int32), self.turned, truths)

    def poison(self, sequences: list[SequenceLayout]) -> None:
        """NaN for the chunks' keys and values that no row sees."""
        size, arena = self.shape.page_tokens, self.arenas[CHUNKS]
        seen = np.zeros((PAGES, size), dtype=bool)
        for sequence in sequences:
            for segment in sequence.segments:
                if segment.arena == CHUNKS:
                    shown = segment.key_positions <= sequence.positions[-1]
                    seen[segment.pages] |= shown.reshape(-1, size)
        nobodys = torch.from_numpy(~seen).to(self.device)
        if arena.key_scales is not None and arena.value_scales is not None:
            whole = nobodys.all(1)[:, None, None]
            of_keys = whole if arena.keys.dtype is INT8 else whole[..., None]
            arena.key_scales.masked_fill_(of_keys, NAN)
            of_values = nobodys[:, None, :] if arena.keys.dtype is INT8 else whole[..., None]
            arena.value_scales.masked_fill_(of_values, NAN)
            return
        arena.keys.masked_fill_(nobodys[:, None, None, :], NAN)
        arena.values.masked_fill_(nobodys[:, None, :, None], NAN)


def _assert_same(ours: Arena, theirs: Arena) -> None:
    """Also where nobody wrote: NaN, which equals nothing."""
    assert torch.equal(ours.keys.nan_to_num(777.0), theirs.keys.nan_to_num(777.0))
    assert torch.equal(ours.values.nan_to_num(777.0), theirs.values.nan_to_num(777.0))
