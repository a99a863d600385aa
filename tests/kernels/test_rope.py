"""Rotation and placement in torch: exact angles, every slot and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import chunkcache_kernels as kernels

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CANARY = 7.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_tokens", "heads", "dim"), [(1, 9, 64), (37, 3, 80), (300, 1, 16)])
def test_rotation_is_exact_up_to_one_rounding(
    dtype: torch.dtype,
    num_tokens: int,
    heads: int,
    dim: int,
    angles: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    rotated_exactly: Callable[..., torch.Tensor],
) -> None:
    x = torch.randn(heads, num_tokens, dim).transpose(0, 1).to(dtype)
    cos, sin = angles(torch.arange(num_tokens) * 431, dim)
    exact = rotated_exactly(x, cos, sin)
    out = kernels.rotate(x, cos, sin)
    assert out.dtype == dtype and out.shape == x.shape
    floor = (exact.to(dtype).double() - exact).norm()  # what rounding the exact answer costs
    assert float((out.double() - exact).norm()) <= 1.1 * float(floor) + 1e-6


def test_two_rotations_are_one_rotation_by_the_sum(
    angles: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> None:
    x = torch.randn(5, 2, 64)
    first, second = torch.tensor([0, 3, 9, 100, 5000]), torch.tensor([7, 0, 1, 4000, 90000])
    twice = kernels.rotate(kernels.rotate(x, *angles(first, 64)), *angles(second, 64))
    once = kernels.rotate(x, *angles(first + second, 64))
    torch.testing.assert_close(twice, once, rtol=0, atol=2e-6)


SLOTS = {
    "a run": list(range(11, 18)),
    "one": [3],
    "two apart": [3, 9],
    "scattered": [30, 2, 29, 7, 19],
    "almost a run": [4, 5, 7, 6, 8],
    "with gaps": [5, -1, 6, 0, -1],
    "a run with a hole at its start": [-1, 0, 1],
    "only holes": [-1, -1],
    "none": [],
}


@pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_placing_writes_the_named_slots_and_no_other(
    slots: list[int],
    dtype: torch.dtype,
    angles: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> None:
    count = len(slots)
    k, v = torch.randn(count, 3, 16).to(dtype), torch.randn(count, 3, 16).to(dtype)
    cos, sin = angles(torch.arange(count) + 40, 16)
    pools = [torch.full((32, 3, 16), CANARY, dtype=dtype) for _ in range(2)]
    where = torch.tensor(slots, dtype=torch.int64)
    kernels.place_kv(k, v, cos, sin, pools[0], pools[1], where)
    expected = [torch.full((32, 3, 16), CANARY, dtype=dtype) for _ in range(2)]
    turned = kernels.rotate(k, cos, sin)
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[0][slot], expected[1][slot] = turned[row], v[row]
    for pool, wanted in zip(pools, expected, strict=True):
        assert torch.equal(pool, wanted)


def test_placing_into_a_wider_pool_keeps_the_precision_of_the_rotation(
    angles: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    rotated_exactly: Callable[..., torch.Tensor],
) -> None:
    k = torch.randn(6, 2, 32).bfloat16()
    cos, sin = angles(torch.arange(6) + 1000, 32)
    k_pool, v_pool = torch.zeros(6, 2, 32), torch.zeros(6, 2, 32)
    kernels.place_kv(k, k, cos, sin, k_pool, v_pool, slice(0, 6))
    exact = rotated_exactly(k, cos, sin).float()
    torch.testing.assert_close(k_pool, exact, rtol=0, atol=1e-6)
    assert torch.equal(v_pool, k.float())


def test_a_slice_of_slots_is_the_same_as_the_slots_it_stands_for(
    angles: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> None:
    k, v = torch.randn(2, 9, 3, 64).unbind(0)
    cos, sin = angles(torch.arange(9), 64)
    by_slice, by_slots = torch.zeros(2, 2, 20, 3, 64).unbind(0)
    kernels.place_kv(k, v, cos, sin, by_slice[0], by_slice[1], slice(4, 13))
    kernels.place_kv(k, v, cos, sin, by_slots[0], by_slots[1], torch.arange(4, 13))
    assert torch.equal(by_slice, by_slots)


@pytest.mark.parametrize("slots", [[5, 6, 7], [9, 2, 2, 0], [], [19]], ids=str)
def test_gathering_returns_what_the_slots_hold(slots: list[int]) -> None:
    pools = torch.randn(2, 20, 3, 64)
    index = torch.tensor(slots, dtype=torch.int64)
    k, v = kernels.gather_kv(pools[0], pools[1], index)
    assert torch.equal(k, pools[0][index]) and torch.equal(v, pools[1][index])


def test_gathering_a_run_copies_nothing() -> None:
    k_pool, v_pool = torch.randn(2, 20, 3, 64).unbind(0)
    k, v = kernels.gather_kv(k_pool, v_pool, torch.arange(3, 12))
    assert k.data_ptr() == k_pool[3].data_ptr() and v.data_ptr() == v_pool[3].data_ptr()
