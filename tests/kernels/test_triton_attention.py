"""Triton's paged attention: the rule of visibility, accuracy, and what it may not read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

import chunkcache_kernels as kernels
from chunkcache_kernels.reference import rows_attention_naive

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = {
    "one row at 0": [0],
    "one row": [70],
    "all rows": [*range(37)],
    "scattered": [0, 1, 7, 40, 41, 63, 64, 65, 129],
    "the last rows": [*range(100, 121)],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_attended_as_exactly_as_torch_does(
    rows: list[int],
    dtype: torch.dtype,
    device: torch.device,
    make_problem: Callable[..., Any],
    poisoned_empty: None,
) -> None:
    problem = make_problem(rows, dtype=dtype, device=device, sharpness=2.0)
    problem.check(kernels.rows_attention(*problem.args, backend="triton"))


@pytest.mark.parametrize(
    ("heads", "dim"),
    [((1, 1), 16), ((4, 4), 32), ((9, 3), 80), ((8, 1), 96), ((14, 2), 64), ((5, 1), 128)],
    ids=str,
)
def test_any_grouping_of_heads_and_any_width(
    heads: tuple[int, int], dim: int, device: torch.device, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem([2, 3, 50], heads=heads, dim=dim, device=device)
    problem.check(kernels.rows_attention(*problem.args, backend="triton"))


@pytest.mark.parametrize("num_splits", [1, 2, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_splitting_the_keys_changes_nothing(
    num_splits: int,
    dtype: torch.dtype,
    device: torch.device,
    make_problem: Callable[..., Any],
    assert_sees_only_its_past: Callable[..., None],
    poisoned_empty: None,
) -> None:
    from chunkcache_kernels import attention

    # in the later splits the first row sees no key at all
    problem = make_problem([0, 70, 149], dtype=dtype, device=device)
    attend = partial(attention.rows_attention, num_splits=num_splits)
    problem.check(attend(*problem.args))
    assert_sees_only_its_past(attend, problem)


@pytest.mark.parametrize("rows", [[0, 5, 6, 30], [20], [*range(18)]], ids=["some", "one", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_sees_the_keys_at_or_before_it_and_no_other(
    rows: list[int],
    dtype: torch.dtype,
    device: torch.device,
    make_problem: Callable[..., Any],
    assert_sees_only_its_past: Callable[..., None],
) -> None:
    problem = make_problem(rows, num_keys=32, dtype=dtype, device=device)
    attend = partial(kernels.rows_attention, backend="triton")
    assert_sees_only_its_past(attend, problem)


@pytest.mark.parametrize("position", [0, 31, 63, 64, 100])
def test_a_row_alone_reads_nothing_after_its_own_key(
    position: int, device: torch.device, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem([position], num_keys=130, device=device)
    clean = kernels.rows_attention(*problem.args, backend="triton")
    problem.k[position + 1 :] = float("nan")
    problem.v[position + 1 :] = float("nan")
    assert torch.equal(kernels.rows_attention(*problem.args, backend="triton"), clean)


@pytest.mark.parametrize("planned", [False, True], ids=["unplanned", "planned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_paged_rows_read_their_own_slots_only(
    planned: bool, dtype: torch.dtype, device: torch.device, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem([1, 2, 40, 99], dim=80, dtype=dtype, device=device)
    nowhere = 2**40  # a slot after the last row's: reading it would end the process
    slots = torch.full((120,), nowhere, device=device)
    slots[:100] = torch.randperm(150, device=device)[:100]
    # NaN in the other slots, between heads, and between slots
    pools = torch.full((2, 150, 4, 88), float("nan"), dtype=dtype, device=device)
    pools[:, slots[:100], :3, :80] = torch.stack([problem.k, problem.v])
    k_pool, v_pool = pools[:, :, :3, :80]
    q = torch.full((6, 10, 88), float("nan"), dtype=dtype, device=device)
    q[:4, :9, :80] = problem.q
    plan = None
    if planned:
        plan = kernels.plan_rows(
            problem.positions, slots, like=k_pool, num_heads=9, backend="triton"
        )
        assert plan.blocks == ()
    out = kernels.paged_rows_attention(
        q[:4, :9, :80], k_pool, v_pool, slots, problem.positions, problem.scale,
        plan=plan, backend="triton",
    )  # fmt: skip
    problem.check(out)


def test_paged_and_ordered_keys_give_the_same_bits(
    device: torch.device, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem([3, 90], device=device)
    slots = torch.arange(91, device=device).flip(0)
    paged = kernels.paged_rows_attention(
        problem.q, problem.k.flip(0), problem.v.flip(0), slots, problem.positions, problem.scale,
        backend="triton",
    )  # fmt: skip
    assert torch.equal(paged, kernels.rows_attention(*problem.args, backend="triton"))


def test_rows_positions_and_slots_of_any_strides_are_read_right(
    device: torch.device, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem([3, 40, 90], device=device)
    q, k, v = (x.permute(1, 2, 0).contiguous().permute(2, 0, 1) for x in problem.args[:3])
    positions = torch.stack([problem.positions, problem.positions + 1000], dim=1)[:, 0]
    problem.check(kernels.rows_attention(q, k, v, positions, problem.scale, backend="triton"))
    slots = torch.full((91, 2), 2**40, device=device)
    slots[:, 0] = torch.arange(91, device=device)
    paged = kernels.paged_rows_attention(
        q, problem.k, problem.v, slots[:, 0], positions, problem.scale, backend="triton"
    )
    problem.check(paged)
    with pytest.raises(ValueError, match="pool: its strides are"):
        kernels.paged_rows_attention(
            q, k, v, slots[:, 0], positions, problem.scale, backend="triton"
        )


def test_the_slow_twin_passes_the_same_rule(
    device: torch.device, make_problem: Callable[..., Any]
) -> None:
    problem = make_problem(ROWS["scattered"], device=device)
    problem.check(rows_attention_naive(*problem.args))
