"""Steps in arrays that stay: what other steps before them left there must not show."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from triton_problems import (
    ALL_ROWS,
    BF16,
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

from chunkcache_kernels.layout import SequenceLayout, lay_out

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SHAPES = {
    "fp32": Shape((6, 2), 16),
    "bf16 over int8": Shape((2, 1), 16, page_tokens=32, rows=BF16, arenas=(BF16, INT8)),
    "int4, sinks, a window": Shape((2, 1), 16, arenas=(F32, INT4), has_sinks=True, window=30),
}
# few rows of each: one of long context, some that share chunks
FEW: list[Any] = [
    *ONE_ROW,
    *([(rows[-2:], passages) for rows, passages in SHARED[:2]]),
    ([90], [Passage(2, 70, 20)]),
]
STEPS = ([0, 1, 2, 3], [1], [2, 3])  # sequences of FEW, one after another


def step_of(problem: Any, numbers: list[int]) -> Any:
    """A layout of some of the sequences, and the rows of these."""
    sequences = problem.layout.sequences
    first = np.cumsum([0, *(len(s.positions) for s in sequences)])
    rows = np.concatenate([np.arange(first[n], first[n + 1]) for n in numbers])
    some = [SequenceLayout(sequences[n].positions, sequences[n].segments) for n in numbers]
    group = problem.heads.heads // problem.heads.kv_heads
    return lay_out(some, page_tokens=problem.shape.page_tokens, group=group), rows


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_step_is_bit_for_bit_what_it_is_when_bound_anew(
    shape: Shape, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chunkcache_kernels import triton_fixed
    from chunkcache_kernels.triton_fixed import FixedStep, Room, plan_if_fixed
    from chunkcache_kernels.triton_pages import TritonStep

    monkeypatch.setattr(triton_fixed, "programs", lambda _: 4)  # fewer than there are items
    problem = Maker(shape, device, True).make(FEW)
    bound = problem.arenas, problem.heads, problem.rotary
    group, rows_in_all = problem.heads.heads // problem.heads.kv_heads, 16
    steps: dict[int, FixedStep] = {}  # by size of the largest item, as the engine keeps them
    twin_arenas = deepcopy(problem.arenas)
    for numbers in STEPS:
        layout, rows = step_of(problem, numbers)
        made = plan_if_fixed(layout, problem.arenas, problem.heads)
        assert made is not None
        queries = Room.of(made, len(rows), group).queries
        if queries not in steps:
            steps[queries] = FixedStep.empty(Room(rows_in_all, queries, 64, 256), *bound)
        fixed = steps[queries]
        qkv = torch.full((rows_in_all, problem.qkv.shape[1]), NAN, device=device).to(shape.rows)
        qkv[: len(rows)] = problem.qkv[rows]
        fixed.load(made, layout, problem.slots[rows])
        fixed.find_bounds()
        fixed.write(LAYER, qkv, np.zeros(0, np.int32), arena=PRIVATE)
        anew = TritonStep.bind(layout, twin_arenas, problem.heads, problem.rotary)
        anew.write(LAYER, problem.qkv[rows], problem.slots[rows], arena=PRIVATE)
        for ours, twin in zip(problem.arenas, twin_arenas, strict=True):
            _assert_same(ours, twin)
        found = fixed.attend(LAYER, qkv, sinks=problem.sinks())
        exact = anew.attend(LAYER, problem.qkv[rows].contiguous(), sinks=problem.sinks())
        assert torch.equal(found[: len(rows)], exact)
        assert not fixed.step.counters.any()


def test_tiles_of_rows_have_no_fixed_step(device: torch.device) -> None:
    from chunkcache_kernels.triton_fixed import Room, plan_if_fixed

    for scenes in (LONG, ALL_ROWS):
        problem = Maker(Shape((4, 1), 16, page_tokens=8), device, True).make(scenes)
        assert plan_if_fixed(problem.layout, problem.arenas, problem.heads) is None
        from chunkcache_kernels.triton_pages import planned

        made = planned(problem.layout, problem.arenas, problem.heads, num_heads=1)
        with pytest.raises(AssertionError, match="tiles of their own"):
            Room.of(made, 64, 4)


def test_a_step_that_finds_no_room_is_refused(device: torch.device) -> None:
    from chunkcache_kernels.triton_fixed import FixedStep, Room, plan_if_fixed

    problem = Maker(SHAPES["fp32"], device, True).make(FEW)
    layout, rows = step_of(problem, [0, 1])
    made = plan_if_fixed(layout, problem.arenas, problem.heads)
    assert made is not None
    room = Room.of(made, 4, 3)
    assert room.holds(room) and room.parts >= len(made.entries)
    for name in ("rows", "queries", "parts", "pages"):
        small = replace(room, **{name: 1})
        assert not small.holds(room) and small.and_that_of(room) == room
    step = FixedStep.empty(replace(room, rows=1), problem.arenas, problem.heads, problem.rotary)
    with pytest.raises(AssertionError, match="no room"):
        step.load(made, layout, problem.slots[rows])
