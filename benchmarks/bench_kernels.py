"""Time of every kernel beside torch's own way, the bytes it must move, and its error.

    python benchmarks/bench_kernels.py [--device cpu] [--out benchmarks/results/bench_kernels.jsonl]

Heads are SmolLM2-135M's: 9 query heads over 3 key heads of 64. Arms:

- `ours`      the fastest kernels there are here: compiled, Triton's on CUDA, else the portable ones
- `portable`  their twin in torch
- `torch`     one call of torch's own for attention, with keys that lie ready at their positions and
              a ready mask; the product in fp32; several operations for the rest
- `copy`      moving as many bytes

Each kernel is first held to its slow twin; nothing is timed when one is off. Arms are interleaved,
medians taken, and what an arm reads comes from memory, as in a model: it takes another layer each
time. GB/s counts the bytes that must move at least once; error is relative, against fp64. What this
machine can do at most, by torch, is measured in the same run. Prints a table, then one JSON line; a
few minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
import torch
from kernel_cases import Case, ceiling_cases, row_cases
from kernel_steps import PAGE, step_cases
from reporting import command_line, emit, surroundings

from chunkcache_kernels.compiled import Team
from chunkcache_kernels.compiler import NoCompiler

SECONDS_PER_CASE = 0.6  # of the slowest arm
# A serving process has freed larger tensors than any here, after which malloc keeps its pages. One
# that has not pays for every temporary in page faults, up to ten times the work itself.
WARM_UP_FLOATS = 7 * 2**20
COLUMNS = {"portable": 10, "torch": 9, "torch bf16": 11, "copy": 8}  # arms beside ours


def main() -> int:
    """Measure and report; 1 when a kernel differs from its twin."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=SECONDS_PER_CASE, help="for each case")
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    torch.zeros(WARM_UP_FLOATS)
    device = torch.device(given.device)
    around = surroundings(*(["triton"] if device.type == "cuda" else []))
    team = open_team(device)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for case in cases(team, device):
            if case.is_off:
                print(
                    f"{case.kernel} {case.size} {case.dtype}: error {case.error:.1e} against its "
                    f"twin, at most {case.limit:.1e}. Nothing more is measured.",
                    file=sys.stderr,
                )
                return 1
            row = measure(case, device, given.seconds)
            print_row(row, header=not rows)
            rows.append(row)
    if team is not None:
        team.close()
    about = {"benchmark": "kernels", "command": command_line(), "seed": given.seed}
    compiled = {"device": str(device), "compiled": team is not None}
    emit({**about, **around, **compiled, "rows": rows}, given.out)
    return 0


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


def cases(team: Team | None, device: torch.device) -> Iterator[Case]:
    """All cases, made one at a time."""
    yield from ceiling_cases(device)
    for pages in (torch.float32, torch.bfloat16, torch.int8):
        yield from step_cases(team, pages, device)
    if team is not None:
        yield from row_cases(team)


def measure(case: Case, device: torch.device, seconds: float) -> dict[str, Any]:
    """Medians of interleaved arms."""
    slowest = max(_seconds(arm, device) for arm in case.arms.values() for _ in range(2))
    repeats = max(5, min(100, int(seconds / len(case.arms) / slowest)))
    samples: dict[str, list[float]] = {name: [] for name in case.arms}
    for _ in range(repeats):
        for name, arm in case.arms.items():
            samples[name].append(_seconds(arm, device))
    medians = {name: statistics.median(values) for name, values in samples.items()}
    first = next(iter(medians.values()))
    return {
        "kernel": case.kernel,
        "size": case.size,
        "dtype": case.dtype,
        "ms": {name: round(1000 * median, 4) for name, median in medians.items()},
        "gb_per_s": round(case.moved_bytes / first / 1e9, 2),
        "gflop_per_s": round(case.flops / first / 1e9, 1) if case.flops else None,
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
        others = "".join(f"{name:>{width}}" for name, width in COLUMNS.items())
        print(
            f"{'kernel':15}{'size':41}{'dtype':>9}{'ms':>9}{others}"
            f"{'GB/s':>8}{'GFLOP/s':>9}{'error':>9}{'torch':>9}"
        )
    ms = row["ms"]
    times = "".join(
        f"{ms[name]:{width}.3f}" if name in ms else " " * width
        for name, width in {"ours": 9, **COLUMNS}.items()
    )
    flops = f"{row['gflop_per_s']:9.0f}" if row["gflop_per_s"] else " " * 9
    errors = "".join(
        f"{row[name]:9.1e}" if row[name] is not None else " " * 9
        for name in ("error", "torch_error")
    )
    print(
        f"{row['kernel']:15}{row['size']:41}{row['dtype']:>9}{times}"
        f"{row['gb_per_s']:8.2f}{flops}{errors}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
