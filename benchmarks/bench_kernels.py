"""Time of every kernel beside torch's own way, the bytes it must move, and its error.

    python benchmarks/bench_kernels.py [--device cpu] [--out benchmarks/results/bench_kernels.jsonl]

Heads are SmolLM2-135M's (9 query heads over 3 key heads of 64), on CUDA Llama-3-8B's (32 over 8 of
128). Arms:

- `ours`      the fastest kernels there are here: compiled, Triton's on CUDA, else the portable ones
- `portable`  their twin in torch (not timed on CUDA)
- `torch`     one call of torch's own for attention, with keys that lie ready at their positions and
              a ready mask; the product in fp32; several operations for the rest
- `flex`      FlexAttention, compiled, over the same keys (on CUDA)
- `copy`      moving as many bytes

Each kernel is first held to its slow twin; nothing is timed when one is off. Arms are interleaved,
medians taken, and what an arm reads comes from memory, as in a model: it takes another layer each
time. GB/s counts the bytes that must move at least once; error is relative, against fp64. What this
machine can do at most, by torch, is measured in the same run: each case says which share of the
copy's GB/s and of the bf16 product's GFLOP/s it reaches. Prints a table, each line when it is
measured, then one JSON line; a few minutes on two cores. A case that fails is told, and the next
one runs; with `--within` none begins after so many seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chunkcache  # noqa: F401 - before torch: it tells OpenMP's threads not to spin

# isort: split
import platformdirs
import torch
from kernel_cases import Case, ceiling_cases, row_cases
from kernel_clock import Clock
from kernel_records import record_cases
from kernel_scene import PAGE
from kernel_steps import MODELS, step_cases
from reporting import command_line, emit, surroundings

from chunkcache_kernels.compiled import Team
from chunkcache_kernels.compiler import NoCompiler

SECONDS_PER_CASE = 0.6  # of the slowest arm
# A serving process has freed larger tensors than any here, after which malloc keeps its pages. One
# that has not pays for every temporary in page faults, up to ten times the work itself.
WARM_UP_FLOATS = 7 * 2**20
COLUMNS = {"portable": 10, "torch": 9, "torch bf16": 11, "flex": 8, "copy": 8}  # beside ours


def main() -> int:
    """Measure and report; 1 when a kernel fails or differs from its twin."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=SECONDS_PER_CASE, help="for each case")
    parser.add_argument("--model", choices=sorted(MODELS), help="whose heads")
    parser.add_argument("--only", nargs="*", default=[""], help="cases whose names begin so")
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds for all")
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    began = time.monotonic()
    torch.manual_seed(given.seed)
    torch.zeros(WARM_UP_FLOATS)
    device = torch.device(given.device)
    around = surroundings(*(["triton"] if device.type == "cuda" else []))
    team = open_team(device)
    model = given.model or ("Llama-3-8B" if device.type == "cuda" else "SmolLM2-135M")
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    with torch.inference_mode():
        for name, make in cases(team, model, device):
            if not name.startswith(tuple(given.only)):
                continue
            if time.monotonic() - began > given.within:
                failed.append(f"{name}: no time left")
                continue
            if said := run(make, device, given.seconds, rows):
                failed.append(f"{name}: {said}")
                print(failed[-1], file=sys.stderr, flush=True)
    if team is not None:
        team.close()
    about = {"benchmark": "kernels", "command": command_line(), "seed": given.seed}
    compiled = {"device": str(device), "model": model, "compiled": team is not None}
    emit({**about, **around, **compiled, "rows": rows, "failed": failed}, given.out)
    return int(bool(failed))


def run(
    make: Callable[[], Case], device: torch.device, seconds: float, rows: list[dict[str, Any]]
) -> str | None:
    """Make a case, hold it to its twin, measure and print it; what went wrong, if anything did."""
    try:
        case = make()
        if case.is_off:
            return f"error {case.error:.1e} against its twin, at most {case.limit:.1e}"
        row = measure(case, device, seconds, rows)
    except Exception as error:  # the other kernels are still to be seen
        return f"{type(error).__name__}: {error}"[:2000]
    print_row(row, header=not rows)
    rows.append(row)
    return None


def open_team(device: torch.device) -> Team | None:
    """Threads for the compiled kernels, as many as torch uses; None, with a word, without them."""
    if device.type != "cpu":
        return None
    try:
        cache = Path(platformdirs.user_cache_dir("chunkcache", appauthor=False))
        return Team(cache, PAGE, torch.get_num_threads())
    except NoCompiler as error:
        print(f"no compiled kernels: {error}", file=sys.stderr)
        return None


def cases(
    team: Team | None, model: str, device: torch.device
) -> Iterator[tuple[str, Callable[[], Case]]]:
    """All cases by name, made one at a time."""
    yield from ceiling_cases(device)
    for pages in MODELS[model].page_types:
        yield from step_cases(team, model, pages, device)
    yield from record_cases(MODELS[model].heads, device)
    if team is not None:
        yield from row_cases(team)


def ceiling(rows: list[dict[str, Any]], kernel: str, figure: str) -> float:
    """The largest such figure of a kernel; 0 if it was not measured."""
    return max((row[figure] for row in rows if row["kernel"] == kernel), default=0.0)


def measure(
    case: Case, device: torch.device, seconds: float, before: list[dict[str, Any]]
) -> dict[str, Any]:
    """Medians of interleaved arms, beside the ceilings among what was measured `before`."""
    clock = Clock(case, device)
    slowest = max(clock.seconds(name) for name in clock.names for _ in range(2))
    repeats = max(5, min(100, int(seconds / len(clock.names) / slowest)))
    samples: dict[str, list[float]] = {name: [] for name in clock.names}
    for _ in range(repeats):
        for name in clock.names:
            samples[name].append(clock.seconds(name))
    medians = {name: statistics.median(values) for name, values in samples.items()}
    first = next(iter(medians.values()))
    gb_per_s, gflop_per_s = case.moved_bytes / first / 1e9, case.flops / first / 1e9
    copy = ceiling(before, "copy", "gb_per_s")
    product = ceiling(before, "matrix product", "gflop_per_s")
    return {
        "kernel": case.kernel,
        "size": case.size,
        "dtype": case.dtype,
        "ms": {name: round(1000 * median, 4) for name, median in medians.items()},
        "gb_per_s": round(gb_per_s, 2),
        "gflop_per_s": round(gflop_per_s, 1) if case.flops else None,
        "of_copy": round(gb_per_s / copy, 3) if copy else None,
        "of_product": round(gflop_per_s / product, 3) if case.flops and product else None,
        "error": case.error,
        "torch_error": case.torch_error,
        "repeats": repeats,
        "left_out": clock.left_out,
    }


def print_row(row: dict[str, Any], *, header: bool) -> None:
    """One line of the table."""
    if header:
        others = "".join(f"{name:>{width}}" for name, width in COLUMNS.items())
        print(
            f"{'kernel':15}{'size':41}{'dtype':>9}{'ms':>9}{others}"
            f"{'GB/s':>8}{'of copy':>8}{'GFLOP/s':>9}{'of max':>7}{'error':>9}{'torch':>9}"
        )
    ms = row["ms"]
    times = "".join(
        f"{ms[name]:{width}.3f}" if name in ms else " " * width
        for name, width in {"ours": 9, **COLUMNS}.items()
    )
    of_copy = f"{row['of_copy']:8.2f}" if row["of_copy"] else " " * 8
    flops = f"{row['gflop_per_s']:9.0f}" if row["gflop_per_s"] else " " * 9
    flops += f"{row['of_product']:7.2f}" if row["of_product"] else " " * 7
    errors = "".join(
        f"{row[name]:9.1e}" if row[name] is not None else " " * 9
        for name in ("error", "torch_error")
    )
    print(
        f"{row['kernel']:15}{row['size']:41}{row['dtype']:>9}{times}"
        f"{row['gb_per_s']:8.2f}{of_copy}{flops}{errors}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
