"""Triton's kernels over pages: writing rows, and attention held to fp64 over the true positions.

What a step must come to is computed without pages, segments or turns: every key rotated to its true
position in fp64. Every slot that no row may see holds NaN.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from triton_problems import (
    ALL_ROWS,
    BF16,
    CHUNKS,
    F16,
    F32,
    INT4,
    INT8,
    LAYER,
    LONG,
    NAN,
    ONE_ROW,
    PRIVATE,
    SHARED,
    Maker,
    Passage,
    Shape,
    _assert_same,
)

pytestmark = pytest.mark.usefixtures("poisoned_empty")

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
    "chunks in int8": Shape(arenas=(F32, INT8)),
    "chunks in int8, rows in bf16": Shape(
        (4, 2), 80, page_tokens=32, rows=BF16, arenas=(BF16, INT8), softcap=20.0, has_sinks=True
    ),
    "chunks in int8, odd pages": Shape((2, 1), 24, page_tokens=24, rows=F16, arenas=(F16, INT8)),
    "chunks in int8, small values in fp16": Shape(
        (2, 1), 16, page_tokens=32, rows=F16, arenas=(F16, INT8), values=3e-3
    ),
    "chunks in int4": Shape((2, 1), 16, arenas=(F32, INT4)),
    "chunks in int4, rows in bf16": Shape(
        (4, 2), 80, page_tokens=32, rows=BF16, arenas=(BF16, INT4), softcap=20.0, has_sinks=True
    ),
    "chunks in int4, odd pages": Shape((2, 1), 24, page_tokens=24, rows=F16, arenas=(F16, INT4)),
    "a window": Shape(window=30),
    "a window of one": Shape((2, 1), 16, window=1, rows=BF16, arenas=(BF16, BF16)),
    "a block": Shape(block=40),
    "capped scores": Shape(softcap=2.0, sharpness=5.0),
    "sinks": Shape((3, 1), 16, has_sinks=True),
    "all of it in bf16": Shape(
        (4, 2), 64, rows=BF16, arenas=(BF16, BF16), window=50, softcap=20.0, has_sinks=True
    ),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_rows_are_attended_as_exactly_as_torch_does(shape: Shape, device: torch.device) -> None:
    problem = Maker(shape, device, True).make(SHARED)
    problem.check(problem.run())


@pytest.mark.parametrize("name", ["bf16", "chunks in int8, rows in bf16", "a window", "sinks"])
def test_one_row_is_spread_over_many_programs(name: str, device: torch.device) -> None:
    problem = Maker(SHAPES[name], device, True).make(ONE_ROW)
    problem.check(problem.run())


@pytest.mark.parametrize("name", ["chunks in int8", "chunks in int4"])
def test_a_page_in_the_middle_that_is_replaced_as_a_whole(name: str, device: torch.device) -> None:
    """Its ranges may be NaN, which times 0 is NaN."""
    middle = Passage(0, 40, 3, 0, (*range(16, 32),))
    problem = Maker(SHAPES[name], device, True).make([([45], [middle])])
    problem.check(problem.run())


@pytest.mark.parametrize("shape", [SHAPES["bf16"]], ids=["bf16"])
def test_all_rows_of_a_prompt(shape: Shape, device: torch.device) -> None:
    problem = Maker(shape, device, True).make(ALL_ROWS)
    problem.check(problem.run())


TILED = {
    "fp32": Shape((4, 1), 16, page_tokens=8),
    "bf16 over int8": Shape((4, 1), 96, page_tokens=8, rows=BF16, arenas=(BF16, INT8)),
    "a window": Shape((4, 1), 16, page_tokens=8, window=40, block=50, has_sinks=True),
}


@pytest.mark.parametrize("shape", TILED.values(), ids=TILED.keys())
def test_tiles_of_rows_beside_rows_that_share(shape: Shape, device: torch.device) -> None:
    problem = Maker(shape, device, True).make(LONG)
    step = problem.bind()
    assert len(step.kinds) == 2 and len(step.arrays["items"]) > 5, "both kinds, one of them cut"
    problem.check(problem.run())


def test_layers_follow_each_other_on_the_same_counters(device: torch.device) -> None:
    problem = Maker(Shape((4, 1), 16, page_tokens=8), device, True).make(LONG)
    step = problem.bind()
    step.write(LAYER, problem.qkv, problem.slots, arena=PRIVATE)
    first = step.attend(LAYER, problem.qkv)
    assert not step.counters.any()
    assert torch.equal(step.attend(LAYER, problem.qkv), first)


def test_a_changed_key_moves_later_rows_and_no_bit_of_others(device: torch.device) -> None:
    problem = Maker(Shape((4, 1), 16, page_tokens=8), device, True).make(ALL_ROWS[:1])
    before, own = problem.run(), problem.arenas[PRIVATE]
    for position in (0, 17, 31, 49):
        page, place = divmod(int(problem.slots[position]), 8)
        own.keys[LAYER, page, :, :, place] += 3
        own.values[LAYER, page, :, place] -= 50
        after = problem.bind().attend(LAYER, problem.qkv)
        assert torch.equal(after[:position], before[:position])
        assert (after[position:] != before[position:]).any(1).all()
        before = after


@pytest.mark.parametrize("shape", list(TILED.values())[1:], ids=list(TILED)[1:])
def test_the_logarithm_of_the_sum_is_of_keys_alone(shape: Shape, device: torch.device) -> None:
    problem = Maker(shape, device, True).make(LONG)
    problem.run_twin()
    sums = []
    for step in (problem.bind(), problem.bind_twin()):
        lse = torch.empty(len(problem.qkv), problem.heads.heads, device=device)
        step.attend(LAYER, problem.qkv, sinks=problem.sinks(), lse=lse)
        sums.append(lse.double())
    every = range(len(problem.layout.sequences))
    exact, torchs = (
        torch.cat([problem.scores(n, dtype).logsumexp(-1).t() for n in every])
        for dtype in (None, problem.coarsest())
    )
    limit = 2 * (torchs - exact).norm() + 1e-6 * exact.norm()
    for lse in sums:
        assert (lse - exact).norm() <= limit


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


WRITTEN = ["fp32", "bf16", "fp16", "chunks in fp16, rows in bf16", "pages of 8, one head",
           "pages of 24, five heads on one", "heads of 256", "heads of 8", "no channel turned",
           "every head its own keys, some channels turned"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "turned"), [*((name, True) for name in WRITTEN), ("bf16", False)], ids=str
)
def test_writing_equals_its_twin_and_writes_nothing_else(
    name: str, turned: bool, device: torch.device
) -> None:
    problem = Maker(SHAPES[name], device, turned).make(ALL_ROWS[1:])
    problem.slots[[0, 3, len(problem.slots) - 1]] = -1
    twin = deepcopy(problem.arenas[PRIVATE])
    problem.bind().write(LAYER, problem.qkv, problem.slots, turned=turned)
    problem.write_by_torch(twin)
    assert twin.keys.isfinite().any()
    _assert_same(problem.arenas[PRIVATE], twin)


def test_writing_goes_to_the_arena_and_the_slots_of_each_call(device: torch.device) -> None:
    problem = Maker(Shape(arenas=(F32, BF16)), device, True).make(ALL_ROWS[1:])
    step, (before, twin) = problem.bind(), deepcopy(problem.arenas)
    for shift in (0, 1):
        problem.slots[:] = np.arange(len(problem.slots)) * 2 + shift
        step.write(LAYER, problem.qkv, problem.slots, arena=CHUNKS)
        problem.write_by_torch(twin)
    _assert_same(problem.arenas[CHUNKS], twin)
    _assert_same(problem.arenas[PRIVATE], before)


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
