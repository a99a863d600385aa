"""Attention of rows in torch: the rule of visibility, accuracy, every path of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import chunkcache_kernels as kernels
from chunkcache_kernels import products
from chunkcache_kernels.reference import rows_attention_naive

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = {
    "one row at 0": [0],
    "one row": [77],
    "all rows": [*range(65)],
    "the last rows": [*range(130, 150)],
    "scattered": [0, 1, 7, 40, 41, 42, 90, 149],
    "more than a block, scattered": [*range(0, 390, 3)],
    "a block to the row": [*range(128)],
    "two blocks and one": [*range(44, 301)],
}


PATHS = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,  # by size: torch's attention where rows are few
    "bf16 products": torch.bfloat16,  # even where they do not pay
}


@pytest.fixture(params=PATHS)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The number type of the rows, and with it their way through the CPU path."""
    if request.param == "bf16 products":
        monkeypatch.setattr(products, "MIN_SCORES", 0)
        monkeypatch.setattr(products, "has_bf16_products", lambda: True)
    return PATHS[request.param]


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_rows_are_attended_as_exactly_as_torch_does(
    rows: list[int],
    dtype: torch.dtype,
    make_problem: Callable[..., Any],
    poisoned_empty: None,
) -> None:
    problem = make_problem(rows, dtype=dtype, sharpness=2.0)
    problem.check(kernels.rows_attention(*problem.args))


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (8, 1), (14, 2)], ids=str)
@pytest.mark.parametrize("dim", [16, 80, 128])
def test_any_grouping_of_heads_and_any_width(
    heads: tuple[int, int], dim: int, dtype: torch.dtype, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem([2, 3, 50], heads=heads, dim=dim, dtype=dtype)
    problem.check(kernels.rows_attention(*problem.args))


@given(
    rows=st.sets(st.integers(0, 250), min_size=1, max_size=150),
    name=st.sampled_from(sorted(PATHS)),
)
@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_choice_of_rows_equals_the_slow_twin(
    rows: set[int], name: str, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem(sorted(rows), dtype=PATHS[name])
    with pytest.MonkeyPatch.context() as patch:
        if name == "bf16 products":
            patch.setattr(products, "MIN_SCORES", 0)
            patch.setattr(products, "has_bf16_products", lambda: True)
        fast = kernels.rows_attention(*problem.args)
    slow = rows_attention_naive(*problem.args)
    problem.check(fast)
    problem.check(slow)


@pytest.mark.parametrize("rows", [[0, 5, 6, 30], [20], [*range(20)]], ids=["some", "one", "all"])
def test_a_row_sees_the_keys_at_or_before_it_and_no_other(
    dtype: torch.dtype,
    rows: list[int],
    make_problem: Callable[..., Any],
    assert_sees_only_its_past: Callable[..., None],
) -> None:
    problem = make_problem(rows, num_keys=36, dtype=dtype)
    assert_sees_only_its_past(kernels.rows_attention, problem)


def test_the_oracle_catches_a_triangle_anchored_at_the_bottom_right(
    make_problem: Callable[..., Any], assert_sees_only_its_past: Callable[..., None]
) -> None:
    def as_if_rows_were_last(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor, scale: float
    ) -> torch.Tensor:
        assumed = torch.arange(k.shape[0] - q.shape[0], k.shape[0])
        return rows_attention_naive(q, k, v, assumed, scale)

    last = make_problem([*range(30, 40)])
    assert_sees_only_its_past(as_if_rows_were_last, last)
    scattered = make_problem([0, 5, 6, 30])
    with pytest.raises(AssertionError, match="saw it"):
        assert_sees_only_its_past(as_if_rows_were_last, scattered)


def test_the_oracle_catches_a_row_that_misses_its_own_key(
    make_problem: Callable[..., Any], assert_sees_only_its_past: Callable[..., None]
) -> None:
    def off_by_one(q: torch.Tensor, *rest: Any) -> torch.Tensor:
        k, v, positions, scale = rest
        return rows_attention_naive(q, k, v, positions - 1, scale)

    with pytest.raises(AssertionError, match="did not see it"):
        assert_sees_only_its_past(off_by_one, make_problem([3, 8, 20]))


def test_keys_after_the_last_row_are_never_read(
    dtype: torch.dtype, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem([0, 3, 17], num_keys=40, dtype=dtype)
    clean = kernels.rows_attention(*problem.args)
    problem.k[18:] = float("nan")
    problem.v[18:] = float("nan")
    assert torch.equal(kernels.rows_attention(*problem.args), clean)


@pytest.mark.parametrize("planned", [False, True], ids=["unplanned", "planned"])
@pytest.mark.parametrize("layout", ["a run", "scattered"])
def test_paged_rows_read_their_own_slots_only(
    planned: bool, dtype: torch.dtype, layout: str, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem([1, 2, 40, 149], dtype=dtype)
    run = torch.arange(30, 180)
    slots = run if layout == "a run" else torch.randperm(200)[:150]
    pools = torch.full((2, 200, 3, 64), float("nan"), dtype=dtype)
    pools[0, slots], pools[1, slots] = problem.k, problem.v
    plan = None
    if planned:
        plan = kernels.plan_rows(problem.positions, slots, like=pools[0], num_heads=9)
    out = kernels.paged_rows_attention(
        problem.q, pools[0], pools[1], slots, problem.positions, problem.scale, plan=plan
    )
    assert torch.equal(out, kernels.rows_attention(*problem.args))


def test_a_plan_without_blocks_is_completed(make_problem: Callable[..., Any]) -> None:
    problem = make_problem([1, 2, 40])
    slots = torch.arange(41)
    plan = kernels.plan_rows(problem.positions, slots, like=problem.k, num_heads=9)
    bare = kernels.RowPlan(plan.q_positions, plan.slots, plan.context, plan.read, plan.write, ())
    args = (problem.q, problem.k, problem.v, slots, problem.positions, problem.scale)
    assert torch.equal(
        kernels.paged_rows_attention(*args, plan=bare), kernels.paged_rows_attention(*args)
    )


def test_heads_may_lie_before_rows_in_memory(
    dtype: torch.dtype, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem([1, 2, 40], dtype=dtype)
    usual = kernels.rows_attention(*problem.args)
    q, k, v = (
        x.transpose(0, 1).contiguous().transpose(0, 1) for x in (problem.q, problem.k, problem.v)
    )
    assert not q.is_contiguous()
    out = kernels.rows_attention(q, k, v, problem.positions, problem.scale)
    torch.testing.assert_close(out, usual, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_a_plan_of_other_rows_is_noticed(make_problem: Callable[..., Any]) -> None:
    problem = make_problem([1, 2, 40])
    slots = torch.arange(41)
    plan = kernels.plan_rows(torch.tensor([1, 40]), slots, like=problem.k, num_heads=9)
    args = (problem.q, problem.k, problem.v, slots, problem.positions, problem.scale)
    with pytest.raises(AssertionError, match="the plan is of other rows"):
        kernels.paged_rows_attention(*args, plan=plan)
