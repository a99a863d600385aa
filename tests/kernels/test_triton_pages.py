"""Triton's kernels over pages: writing rows, and attention held to fp64 over the true positions.

What a step must come to is computed without pages, segments or turns: every key rotated to its true
position in fp64. Every slot that no row may see holds NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from chunkcache_kernels import portable
from chunkcache_kernels.arena import HIDDEN, Arena, Segment
from chunkcache_kernels.layout import SequenceLayout, lay_out
from chunkcache_kernels.portable import Heads, Rotary

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from chunkcache_kernels.layout import Layout

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LAYER, LAYERS, PAGES, POSITIONS = 1, 2, 90, 400
PRIVATE, CHUNKS = 0, 1
NAN = float("nan")
pytestmark = pytest.mark.usefixtures("poisoned_empty")


@dataclass(slots=True)
class Shape:
    """What a problem's numbers look like."""

    heads: tuple[int, int] = (9, 3)
    dim: int = 64
    rotary_dim: int | None = None  # all of `dim`
    page_tokens: int = 16
    rows: torch.dtype = F32
    arenas: tuple[torch.dtype, torch.dtype] = (F32, F32)
    sharpness: float = 1.0

    @property
    def coarsest(self) -> torch.dtype:
        """The number type that torch's own error is taken at."""
        return max((self.rows, *self.arenas), key=lambda dtype: torch.finfo(dtype).eps)


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
    ([0, 1, 2, 34, 36, 90, 200, 201], [Passage(0, 40, 3, 0, (31, 33)), Passage(1, 1, 43),
                                       Passage(2, 150, 44, 2, (46,))]),
    ([7, 8, 9, 159, 160], [Passage(2, 150, 10, 0, (149,)), Passage(3, 7, 0)]),
    ([0, 1], []),
    ([3, 4], [Passage(4, 2, 1, 0, (0, 1)), Passage(1, 1, 0), Passage(5, 2, 1)]),
]  # fmt: skip
ALL_ROWS: list[Any] = [([*range(75)], []), ([*range(20, 55)], [Passage(0, 40, 0, 0, (*range(20, 40),))])]
ONE_ROW: list[Any] = [([321], [Passage(0, 300, 21), Passage(1, 21, 0)])]


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
    truth: list[tuple[np.ndarray, Tensor, Tensor]] = field(default_factory=list)

    def run(self) -> Tensor:
        """Write the step's rows and attend."""
        from chunkcache_kernels.triton_pages import TritonStep

        step = TritonStep.bind(self.layout, self.arenas, self.heads, self.rotary)
        step.write(LAYER, self.qkv, self.slots, arena=PRIVATE, turned=self.turned)
        return step.attend(LAYER, self.qkv, turned=self.turned)

    def query(self) -> Tensor:
        """`[R, Hq, D]`."""
        width = self.heads.heads * self.heads.dim
        return self.qkv[:, :width].unflatten(1, (self.heads.heads, -1))

    def _rotated(self, x: Tensor, positions: np.ndarray, exactly: bool) -> Tensor:
        if not self.turned or not self.heads.rotary_dim:
            return x.double() if exactly else x
        angle = _angles(torch.from_numpy(positions.astype(np.int64)), self.heads.rotary_dim)
        if not exactly:
            return _turned(x, *(of.float().to(x.device) for of in angle))
        return _turned(x.double(), *(of.to(x.device) for of in angle))

    def exact(self) -> Tensor:
        """The answer in fp64, by the definition."""
        return self._answer(self._exactly)

    def by_torch(self) -> Tensor:
        """Torch's own attention over rotated keys, at the coarsest number type of the problem."""
        return self._answer(self._torchs)

    def _answer(self, attend: Callable[..., Tensor]) -> Tensor:
        done, query, first = [], self.query(), 0
        for sequence, truth in zip(self.layout.sequences, self.truth, strict=True):
            rows = sequence.positions
            done.append(attend(query[first : first + len(rows)], rows, *truth))
            first += len(rows)
        return torch.cat(done).flatten(1)

    def _exactly(self, q: Tensor, rows: np.ndarray, at: np.ndarray, k: Tensor, v: Tensor) -> Tensor:
        group = self.heads.heads // self.heads.kv_heads
        q, k = self._rotated(q, rows, True), self._rotated(k, at, True)
        k, v = k.repeat_interleave(group, dim=1), v.double().repeat_interleave(group, dim=1)
        scores = torch.einsum("rhd,thd->hrt", q, k) * self.heads.scale
        hidden = torch.from_numpy(at[None] > rows[:, None]).to(q.device)
        return torch.einsum("hrt,thd->rhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)

    def _torchs(self, q: Tensor, rows: np.ndarray, at: np.ndarray, k: Tensor, v: Tensor) -> Tensor:
        q, k = self._rotated(q, rows, False), self._rotated(k, at, False)
        q, k, v = (x.to(self.shape.coarsest).transpose(0, 1)[None] for x in (q, k, v))
        sees = torch.from_numpy(at[None] <= rows[:, None]).to(q.device)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=sees, scale=self.heads.scale, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    def check(self, answer: Tensor) -> None:
        """Fail unless the answer is as good as torch's own, within a factor of two."""
        assert answer.shape == (len(self.qkv), self.heads.heads * self.heads.dim)
        assert answer.dtype == self.qkv.dtype
        exact = self.exact()
        ours, torchs = (
            float((of.double() - exact).norm() / exact.norm()) for of in (answer, self.by_torch())
        )
        limit = 2 * torchs + 2 * torch.finfo(F32).eps
        assert ours <= limit, f"error {ours:.2e}, torch's own {torchs:.2e}"


def _angles(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """fp64 cos and sin `[n, width]`."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.outer(positions.double(), frequencies).repeat(1, 2)
    return angle.cos(), angle.sin()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE at the angles' precision, as pairs of channels."""
    width = cos.shape[1]
    low, high = x[..., : width // 2].to(cos.dtype), x[..., width // 2 : width].to(cos.dtype)
    cos, sin = cos[:, None, : width // 2], sin[:, None, : width // 2]
    rest = x[..., width:].to(cos.dtype)
    return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=-1)


class Maker:
    """Builds seeded problems of a shape out of rows and passages."""

    def __init__(self, shape: Shape, device: torch.device, turned: bool) -> None:
        heads, kv_heads = shape.heads
        rotary_dim = shape.dim if shape.rotary_dim is None else shape.rotary_dim
        self.shape, self.device, self.turned = shape, device, turned
        self.heads = Heads(heads, kv_heads, shape.dim, shape.dim**-0.5, rotary_dim)
        cos, sin = _angles(torch.arange(POSITIONS), rotary_dim)
        self.rotary = Rotary(cos.float().to(device), sin.float().to(device))
        self.arenas = [
            Arena.empty(
                LAYERS, PAGES, kv_heads, shape.dim, shape.page_tokens, dtype=dtype, device=device
            )
            for dtype in shape.arenas
        ]
        self.draw = torch.Generator().manual_seed(7)
        free = np.random.default_rng(7).permutation(PAGES).astype(np.int32)
        self.free = [free, free[::-1]]
        self.chunks: dict[int, tuple[np.ndarray, Tensor, Tensor]] = {}

    def numbers(self, *shape: int) -> Tensor:
        """Random rows of the model's number type."""
        made = torch.randn(*shape, generator=self.draw)
        return made.to(self.shape.rows).to(self.device)

    def pages(self, arena: int, tokens: int) -> np.ndarray:
        """Pages that nobody has, in no order."""
        count = -(-tokens // self.shape.page_tokens)
        taken, self.free[arena] = np.split(self.free[arena], [count])
        assert len(taken) == count
        return taken

    def chunk(self, passage: Passage) -> tuple[np.ndarray, Tensor, Tensor]:
        """The pages of a chunk, written the first time; rows hidden from everybody stay NaN."""
        if passage.chunk not in self.chunks:
            pages = self.pages(CHUNKS, passage.tokens)
            k, v = self.numbers(2, passage.tokens, self.heads.kv_heads, self.heads.dim)
            places = np.arange(passage.tokens)
            slots = pages[places // self.shape.page_tokens] * self.shape.page_tokens
            slots = slots + places % self.shape.page_tokens
            rotary_dim = self.heads.rotary_dim if self.turned else 0
            heads = Heads(*self.shape.heads, self.shape.dim, 1.0, rotary_dim)
            portable.write_rows(
                self.arenas[CHUNKS], LAYER, slots, places, k, v, heads, self.rotary
            )
            self.chunks[passage.chunk] = pages, k, v
        return self.chunks[passage.chunk]

    def make(self, sequences: list[tuple[list[int], list[Passage]]]) -> Problem:
        """Sequences given by their rows' positions and the passages they read."""
        heads, size = self.heads, self.shape.page_tokens
        width = heads.heads + 2 * heads.kv_heads
        qkv = self.numbers(sum(len(rows) for rows, _ in sequences), width, heads.dim)
        qkv[:, : heads.heads] *= self.shape.sharpness
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
        group = heads.heads // heads.kv_heads
        return Problem(
            self.shape, lay_out(layouts, page_tokens=size, group=group), self.arenas, heads,
            self.rotary, qkv.flatten(1), np.concatenate(slots).astype(np.int32), self.turned,
            truths,
        )  # fmt: skip


SHAPES = {
    "fp32": Shape(),
    "bf16": Shape(rows=BF16, arenas=(BF16, BF16)),
    "fp16": Shape(rows=F16, arenas=(F16, F16)),
    "sharp bf16": Shape(rows=BF16, arenas=(BF16, BF16), sharpness=5.0),
    "chunks in bf16 under fp32 rows": Shape(arenas=(F32, BF16)),
    "chunks in fp16, rows in bf16": Shape(rows=BF16, arenas=(BF16, F16)),
    "pages of 8, one head": Shape((1, 1), 16, page_tokens=8),
    "pages of 24, five heads on one": Shape((5, 1), 80, page_tokens=24),
    "pages of 64": Shape((6, 2), 128, page_tokens=64, rows=BF16, arenas=(BF16, BF16)),
    "heads of 256": Shape((2, 1), 256, rows=F16, arenas=(F16, F16)),
    "heads of 8": Shape((2, 2), 8, page_tokens=8),
    "every head its own keys, some channels turned": Shape((3, 3), 80, 32),
    "no channel turned": Shape((2, 1), 32, 0),
    "many heads on one": Shape((71, 1), 16),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("sequences", [SHARED, ONE_ROW], ids=["shared", "one row"])
def test_rows_are_attended_as_exactly_as_torch_does(
    shape: Shape, sequences: list[Any], device: torch.device
) -> None:
    problem = Maker(shape, device, True).make(sequences)
    problem.check(problem.run())


@pytest.mark.parametrize("shape", [SHAPES["fp32"], SHAPES["bf16"]], ids=["fp32", "bf16"])
@pytest.mark.parametrize("turned", [True, False], ids=["turned", "still"])
def test_all_rows_of_a_prompt(shape: Shape, turned: bool, device: torch.device) -> None:
    problem = Maker(shape, device, turned).make(ALL_ROWS)
    problem.check(problem.run())


def test_a_still_layer_turns_nothing(device: torch.device) -> None:
    problem = Maker(Shape(), device, False).make(SHARED)
    problem.check(problem.run())
