"""Triton's kernels over pages: writing rows, and attention held to fp64 over the true positions.

What a step must come to is computed without pages, segments or turns: every key rotated to its true
position in fp64. Every slot that no row may see holds NaN.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
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
    from chunkcache_kernels.triton_pages import TritonStep

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
    window: int = 0
    softcap: float = 0.0
    has_sinks: bool = False


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
        return torch.from_numpy(sees).to(self.qkv.device)

    def _weighed(self, q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
        scores = torch.einsum("rhd,thd->hrt", q, k) * self.heads.scale
        if cap := self.heads.softcap:
            scores = cap * (scores / cap).tanh()
        scores = scores.masked_fill(~sees, -torch.inf)
        if (sinks := self.sinks()) is not None:
            of_heads = sinks.to(scores.dtype)[:, None, None].expand(-1, len(q), 1)
            scores = torch.cat([scores, of_heads], dim=-1)
        weights = scores.softmax(-1)[..., : len(k)]
        return torch.einsum("hrt,thd->rhd", weights, v)

    def _torchs(self, q: Tensor, rows: np.ndarray, at: np.ndarray, k: Tensor, v: Tensor) -> Tensor:
        """Torch's own attention over rotated keys, at the coarsest number type of the problem."""
        q, k = self._rotated(q, rows, F32), self._rotated(k, at, F32)
        dtypes = self.shape.rows, *self.shape.arenas
        coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        sees = self._sees(rows, at)
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
            heads, kv_heads, shape.dim, shape.dim**-0.5, rotary_dim, shape.window, shape.softcap
        )
        cos, sin = _angles(torch.arange(POSITIONS), rotary_dim)
        self.rotary = Rotary(cos.float().to(device), sin.float().to(device))
        sizes = LAYERS, PAGES, kv_heads, shape.dim, shape.page_tokens
        self.arenas = [Arena.empty(*sizes, dtype=dtype, device=device) for dtype in shape.arenas]
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
            places, size = np.arange(passage.tokens), self.shape.page_tokens
            slots = pages[places // size] * size + places % size
            heads = self.heads if self.turned else replace(self.heads, rotary_dim=0)
            portable.write_rows(self.arenas[CHUNKS], LAYER, slots, places, k, v, heads, self.rotary)
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
        arena.keys.masked_fill_(nobodys[:, None, None, :], NAN)
        arena.values.masked_fill_(nobodys[:, None, :, None], NAN)


def _assert_same(ours: Arena, theirs: Arena) -> None:
    """Also where nobody wrote: NaN, which equals nothing."""
    assert torch.equal(ours.keys.nan_to_num(777.0), theirs.keys.nan_to_num(777.0))
    assert torch.equal(ours.values.nan_to_num(777.0), theirs.values.nan_to_num(777.0))


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
    "many heads on one": Shape((40, 1), 16),
    "a window": Shape(window=30),
    "a window of one": Shape((2, 1), 16, window=1, rows=BF16, arenas=(BF16, BF16)),
    "capped scores": Shape(softcap=2.0, sharpness=5.0),
    "sinks": Shape(has_sinks=True),
    "all of it in bf16": Shape(
        (4, 2), 64, rows=BF16, arenas=(BF16, BF16), window=50, softcap=20.0, has_sinks=True
    ),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("sequences", [SHARED, ONE_ROW], ids=["shared", "one row"])
def test_rows_are_attended_as_exactly_as_torch_does(
    shape: Shape, sequences: list[Any], device: torch.device
) -> None:
    problem = Maker(shape, device, True).make(sequences)
    problem.check(problem.run())


@pytest.mark.parametrize("shape", [SHAPES["fp32"], SHAPES["bf16"]], ids=["fp32", "bf16"])
def test_all_rows_of_a_prompt(shape: Shape, device: torch.device) -> None:
    problem = Maker(shape, device, True).make(ALL_ROWS)
    problem.check(problem.run())


@pytest.mark.parametrize("turned", [True, False], ids=["turned", "still"])
def test_the_twin_passes_the_same_rule(turned: bool, device: torch.device) -> None:
    problem = Maker(Shape(), device, turned).make(SHARED)
    problem.check(problem.run())
    problem.check(problem.run_twin())


def test_rows_may_lie_apart(device: torch.device) -> None:
    problem = Maker(Shape(), device, True).make(ONE_ROW + ALL_ROWS[1:])
    apart = torch.full((len(problem.qkv), problem.qkv.shape[1] + 5), NAN, device=device)
    apart[:, :-5] = problem.qkv
    together, problem.qkv = problem.qkv, apart[:, :-5]
    answer = problem.run()
    problem.check(answer)
    assert torch.equal(apart[:, :-5], together), "rows that are not normed stay as they are"
    queries = problem.query().flatten(1).contiguous()
    assert torch.equal(problem.bind().attend(LAYER, queries), answer)


def test_rows_whose_numbers_are_no_neighbours_are_refused(device: torch.device) -> None:
    problem = Maker(Shape(), device, True).make(ONE_ROW + ALL_ROWS[1:])
    step, turned_round = problem.bind(), problem.qkv.t().contiguous().t()
    with pytest.raises(AssertionError, match="must be neighbours"):
        step.attend(LAYER, turned_round)
    with pytest.raises(AssertionError, match="must be neighbours"):
        step.write(LAYER, turned_round, problem.slots)
    weight = torch.ones(problem.heads.dim, device=device)
    with pytest.raises(AssertionError, match="would overlap"):
        step.write(LAYER, problem.qkv[:1].expand_as(problem.qkv), problem.slots, key_norm=weight)


@pytest.mark.parametrize("turned", [True, False], ids=["turned", "still"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_writing_equals_its_twin_and_writes_nothing_else(
    shape: Shape, turned: bool, device: torch.device
) -> None:
    problem = Maker(shape, device, turned).make(ALL_ROWS[1:])
    problem.slots[[0, 3, len(problem.slots) - 1]] = -1
    twin = deepcopy(problem.arenas[PRIVATE])
    problem.bind().write(LAYER, problem.qkv, problem.slots, turned=turned)
    problem.write_by_torch(twin)
    assert twin.keys.isfinite().any()
    _assert_same(problem.arenas[PRIVATE], twin)


def test_writing_goes_to_the_arena_and_the_slots_of_each_call(device: torch.device) -> None:
    problem = Maker(Shape(arenas=(F32, BF16)), device, True).make(ALL_ROWS[1:])
    step, twin = problem.bind(), deepcopy(problem.arenas[CHUNKS])
    for shift in (0, 1):
        problem.slots[:] = np.arange(len(problem.slots)) * 2 + shift
        step.write(LAYER, problem.qkv, problem.slots, arena=CHUNKS)
        problem.write_by_torch(twin)
    _assert_same(problem.arenas[CHUNKS], twin)
    assert problem.arenas[PRIVATE].keys.isnan().all()


@pytest.mark.parametrize("shape", [Shape(), Shape((3, 1), 80, 32, 24), SHAPES["bf16"]], ids=str)
@pytest.mark.parametrize("normed", ["queries", "keys", "both"])
def test_queries_and_keys_are_normed_in_place(
    shape: Shape, normed: str, device: torch.device
) -> None:
    problem = Maker(shape, device, True).make(ALL_ROWS[1:])
    heads, kv_heads = shape.heads
    problem.slots[2] = -1  # not written, but normed all the same
    weights = torch.rand(2, shape.dim, generator=torch.Generator().manual_seed(1)).to(device) + 0.5
    norms = None if normed == "keys" else weights[0], None if normed == "queries" else weights[1]
    twin = deepcopy(problem.arenas[PRIVATE])
    before = problem.qkv.unflatten(1, (-1, shape.dim)).clone()
    problem.bind().write(
        LAYER, problem.qkv, problem.slots, query_norm=norms[0], key_norm=norms[1], eps=1e-5
    )
    after = problem.qkv.unflatten(1, (-1, shape.dim))
    of_queries, of_keys, of_values = (0, heads), (heads, heads + kv_heads), (heads + kv_heads, None)
    for (first, end), weight in zip((of_queries, of_keys, of_values), (*norms, None), strict=True):
        ours, exact = after[:, first:end].double(), before[:, first:end].double()
        if weight is not None:
            exact /= (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() / weight.double()
        eps = 0.0 if weight is None else torch.finfo(shape.rows).eps
        assert (ours - exact).norm() <= eps * exact.norm()
    # the pages hold the normed keys as they came out of it, rounded
    problem.write_by_torch(twin)
    _assert_same(problem.arenas[PRIVATE], twin)
