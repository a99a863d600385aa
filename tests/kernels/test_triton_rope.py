"""Triton's rotation, placement and gathering against their torch twins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import chunkcache_kernels as kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from chunkcache_kernels.dispatch import Backend

VIEWS = ["one number", "one row", "one column", "transposed", "sliced", "of two kinds"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CANARY = 7.0
SLOTS = {
    "a run": list(range(5, 42)),
    "one": [3],
    "scattered, with gaps": [30, -1, 2, 29, 7, -1, 0, 49],
    "only gaps": [-1, -1, -1],
    "none": [],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "heads", "dim"),
    [(1, 9, 64), (33, 2, 80), (70, 1, 16), (3, 1, 96), (0, 2, 32)],
)
def test_rotation_equals_its_twin(
    dtype: torch.dtype,
    num_tokens: int,
    heads: int,
    dim: int,
    device: torch.device,
    angles: Callable[..., tuple[Tensor, Tensor]],
    poisoned_empty: None,
) -> None:
    x = torch.randn(heads, num_tokens, dim, device=device).transpose(0, 1).to(dtype)
    cos, sin = angles(torch.arange(num_tokens, device=device) * 97, dim)
    out = kernels.rotate(x, cos, sin, backend="triton")
    assert torch.equal(out, kernels.rotate(x, cos, sin, backend="torch"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS.keys())
@pytest.mark.parametrize("dim", [32, 80])
def test_placing_equals_its_twin_and_writes_nothing_else(
    dtype: torch.dtype,
    slots: list[int],
    dim: int,
    device: torch.device,
    angles: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    count = len(slots)
    where = torch.tensor(slots, dtype=torch.int64, device=device)
    # rows that are skipped hold NaN, and so does the memory between heads
    store = torch.full((2, count, 3, dim + 8), float("nan"), dtype=dtype, device=device)
    store[:, where >= 0, :, :dim] = torch.randn(
        2, int((where >= 0).sum()), 3, dim, device=device
    ).to(dtype)
    k, v = store[..., :dim]
    cos, sin = angles(torch.arange(count, device=device) + 40, dim)
    pools: dict[str, Tensor] = {}
    backends: tuple[Backend, ...] = ("triton", "torch")
    for backend in backends:
        pools[backend] = torch.full((2, 50, 3, dim + 8), CANARY, dtype=dtype, device=device)
        k_pool, v_pool = pools[backend][..., :dim]
        kernels.place_kv(k, v, cos, sin, k_pool, v_pool, where, backend=backend)
    assert torch.equal(pools["triton"], pools["torch"])
    assert bool((pools["triton"][..., dim:] == CANARY).all())


def test_placing_into_a_slice_equals_its_twin(
    device: torch.device, angles: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    k, v = torch.randn(2, 37, 3, 64, device=device)
    cos, sin = angles(torch.arange(37, device=device), 64)
    pools = torch.full((2, 2, 60, 3, 64), CANARY, device=device)
    kernels.place_kv(k, v, cos, sin, pools[0, 0], pools[0, 1], slice(11, 48), backend="triton")
    kernels.place_kv(k, v, cos, sin, pools[1, 0], pools[1, 1], slice(11, 48), backend="torch")
    assert torch.equal(pools[0], pools[1])


def test_placing_casts_once_to_the_type_of_the_pool(
    device: torch.device, angles: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    k, v = torch.randn(2, 5, 2, 32, device=device).bfloat16()
    cos, sin = angles(torch.arange(5, device=device) + 1000, 32)
    pools = torch.zeros(2, 2, 5, 2, 32, device=device)
    kernels.place_kv(k, v, cos, sin, pools[0, 0], pools[0, 1], slice(0, 5), backend="triton")
    kernels.place_kv(k, v, cos, sin, pools[1, 0], pools[1, 1], slice(0, 5), backend="torch")
    assert torch.equal(pools[0], pools[1])


def _viewed(angles: Tensor, how: str) -> Tensor:
    """Angles [T, D] in memory with strides of their own, NaN wherever a reader must not look."""
    count, dim = angles.shape
    store = torch.full((3 * count + 1, 3 * dim), float("nan"), device=angles.device)
    if how == "one number":
        store[0, 0] = angles[0, 1]
        return store[0, 0].expand(count, dim)
    if how == "one row":
        store[0, :dim] = angles[0]
        return store[0, :dim].expand(count, dim)
    if how == "one column":
        store[:count, 0] = angles[:, 1]
        return store[:count, :1].expand(count, dim)
    view = store[1::3, 1::3]
    if how == "transposed":
        view = torch.full((dim, count + 5), float("nan"), device=angles.device).T[:count]
    view.copy_(angles)
    return view


@pytest.mark.parametrize("how", VIEWS)
@pytest.mark.parametrize("count", [1, 37])
def test_angles_are_read_by_their_own_strides(
    how: str, count: int, device: torch.device, angles: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    cos, sin = angles(torch.arange(count, device=device) * 97 + 5, 64)
    of_cos, of_sin = VIEWS[:2] if how == "of two kinds" else (how, how)
    cos, sin = _viewed(cos, of_cos), _viewed(sin, of_sin)
    x = torch.randn(count, 3, 64, device=device)
    turned = kernels.rotate(x, cos, sin, backend="triton")
    assert torch.equal(turned, kernels.rotate(x, cos, sin, backend="torch"))
    k_pool, v_pool = torch.full((2, 50, 3, 64), CANARY, device=device)
    kernels.place_kv(x, x, cos, sin, k_pool, v_pool, slice(5, 5 + count), backend="triton")
    assert torch.equal(k_pool[5 : 5 + count], turned)


def test_rows_and_slots_of_any_strides_are_placed(
    device: torch.device, angles: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    turned_about = torch.randn(2, 3, 64, 9, device=device).permute(0, 3, 1, 2)
    every_other = torch.randn(2, 9, 3, 128, device=device)[..., ::2]
    cos, sin = angles(torch.arange(9, device=device), 64)
    where = torch.arange(40, device=device).flip(0)[::4][:9]
    for k, v in (turned_about, every_other):
        assert torch.equal(
            kernels.rotate(k, cos, sin, backend="triton"),
            kernels.rotate(k, cos, sin, backend="torch"),
        )
        pools = torch.full((2, 2, 50, 3, 64), CANARY, device=device)
        kernels.place_kv(k, v, cos, sin, pools[0, 0], pools[0, 1], where, backend="triton")
        kernels.place_kv(k, v, cos, sin, pools[1, 0], pools[1, 1], where, backend="torch")
        assert torch.equal(pools[0], pools[1])


def test_pools_that_a_kernel_cannot_address_are_refused(
    device: torch.device, angles: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    k, v = torch.randn(2, 4, 3, 64, device=device)
    cos, sin = angles(torch.arange(4, device=device), 64)
    pool = torch.zeros(50, 3, 64, device=device)
    turned_about = torch.zeros(3, 64, 50, device=device).permute(2, 0, 1)
    slots = torch.arange(4, device=device)
    for pools in ((pool, turned_about), (turned_about, pool)):
        with pytest.raises(ValueError, match="pool: its strides are"):
            kernels.place_kv(k, v, cos, sin, *pools, slots, backend="triton")
        with pytest.raises(ValueError, match="pool: its strides are"):
            kernels.gather_kv(*pools, slots, backend="triton")


def test_gathering_from_a_view_of_the_heads_equals_its_twin(device: torch.device) -> None:
    pools = torch.full((2, 50, 4, 88), float("nan"), device=device)
    pools[:, :, :3, :80] = torch.randn(2, 50, 3, 80, device=device)
    where = torch.arange(40, device=device).flip(0)[::3]
    k_pool, v_pool = pools[:, :, :3, :80]
    k, v = kernels.gather_kv(k_pool, v_pool, where, backend="triton")
    assert torch.equal(k, k_pool[where]) and torch.equal(v, v_pool[where])


@pytest.mark.parametrize("slots", [[9, 2, 2, 0], [7], [], [*range(40, 3, -1)]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "dim"), [(3, 64), (1, 80)])
def test_gathering_equals_its_twin_and_reads_nothing_else(
    slots: list[int],
    dtype: torch.dtype,
    heads: int,
    dim: int,
    device: torch.device,
    poisoned_empty: None,
) -> None:
    pools = torch.full((2, 50, heads, dim), float("nan"), device=device, dtype=dtype)
    where = torch.tensor(slots, dtype=torch.int64, device=device)
    pools[:, where] = torch.randn(2, len(slots), heads, dim, device=device).to(dtype)
    k, v = kernels.gather_kv(pools[0], pools[1], where, backend="triton")
    assert torch.equal(k, pools[0][where]) and torch.equal(v, pools[1][where])
    assert bool(k.isfinite().all())
