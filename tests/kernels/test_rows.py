"""What the C kernels do to rows beside attention, against torch: writes, norms, products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import rms_norm, silu

from chunkcache_kernels import Arena, Heads, PortableStep, Rotary, Segment, SequenceLayout, lay_out
from chunkcache_kernels.compiled import CompiledStep, Team
from chunkcache_kernels.structs import TYPES, WeightC

HALVES = [torch.float32, torch.bfloat16, torch.float16]
MEMBERS = [(1, False), (2, False), (2, True), (3, True)]


@pytest.fixture(scope="session", params=MEMBERS, ids=lambda p: f"{p[0]}{'-own' if p[1] else ''}")
def team(request: Any, open_team: Callable[..., Team]) -> Team:
    members, own = request.param
    return open_team(8, members, own_threads=own)


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def as_good_as(ours: torch.Tensor, torchs: torch.Tensor, exact: torch.Tensor) -> None:
    """Within twice torch's own error at that type, and two steps of fp32."""
    errors = [float((x.double() - exact).norm() / exact.norm()) for x in (ours, torchs)]
    assert errors[0] <= 2 * errors[1] + 2.4e-7, errors


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("count", "width"), [(1, 48), (3, 576), (17, 61), (70, 5)])
def test_norm(team: Team, dtype: torch.dtype, count: int, width: int) -> None:
    x, weight = drawn(1, count, width, dtype=dtype) * 3, drawn(2, width)
    exact = rms_norm(x.double(), (width,), weight.double(), 1e-5)
    torchs = rms_norm(x.float(), (width,), weight, 1e-5).to(dtype)
    ours = team.norm(x, weight, 1e-5)
    assert ours.dtype is dtype and ours.shape == x.shape
    as_good_as(ours, torchs, exact)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("count", "width"), [(1, 80), (3, 257), (17, 7), (33, 64)])
def test_silu(team: Team, dtype: torch.dtype, count: int, width: int) -> None:
    x = drawn(3, count, 2 * width, dtype=dtype) * 8
    x[0, :5] = torch.tensor([-80.0, 80.0, 0.0, -0.0, 1e-4])  # far out e^x is nothing, or all
    gate, up = x.chunk(2, dim=1)
    ours = team.silu(x)
    assert ours.dtype is dtype and bool(ours.isfinite().all())
    wide = (part.float() for part in (gate, up))
    as_good_as(ours, (silu(next(wide)) * next(wide)).to(dtype), silu(gate.double()) * up.double())


@pytest.mark.parametrize("dtype", [*HALVES, torch.int8], ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(48, 48), (1, 7), (37, 129), (150, 64)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_product(team: Team, dtype: torch.dtype, rows: int, cols: int, with_bias: bool) -> None:
    scales: torch.Tensor | None = None
    if dtype is torch.int8:
        weight = (drawn(4, rows, cols) * 40).clamp(-127, 127).to(torch.int8)
        scales = drawn(5, rows).abs() + 0.1
    else:
        weight = drawn(4, rows, cols, dtype=dtype)
    bias = drawn(6, rows) if with_bias else None
    described = WeightC(
        weight.data_ptr(), None if scales is None else scales.data_ptr(),
        None if bias is None else bias.data_ptr(), TYPES[dtype], rows, cols, 0,
    )  # fmt: skip
    wide = weight.double() * (1.0 if scales is None else scales.double()[:, None])
    for count in range(1, 18):
        x = drawn(7, count, cols)
        exact = x.double() @ wide.t() + (0.0 if bias is None else bias.double())
        ours = team.product(described, x)
        assert ours.shape == (count, rows) and ours.dtype is torch.float32
        torch.testing.assert_close(
            ours.double(), exact, rtol=1e-5, atol=1e-5 * float(wide.abs().max())
        )


# ------------------------------------------------------------------ writing keys and values

CANARY = 7.0
HEADS = Heads(heads=6, kv_heads=2, dim=20, scale=20**-0.5, rotary_dim=12)


def rotary(num_positions: int) -> Rotary:
    frequencies = 1e4 ** (-torch.arange(0, HEADS.rotary_dim, 2).double() / HEADS.rotary_dim)
    angle = torch.outer(torch.arange(num_positions).double(), frequencies).repeat(1, 2)
    return Rotary(angle.cos().float(), angle.sin().float())


def step_of(bind: Callable[..., Any], positions: np.ndarray, dtype: torch.dtype) -> Any:
    arenas = [
        Arena.empty(2, 6, HEADS.kv_heads, HEADS.dim, 8, dtype=dtype, device=torch.device("cpu"))
        for _ in range(2)
    ]
    for arena in arenas:
        arena.keys.fill_(CANARY)
        arena.values.fill_(CANARY)
    keys = np.arange(8, dtype=np.int32)
    segment = Segment(0, np.array([0], np.int32), 0, keys)
    layout = lay_out([SequenceLayout(positions, [segment])], page_tokens=8, group=3)
    return bind(layout, arenas, HEADS, rotary(int(positions.max()) + 1))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("arena", [0, 1])
def test_rows_are_normed_turned_and_written_to_their_slots_and_no_other(
    team: Team, dtype: torch.dtype, normed: bool, turned: bool, arena: int
) -> None:
    positions = np.array([0, 3, 700, 701, 30_000])
    slots = np.array([17, -1, 3, 40, 8], dtype=np.int32)
    norms = (drawn(1, HEADS.dim), drawn(2, HEADS.dim)) if normed else (None, None)
    made = drawn(3, len(positions), 10 * HEADS.dim, dtype=dtype)
    results = []
    for bind in (
        PortableStep,
        lambda *of: CompiledStep.bind(team, *of),
    ):
        step, qkv = step_of(bind, positions, dtype), made.clone()
        step.write(
            1, qkv, slots,
            arena=arena, turned=turned, query_norm=norms[0], key_norm=norms[1], eps=1e-6,
        )  # fmt: skip
        arenas = step.arenas if bind is PortableStep else step.keeps[-1]
        results.append((qkv, arenas))
    (torchs, twins), (ours, arenas) = results
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, torchs, rtol=2 * step, atol=1e-6)
    assert torch.equal(ours[:, 8 * HEADS.dim :], made[:, 8 * HEADS.dim :])  # values are not normed
    written = torch.zeros(6, 8, dtype=torch.bool)
    for slot in slots[slots >= 0]:
        written[slot // 8, slot % 8] = True
    for number, (mine, twin) in enumerate(zip(arenas, twins, strict=True)):
        for name, order in (("keys", (0, 1, 4, 2, 3)), ("values", (0, 1, 3, 2, 4))):
            got, wanted = (getattr(a, name).permute(order) for a in (mine, twin))
            torch.testing.assert_close(got, wanted, rtol=2 * step, atol=4 * step)
            untouched = got[0], got[1][~written]
            assert all(bool((part == CANARY).all()) for part in untouched)
            if number == arena:
                assert bool((got[1][written] != CANARY).any(-1).all())
            else:
                assert bool((got == CANARY).all())
    values = arenas[arena].values[1].transpose(1, 2)[slots // 8, slots % 8][slots >= 0]
    assert torch.equal(values.flatten(1), made[:, 8 * HEADS.dim :][torch.from_numpy(slots >= 0)])


def test_keys_in_a_page_are_as_exact_as_one_rounding_allows(team: Team) -> None:
    """Turned in fp32 and rounded once, whatever the rows' own type is."""
    positions = np.arange(29_990, 29_996)
    made = drawn(3, len(positions), 10 * HEADS.dim, dtype=torch.bfloat16)
    step = step_of(lambda *of: CompiledStep.bind(team, *of), positions, torch.bfloat16)
    step.write(0, made, np.arange(6, dtype=np.int32))
    keys = made.view(6, 10, HEADS.dim)[:, 6:8].double()
    cos, sin = (part.double() for part in rotary(30_000).at(torch.from_numpy(positions)))
    half, width = HEADS.rotary_dim // 2, HEADS.rotary_dim
    pairs = torch.complex(keys[..., :half], keys[..., half:width])
    pairs = pairs * torch.complex(cos[:, None, :half], sin[:, None, :half])
    exact = torch.cat((pairs.real, pairs.imag, keys[..., width:]), dim=-1)
    ours = step.keeps[-1][0].keys[0, 0].permute(2, 0, 1)[:6]
    floor = (exact.bfloat16().double() - exact).norm()
    assert float((ours.double() - exact).norm()) <= 1.01 * float(floor)
