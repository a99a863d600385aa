"""Layers of a chunk to its pages: the C kernel against its twin in torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from chunkcache_kernels import Arena, portable
from chunkcache_kernels.compiled import Team, place_chunk

PAGE, LAYERS, PAGES = 8, 4, 9
KINDS = [
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16), (torch.float32, torch.int8), (torch.bfloat16, torch.int8),
]  # fmt: skip


def parts(arena: Arena) -> list[torch.Tensor]:
    every = (arena.keys, arena.values, arena.key_scales, arena.value_scales)
    return [part for part in every if part is not None]


def new_arena(heads: int, dim: int, dtype: torch.dtype) -> Arena:
    arena = Arena.empty(LAYERS, PAGES, heads, dim, PAGE, dtype=dtype, device=torch.device("cpu"))
    for part in parts(arena):
        part.fill_(99)
    return arena


@pytest.mark.parametrize(("given", "kept"), KINDS, ids=str)
@pytest.mark.parametrize(("tokens", "heads", "dim", "rotary"), [
    (24, 3, 64, 64), (5, 1, 16, 16), (17, 2, 20, 12), (1, 3, 7, 0),
])  # fmt: skip
def test_some_layers_come_to_where_the_twin_puts_them(
    open_team: Callable[..., Team], angles: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    given: torch.dtype, kept: torch.dtype, tokens: int, heads: int, dim: int, rotary: int,
) -> None:  # fmt: skip
    kv = torch.randn(2, 2, tokens, heads, dim, generator=torch.Generator().manual_seed(tokens))
    kv = (kv * 3).to(given)
    pages = np.array([7, 0, 4][: -(-tokens // PAGE)], dtype=np.int64)
    turned = angles(torch.arange(tokens), rotary) if rotary else (torch.empty(tokens, 0),) * 2
    ours, twin = new_arena(heads, dim, kept), new_arena(heads, dim, kept)
    place_chunk(open_team(PAGE), ours, 1, kv, pages, turned)
    portable.place_chunk(twin, 1, kv, pages, turned)
    for mine, other in zip(parts(ours), parts(twin), strict=True):
        assert torch.equal(mine[0], other[0]) and torch.equal(mine[3], other[3]), "other layers"
        if mine.dtype is torch.int8:  # rounded, from numbers that differ in their last bits
            assert (mine.int() - other.int()).abs().max() <= 1
        else:
            eps = torch.finfo(kept if kept.is_floating_point else torch.float32).eps
            torch.testing.assert_close(mine.float(), other.float(), rtol=2 * eps, atol=8 * eps)
    if kept is given:
        assert torch.equal(ours.values, twin.values)
        if not rotary:
            assert torch.equal(ours.keys, twin.keys), "without positions it is only laid out"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "dim", "rotary"), [
    (3, 64, 64), (1, 32, 32), (2, 64, 32), (2, 48, 0), (2, 40, 32), (1, 64, 16),
])  # fmt: skip
def test_whole_pages_by_vectors_are_the_same_bit_by_bit(
    open_team: Callable[..., Team], angles: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    dtype: torch.dtype, heads: int, dim: int, rotary: int,
) -> None:  # fmt: skip
    page, tokens = 32, 77
    draw = torch.Generator().manual_seed(dim + rotary)
    kv = torch.randn(2, 2, tokens, heads, dim, generator=draw) * 3
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42, 3e38])
    kv.view(-1)[torch.randperm(kv.numel(), generator=draw)[:500]] = odd.repeat(100)
    kv = kv.to(dtype)
    turned = angles(torch.arange(tokens), rotary) if rotary else (torch.empty(tokens, 0),) * 2
    arenas = []
    for plainly in (False, True):
        arena = Arena.empty(4, 5, heads, dim, page, dtype=dtype, device=torch.device("cpu"))
        for part in parts(arena):
            part.fill_(99)
        team = open_team(page)
        place_chunk(team, arena, 1, kv, np.array([4, 0, 2]), turned, plainly=plainly)
        arenas.append(arena)
    for mine, other in zip(*map(parts, arenas), strict=True):
        assert torch.equal(mine.view(torch.uint8), other.view(torch.uint8))
    assert (arenas[0].keys[:, (1, 3)] == 99).all() and (arenas[0].keys[1:3, 2] != 99).all()


def test_what_a_nan_carries_stays_in_values(open_team: Callable[..., Team]) -> None:
    bits = torch.tensor([0x7FC12345, 0x7F812345], dtype=torch.int32).repeat(8)
    kv = bits.view(torch.float32).reshape(1, 2, 1, 1, 8).clone()
    arena = new_arena(1, 8, torch.float32)
    none = (torch.empty(1, 0), torch.empty(1, 0))
    place_chunk(open_team(PAGE), arena, 0, kv, np.array([3]), none)
    assert torch.equal(arena.values[0, 3, 0, 0].view(torch.int32), kv[0, 1].view(torch.int32)[0, 0])
