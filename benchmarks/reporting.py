"""What every benchmark says beside its figures, and how it says it: a table, then one JSON line."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import chunkcache  # noqa: F401 - before torch: it tells OpenMP's threads not to spin

# isort: split
import torch

EVERY_RESULT = frozenset({"benchmark", "command", "commit", "machine", "seed", "versions"})

# what decides which kernels a processor can run
PROCESSOR_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def commit(root: Path | None = None) -> str:
    """The short name of the commit that is checked out at `root`, `-dirty` where its files differ.

    Result files do not count: the second of two benchmarks run in turn measures the same code.
    Empty where there is no git.
    """
    if shutil.which("git") is None:
        return ""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, cwd=root
        ).stdout.strip()

    changed = git("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)benchmarks/results")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def surroundings(*packages: str) -> dict[str, Any]:
    """Commit, machine, and versions of torch and `packages`."""
    cpu, flags = platform.processor(), set[str]()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
        flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": commit() or "unknown",
        "machine": {
            "cpu": cpu, "cores": os.cpu_count(), "gpu": device, "kernel": platform.release(),
            "flags": [flag for flag in PROCESSOR_FLAGS if flag in flags],
            "load_1min": round(os.getloadavg()[0], 2), "torch_threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", *packages)},
        },
    }  # fmt: skip


def command_line() -> str:
    """This run's command, as it can be given again from the repository's root.

    Of an absolute path the last part is shown: where it lies is this machine's business.
    """
    script, *arguments = sys.argv
    shown = [Path(a).name if os.path.isabs(a) else a for a in arguments]
    return " ".join(["python", os.path.relpath(script), *shown])


def emit(result: dict[str, Any], out: Path | None) -> None:
    """Print the JSON line, and append it to `out` if given.

    Raises:
        ValueError: a field that every result has is missing; the line was printed, not kept.
    """
    line = json.dumps(result)
    print(line)
    if absent := EVERY_RESULT - result.keys():
        raise ValueError(f"the result lacks {sorted(absent)} and was not written to {out}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(line + "\n")
