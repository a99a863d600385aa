"""Where rows look, summed by Triton's kernels, against fp64 and against the matrix of the twin."""

from __future__ import annotations

import pytest
import torch
from triton_problems import (
    ALL_ROWS,
    BF16,
    F16,
    F32,
    INT4,
    INT8,
    LAYER,
    LONG,
    SHARED,
    Maker,
    Problem,
    Shape,
)

from chunkcache_kernels import lay_out
from chunkcache_kernels.portable import PortableWeights

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SHAPES = {
    "fp32": Shape((3, 1), 64),
    "bf16, pages of 8": Shape((4, 1), 16, page_tokens=8, rows=BF16, arenas=(BF16, BF16)),
    "fp16 over int8, odd pages": Shape(
        (4, 2), 80, 32, page_tokens=24, rows=F16, arenas=(F16, INT8), has_sinks=True
    ),
    "int4, pages of 8": Shape((2, 1), 16, page_tokens=8, rows=BF16, arenas=(BF16, INT4)),
    "a window, capped": Shape(
        (4, 1), 16, page_tokens=8, window=40, block=30, softcap=2.0, sharpness=4.0
    ),
}


def both(problem: Problem, number: int) -> tuple[list[object], torch.Tensor]:
    """Ours and the twin for one sequence, and its queries."""
    from chunkcache_kernels.triton_weights import TritonWeights

    sequence, heads = problem.layout.sequences[number], problem.heads
    of = problem.arenas, heads, problem.rotary
    group = heads.heads // heads.kv_heads
    layout = lay_out([sequence], page_tokens=problem.shape.page_tokens, group=group)
    first = sum(len(s.positions) for s in problem.layout.sequences[:number])
    query = problem.query()[first : first + len(sequence.positions)]
    return [TritonWeights.bind(layout, *of), PortableWeights(sequence, *of)], query


@pytest.mark.parametrize("name", SHAPES)
def test_sums_are_those_of_the_weights(name: str, device: torch.device) -> None:
    turned, small = name != "bf16, pages of 8", SHAPES[name].page_tokens == 8
    problem = Maker(SHAPES[name], device, turned).make(LONG if small else [LONG[1], SHARED[0]])
    problem.run_twin()
    made = torch.Generator().manual_seed(5)
    for number in range(2):
        bound, query = both(problem, number)
        exact, torchs = problem.weights(number), problem.weights(number, problem.coarsest())
        votes = torch.rand(len(query), generator=made).to(device)
        votes[0] = 0.0
        edges = torch.tensor([0, 3, 7, 200])
        named = torch.nn.functional.one_hot(
            torch.searchsorted(edges, torch.arange(exact.shape[1]), right=True), 5
        ).to(exact)
        for one in bound:
            mass = one.mass(LAYER, query, edges, turned=turned)
            received = one.received(LAYER, query, votes, turned=turned)
            assert mass.dtype is received.dtype is F32
            for ours, sums in (
                (mass, lambda w: w @ named),  # noqa: B023
                (received, lambda w: votes.double() @ w),  # noqa: B023
            ):
                limit = 2 * (sums(torchs) - sums(exact)).norm() + 2e-6 * sums(exact).norm()
                assert (ours - sums(exact)).norm() <= limit


def test_more_edges_than_channels(device: torch.device) -> None:
    problem = Maker(Shape((3, 3), 8, page_tokens=8), device, True).make(ALL_ROWS[:1])
    problem.run_twin()
    (ours, twin), query = both(problem, 0)
    edges = torch.arange(0, 50, 2)
    mass = ours.mass(LAYER, query, edges)
    assert mass.shape == (50, 26)
    torch.testing.assert_close(mass, twin.mass(LAYER, query, edges))
    torch.testing.assert_close(mass.sum(1), torch.ones(50, device=device))
