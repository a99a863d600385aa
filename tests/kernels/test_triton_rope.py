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
