"""Where rows look: mass per segment and attention received, against explicit softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import chunkcache_kernels as kernels
from chunkcache_kernels import products
from chunkcache_kernels.reference import attention_probabilities

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = {"one": [33], "last": [*range(100, 140)], "scattered": [0, 4, 60, 61, 199, 330]}
# absolute error of a share: fp32, and what bf16 weights allow
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}


@pytest.fixture(params=["fp32", "bf16 products"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The number type of the rows; bf16 takes the products whatever the size."""
    if request.param == "fp32":
        return torch.float32
    monkeypatch.setattr(products, "MIN_SCORES", 0)
    monkeypatch.setattr(products, "has_bf16_products", lambda: True)
    return torch.bfloat16


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("num_segments", [1, 4, 70])
def test_mass_is_the_attention_summed_over_each_segment(
    rows: list[int], num_segments: int, dtype: torch.dtype, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem(rows, num_keys=rows[-1] + 20, dtype=dtype)
    segments = torch.randint(num_segments, (rows[-1] + 20,))
    mass = kernels.attention_mass(
        problem.q, problem.k, problem.positions, problem.scale, segments, num_segments
    )
    weights = attention_probabilities(problem.q, problem.k, problem.positions, problem.scale)
    expected = torch.zeros(len(rows), num_segments)
    expected.index_add_(1, segments[: weights.shape[-1]], weights.mean(0))
    assert mass.dtype == torch.float32
    torch.testing.assert_close(mass, expected, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(mass.sum(1), torch.ones(len(rows)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_received_is_the_attention_summed_over_rows(
    rows: list[int], dtype: torch.dtype, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem(rows, dtype=dtype, num_keys=rows[-1] + 7)
    received = kernels.attention_received(problem.q, problem.k, problem.positions, problem.scale)
    weights = attention_probabilities(problem.q, problem.k, problem.positions, problem.scale)
    assert received.dtype == torch.float32 and received.shape == (rows[-1] + 1,)
    torch.testing.assert_close(
        received, weights.mean(0).sum(0), rtol=0, atol=TOLERANCE[dtype] * len(rows)
    )
    assert float(received.sum()) == pytest.approx(len(rows), rel=1e-5)


def test_keys_after_the_last_row_receive_nothing_and_are_not_read(
    dtype: torch.dtype, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem([2, 9], num_keys=30, dtype=dtype)
    problem.k[10:] = float("nan")
    args = (problem.q, problem.k, problem.positions, problem.scale)
    assert bool(kernels.attention_received(*args).isfinite().all())
    segments = torch.zeros(30, dtype=torch.int64)
    assert bool(kernels.attention_mass(*args, segments, 2).isfinite().all())
