"""What is measured of the kernels: a case and its arms; products, norms and gates; the ceilings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear, rms_norm, silu

from chunkcache.engine.packed import to_int8
from chunkcache_kernels import fours
from chunkcache_kernels.compiled import Team
from chunkcache_kernels.structs import TYPES, WeightC

WIDTH, INNER = 576, 1536  # SmolLM2-135M's
EPS = 1e-5
COLD_BYTES = 128 * 2**20  # what arms cycle through: more than the caches hold, as in a model
ROWS = (1, 4, 16)  # of products made for few rows
CEILING_FLOATS = 48 * 2**20  # and eight times as many on a GPU, whose L2 is large
CEILING_SIDE = 1536  # of the matrices whose product is the ceiling of products; 8192 on a GPU


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size: its arms, ours first, and what they must move."""

    kernel: str
    size: str
    dtype: str
    arms: dict[str, Callable[[], Any]]
    moved_bytes: int
    flops: int = 0
    error: float | None = None  # of the first arm
    torch_error: float | None = None
    limit: float = 0.0  # for `error`
    is_captured: bool = True  # whether a CUDA graph can hold its calls

    @property
    def is_off(self) -> bool:
        """Whether ours is further from the truth than it may be."""
        return self.error is not None and not self.error <= self.limit


def relative(answer: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square error, relative."""
    return float((answer.double() - exact).norm() / exact.norm())


def in_turn(call: Callable[[Any], Any], given: list[Any]) -> Callable[[], Any]:
    """An arm that takes the next of `given` each time, so that none is in the caches any more."""
    cycle = itertools.cycle(given)
    return lambda: call(next(cycle))


def cold_copies(size_bytes: int) -> int:
    """How many layers of so many bytes an arm goes through before it meets the first again."""
    return max(2, min(30, COLD_BYTES // size_bytes))


def bytes_of(*tensors: torch.Tensor) -> int:
    """Bytes of all of them."""
    return sum(t.numel() * t.itemsize for t in tensors)


def row_cases(team: Team) -> Iterator[tuple[str, Callable[[], Case]]]:
    """What the C kernels do beside attention, one case at a time."""
    for rows in ROWS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
            yield f"product {rows} {dtype}", partial(product_case, team, rows, dtype)
    for rows in (16, 512):
        for dtype in (torch.float32, torch.bfloat16):
            yield f"norm {rows} {dtype}", partial(norm_case, team, rows, dtype)
            yield f"silu {rows} {dtype}", partial(silu_case, team, rows, dtype)


def product_case(team: Team, num_rows: int, dtype: torch.dtype) -> Case:
    """fp32 rows times the gate's and up's weights, which are kept in `dtype`.

    Beside torch's product in fp32 of the same numbers, and in bf16 of the same rounded.
    """
    x = torch.randn(num_rows, WIDTH)
    drawn = torch.randn(2 * INNER, WIDTH) * WIDTH**-0.5
    narrow, scales = to_int8(drawn) if dtype is torch.int8 else (drawn.to(dtype), None)
    wide = narrow.float() if scales is None else narrow * scales[:, None]
    exact = x.double() @ wide.double().t()
    kept = [narrow.clone() for _ in range(cold_copies(bytes_of(narrow)))]
    given = [
        WeightC(
            n.data_ptr(), None if scales is None else scales.data_ptr(), None,
            TYPES[dtype], *n.shape, 0,
        )
        for n in kept
    ]  # fmt: skip
    wides = [wide.clone() for _ in range(cold_copies(bytes_of(wide)))]
    halves = [wide.bfloat16() for _ in range(cold_copies(bytes_of(wide) // 2))]
    half = x.bfloat16()

    def ours(weight: WeightC) -> torch.Tensor:
        assert kept and (scales is None or len(scales))  # what the pointers point to
        return team.product(weight, x)

    torch_error = relative(linear(x, wide), exact)
    return Case(
        "product", f"{num_rows} rows, {2 * INNER} x {WIDTH}", name_of(dtype),
        {"ours": in_turn(ours, given), "torch": in_turn(lambda w: linear(x, w), wides),
         "torch bf16": in_turn(lambda w: linear(half, w), halves)},
        bytes_of(narrow, x) + 4 * num_rows * 2 * INNER, flops=2 * x.numel() * 2 * INNER,
        error=relative(ours(given[0]), exact), torch_error=torch_error,
        limit=2 * torch_error + 5e-7,
    )  # fmt: skip


def norm_case(team: Team, num_rows: int, dtype: torch.dtype) -> Case:
    """RMSNorm in fp32, cast once, as torch does it in three operations."""
    x, weight = torch.randn(num_rows, WIDTH).to(dtype), torch.randn(WIDTH)
    wide = x.double()
    exact = wide * (wide.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight

    def by_torch() -> torch.Tensor:
        return rms_norm(x.float(), (WIDTH,), weight, EPS).to(dtype)

    torch_error = relative(by_torch(), exact)
    return Case(
        "norm", f"{num_rows} rows of {WIDTH}", name_of(dtype),
        {"ours": lambda: team.norm(x, weight, EPS), "torch": by_torch}, 2 * bytes_of(x),
        error=relative(team.norm(x, weight, EPS), exact), torch_error=torch_error,
        limit=2 * torch_error + 5e-7,
    )  # fmt: skip


def silu_case(team: Team, num_rows: int, dtype: torch.dtype) -> Case:
    """silu(gate) · up, as torch does it in two operations."""
    gate_up = torch.randn(num_rows, 2 * INNER).to(dtype)
    gate, up = gate_up.chunk(2, dim=1)
    exact = silu(gate.double()) * up.double()
    torch_error = relative(silu(gate) * up, exact)
    return Case(
        "silu", f"{num_rows} rows of {INNER}", name_of(dtype),
        {"ours": lambda: team.silu(gate_up), "torch": lambda: silu(gate) * up},
        bytes_of(gate_up) * 3 // 2,
        error=relative(team.silu(gate_up), exact), torch_error=torch_error,
        limit=2 * torch_error + 5e-7,
    )  # fmt: skip


def ceiling_cases(device: torch.device) -> Iterator[tuple[str, Callable[[], Case]]]:
    """What this machine can do at most, by torch: reading and copying memory, multiplying."""
    yield "read", partial(_memory_case, "read", device)
    yield "copy", partial(_memory_case, "copy", device)
    for dtype in (torch.float32, torch.bfloat16):
        yield f"matrix product {dtype}", partial(_product_ceiling, dtype, device)


def _memory_case(kernel: str, device: torch.device) -> Case:
    x = torch.ones(CEILING_FLOATS * (8 if device.type == "cuda" else 1), device=device)
    size, y = f"{bytes_of(x) >> 20} MiB", torch.empty_like(x)
    if kernel == "read":
        return Case("read", size, "float32", {"torch": x.sum}, bytes_of(x))
    return Case("copy", size, "float32", {"torch": lambda: y.copy_(x)}, 2 * bytes_of(x))


def _product_ceiling(dtype: torch.dtype, device: torch.device) -> Case:
    side = 8192 if device.type == "cuda" else CEILING_SIDE
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return Case(
        "matrix product", f"{side} cubed", name_of(dtype), {"torch": lambda: a @ b},
        3 * bytes_of(a), flops=2 * side**3,
    )  # fmt: skip


def name_of(dtype: torch.dtype) -> str:
    """`float32` of `torch.float32`; `int4` of pages of 4 bits a number."""
    if dtype is fours.PAGE_TYPE:
        return "int4"
    return str(dtype).removeprefix("torch.")
