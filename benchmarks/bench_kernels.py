"""Time of every kernel beside torch's own way, the bytes it must move, and its error.

    python benchmarks/bench_kernels.py [--device cpu] [--out benchmarks/results/bench_kernels.jsonl]

Heads are SmolLM2-135M's: 9 query heads over 3 key heads of 64. Rows are `run` (the last ones) or
`scattered` (anywhere, as repair chooses them). Each kernel is first held to its slow twin; nothing
is timed when one is off. Arms are interleaved and medians taken. GB/s counts the bytes that must
move at least once; error is relative, against fp64. Prints a table, then one JSON line; well under
a minute on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from reporting import command_line, emit, surroundings
from torch.nn.functional import one_hot, scaled_dot_product_attention

import chunkcache_kernels as kernels
from chunkcache_kernels.reference import attention_probabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEADS, KV_HEADS, DIM = 9, 3, 64
SCALE = DIM**-0.5
LAYERS = 30
SLOTS = 8192
SECONDS_PER_CASE = 0.6  # of the slowest arm
# A serving process has freed larger tensors than any here, after which malloc keeps its pages. One
# that has not pays for every temporary in page faults, up to ten times the work itself.
WARM_UP_FLOATS = 7 * 2**20
# (rows, context, scattered): decoding, a question or a few repaired rows, repair, prefill
ROWS = [
    (1, 1024, False), (1, 4096, False), (32, 1024, True), (32, 4096, True),
    (128, 4096, True), (512, 512, False), (512, 4096, False), (512, 4096, True),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size: its arms, ours first, and what they must move."""

    kernel: str
    size: str
    arms: dict[str, Callable[[], Any]]
    moved_bytes: int
    flops: int = 0
    error: float | None = None  # of ours
    torch_error: float | None = None
    limit: float = 0.0  # for `error`

    @property
    def is_off(self) -> bool:
        """Whether ours is further from the truth than it may be."""
        return self.error is not None and not self.error <= self.limit


def main() -> int:
    """Measure and report; 1 when a kernel differs from its twin."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    torch.zeros(WARM_UP_FLOATS)
    device = torch.device(given.device)
    around = surroundings(*(["triton"] if device.type == "cuda" else []))
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float32):
            for case in cases(dtype, device):
                if case.is_off:
                    print(
                        f"{case.kernel} {case.size} {dtype}: error {case.error:.1e} against its "
                        f"twin, at most {case.limit:.1e}. Nothing more is measured.",
                        file=sys.stderr,
                    )
                    return 1
                row = measure(case, dtype, device)
                print_row(row, header=not rows)
                rows.append(row)
    about = {"benchmark": "kernels", "command": command_line(), "seed": given.seed}
    emit({**about, **around, "device": str(device), "rows": rows}, given.out)
    return 0


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """All cases of one number type, made one at a time."""
    yield from moving_cases(dtype, device)
    for num_rows, context, scattered in ROWS:
        yield attention_case(num_rows, context, scattered, dtype, device)
    yield from looking_cases(dtype, device)


def moving_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Rotation, placement of a 512-token record in 30 layers, gathering; beside plain copies."""
    size = dtype.itemsize
    x = torch.randn(512, HEADS, DIM, device=device).to(dtype)
    angle = torch.randn(512, DIM // 2, device=device).repeat(1, 2)
    cos, sin = angle.cos(), angle.sin()
    error, torch_error = _rotation_error(x, cos, sin)
    yield Case(
        "rotate", "512 rows", {"ours": partial(kernels.rotate, x, cos, sin), "copy": x.clone},
        2 * x.numel() * size, error=error, torch_error=torch_error, limit=1.1 * torch_error + 1e-6,
    )  # fmt: skip

    record = torch.randn(LAYERS, 2, 512, KV_HEADS, DIM, device=device).to(dtype)
    pools = torch.zeros(LAYERS, 2, SLOTS, KV_HEADS, DIM, dtype=dtype, device=device)
    run = slice(1000, 1512)

    def place(slots: torch.Tensor | slice) -> None:
        for (k, v), (k_pool, v_pool) in zip(record, pools, strict=True):
            kernels.place_kv(k, v, cos, sin, k_pool, v_pool, slots)

    # a whole chunk is written as one run; blocks of 16 slots stand apart when memory is crowded
    blocks = torch.randperm(SLOTS // 16, device=device)[:32, None] * 16
    apart = (blocks + torch.arange(16, device=device)).flatten()
    place(apart)
    wanted = kernels.rotate(record[0, 0], cos, sin)
    differs = float((pools[0, 0, apart].float() - wanted.float()).abs().max())
    for name, slots in (("run", run), ("scattered", apart)):
        yield Case(
            "place_kv", f"512 tokens x {LAYERS} layers, {name}",
            {"ours": partial(place, slots), "copy": partial(pools[:, :, run].copy_, record)},
            2 * record.numel() * size, error=differs,
        )  # fmt: skip

    slots = (torch.randperm(SLOTS // 16, device=device)[:256, None] * 16).repeat(1, 16)
    slots = (slots + torch.arange(16, device=device)).flatten()
    k_pool, v_pool = pools[0]
    k, v = kernels.gather_kv(k_pool, v_pool, slots)
    differs = float((k != k_pool[slots]).sum() + (v != v_pool[slots]).sum())
    yield Case(
        "gather_kv", "4096 tokens, scattered",
        {"ours": partial(kernels.gather_kv, k_pool, v_pool, slots),
         "torch": lambda: (k_pool[slots], v_pool[slots])},
        4 * k.numel() * size, error=differs,
    )  # fmt: skip


def _rotation_error(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[float, float]:
    """Relative error of the rotation, and what rounding the exact result alone costs."""
    half = DIM // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = pairs * torch.complex(cos[:, None, :half].double(), sin[:, None, :half].double())
    exact = torch.cat((turned.real, turned.imag), dim=-1)
    return relative(kernels.rotate(x, cos, sin), exact), relative(exact.to(x.dtype), exact)


def make_rows(
    num_rows: int, context: int, scattered: bool, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v and positions; scores have a standard deviation of 2, as measured in SmolLM2."""
    positions = torch.arange(context - num_rows, context, device=device)
    if scattered:
        chosen = torch.randperm(context - 1, device=device)[: num_rows - 1].sort().values
        positions = torch.cat((chosen, torch.tensor([context - 1], device=device)))
    q = 2 * torch.randn(num_rows, HEADS, DIM, device=device)
    k, v = torch.randn(2, context, KV_HEADS, DIM, device=device)
    return q.to(dtype), k.to(dtype), v.to(dtype), positions


def attention_case(
    num_rows: int, context: int, scattered: bool, dtype: torch.dtype, device: torch.device
) -> Case:
    """Paged attention with a plan and without, beside one call of torch's with the mask ready."""
    q, k, v, positions = make_rows(num_rows, context, scattered, dtype, device)
    slots = torch.arange(context, device=device)
    plan = kernels.plan_rows(positions, slots, like=k, num_heads=HEADS)
    paged = partial(kernels.paged_rows_attention, q, k, v, slots, positions, SCALE)
    sees = slots[None] <= positions[:, None]
    mask = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, -torch.inf)

    def by_torch() -> torch.Tensor:
        query, key, value = (x.transpose(0, 1)[None] for x in (q, k, v))
        shown = mask if num_rows > 1 else None
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=shown, scale=SCALE, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    grouped = q.double().view(num_rows, KV_HEADS, -1, DIM)
    scores = torch.einsum("rkgd,tkd->kgrt", grouped, k.double()) * SCALE
    weights = scores.masked_fill_(~sees, -torch.inf).softmax(-1)
    exact = torch.einsum("kgrt,tkd->rkgd", weights, v.double()).reshape(q.shape)
    torch_error = relative(by_torch(), exact)
    layout = "scattered" if scattered else "run"
    return Case(
        "paged_rows_attention", f"{num_rows} rows, {context} keys, {layout}",
        {"ours": partial(paged, plan=plan), "no plan": paged, "torch": by_torch},
        (2 * q.numel() + k.numel() + v.numel()) * dtype.itemsize,
        flops=4 * HEADS * DIM * int(sees.sum()),
        error=relative(paged(plan=plan), exact), torch_error=torch_error,
        limit=2 * torch_error + 5e-7,
    )  # fmt: skip


def looking_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Mass on 4 segments, as recorded when a chunk is made, and attention received from a question.

    Beside the explicit softmax they are sums of.
    """
    q, k, _, positions = make_rows(512, 560, False, dtype, device)
    segments = torch.arange(560, device=device) * 4 // 560
    named = one_hot(segments, 4).float()
    sums: dict[str, tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]] = {}
    sums["attention_mass"] = (
        partial(kernels.attention_mass, q, k, positions, SCALE, segments, 4),
        lambda: attention_probabilities(q, k, positions, SCALE).mean(0).mm(named),
    )
    question, keys, _, at = make_rows(32, 4096, False, dtype, device)
    sums["attention_received"] = (
        partial(kernels.attention_received, question, keys, at, SCALE),
        lambda: attention_probabilities(question, keys, at, SCALE).mean(0).sum(0),
    )
    for (kernel, (ours, explicit)), rows, looked in zip(
        sums.items(), (q, question), (k, keys), strict=True
    ):
        yield Case(
            kernel, f"{rows.shape[0]} rows, {looked.shape[0]} keys, run",
            {"ours": ours, "torch": explicit},
            (rows.numel() + looked.numel()) * dtype.itemsize,
            error=relative(ours(), explicit().double()), limit=4 * torch.finfo(dtype).eps,
        )  # fmt: skip


def relative(answer: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square error, relative."""
    return float((answer.double() - exact).norm() / exact.norm())


def measure(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Medians of interleaved arms."""
    slowest = max(_seconds(arm, device) for arm in case.arms.values() for _ in range(2))
    repeats = max(5, min(100, int(SECONDS_PER_CASE / len(case.arms) / slowest)))
    samples: dict[str, list[float]] = {name: [] for name in case.arms}
    for _ in range(repeats):
        for name, arm in case.arms.items():
            samples[name].append(_seconds(arm, device))
    medians = {name: statistics.median(values) for name, values in samples.items()}
    ours = medians["ours"]
    return {
        "kernel": case.kernel,
        "size": case.size,
        "dtype": str(dtype).removeprefix("torch."),
        "ms": {name: round(1000 * median, 4) for name, median in medians.items()},
        "gb_per_s": round(case.moved_bytes / ours / 1e9, 2),
        "gflop_per_s": round(case.flops / ours / 1e9, 1) if case.flops else None,
        "error": case.error,
        "torch_error": case.torch_error,
        "repeats": repeats,
    }


def _seconds(arm: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    arm()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def print_row(row: dict[str, Any], *, header: bool) -> None:
    """One line of the table."""
    if header:
        print(
            f"{'kernel':21}{'size':34}{'dtype':>9}{'ms':>9}{'no plan':>9}{'torch':>9}{'copy':>8}"
            f"{'GB/s':>8}{'GFLOP/s':>9}{'error':>9}{'torch':>9}"
        )
    ms = row["ms"]
    others = "".join(
        f"{ms[name]:{width}.3f}" if name in ms else " " * width
        for name, width in (("no plan", 9), ("torch", 9), ("copy", 8))
    )
    flops = f"{row['gflop_per_s']:9.0f}" if row["gflop_per_s"] else " " * 9
    errors = "".join(
        f"{row[name]:9.1e}" if row[name] is not None else " " * 9
        for name in ("error", "torch_error")
    )
    print(
        f"{row['kernel']:21}{row['size']:34}{row['dtype']:>9}{ms['ours']:9.3f}{others}"
        f"{row['gb_per_s']:8.2f}{flops}{errors}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
