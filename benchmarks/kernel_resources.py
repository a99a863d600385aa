"""What Triton's attention takes of a GPU, out of the compiler: no GPU is needed, and none is timed.

    PYTHONPATH=kernels:tests/worlds python benchmarks/kernel_resources.py [--capability 90]

A line for each kind of item, head size and page format: registers and bytes of stack a thread,
shared memory, programs that a processor of an A100 (8.0) or H100 (9.0) runs at a time, and of the
loop over tiles of the chunks' arena: keys, a warp's instructions, barriers, spills, loads ahead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_launches import Launches, Loop, Resources

from chunkcache_kernels import Arena, Heads, Rotary, fours, triton_pages

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32,
         "int8": torch.int8, "int4": fours.PAGE_TYPE}  # fmt: skip
SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
KV_HEADS, GROUP, PAGE, ITEMS = 8, 4, 32, 16
CPU = torch.device("cpu")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--capability", type=int, nargs="*", default=[80, 90])
    parser.add_argument("--dims", type=int, nargs="*", default=[64, 80, 96, 128, 256])
    parser.add_argument("--pages", nargs="*", default=["bf16", "int8", "int4", "fp32"])
    parser.add_argument("--queries", type=int, nargs="*", default=[16, 32, 64, 128])
    given = parser.parse_args()
    print("| capability | pages | D | queries | keys | warps | registers | stack | shared KiB "
          "| programs | instructions | barriers | spills | ahead |\n|" + "---|" * 14)  # fmt: skip
    for capability in given.capability:
        for name in given.pages:
            for dim in given.dims:
                for queries, shared in kinds(name, dim):
                    if queries in given.queries or name == "fp32":
                        print(line(capability, name, dim, queries, shared=shared), flush=True)
    return 0


def kinds(pages: str, dim: int) -> Iterator[tuple[int, bool]]:
    """Queries of an item, and whether it is shared; of the large ones, the largest."""
    if pages == "fp32":
        yield from ((16, True), (32, False))
    else:
        yield from ((16, True), (64 if dim <= 128 else 32, True))
        yield 128 if dim <= 128 else 64, False


def line(capability: int, pages: str, dim: int, queries: int, *, shared: bool) -> str:
    """One kernel, compiled as a launch compiles it."""
    own = "fp32" if pages == "fp32" else "bf16"
    launches = Launches()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("TRITON_CACHE_DIR", folder)
        launches.install(patch, capability)
        step = step_of(own, pages, dim, (0, ITEMS, queries, shared))
        width = (GROUP + 2) * KV_HEADS * dim
        step.attend(0, torch.zeros(step.num_rows, width, dtype=TYPES[own]))
        ((_, compiled),) = launches.done
        used, loop = Resources.of(compiled, Path(folder)), Loop.of(compiled, Path(folder))[0]
    keys, warps, _ = triton_pages.tiles(
        dim, pages == "fp32", queries, step.rounded_page, shared=shared
    )
    kind = "shared" if shared else "chained"
    said = (f"{capability / 10}", pages, dim, f"{queries} {kind}", keys, warps, used.registers,
            used.stack, round(used.shared / 1024), used.programs(SHARED_BYTES[capability]),
            loop.instructions, loop.barriers, loop.spills, loop.ahead)  # fmt: skip
    return "| " + " | ".join(map(str, said)) + " |"


def step_of(own: str, pages: str, dim: int, kind: Any) -> triton_pages.TritonStep:
    """A step of which only the sizes matter."""
    heads = Heads(GROUP * KV_HEADS, KV_HEADS, dim, dim**-0.5, dim)
    arenas = [
        Arena.empty(1, 2, KV_HEADS, dim, PAGE, dtype=TYPES[of], device=CPU) for of in (own, pages)
    ]
    shapes = {"items": (ITEMS, 4), "entries": (ITEMS, 2), "stretches": (ITEMS, 6),
              "bounds": (ITEMS, 2), "looks": (ITEMS, 2), "pages": (ITEMS,), "key_positions": (64,),
              "row_positions": (ITEMS,), "row_parts": (ITEMS + 4,)}  # fmt: skip
    arrays = {name: torch.zeros(shape, dtype=torch.int32) for name, shape in shapes.items()}
    angles = torch.zeros(4, dim)
    room = triton_pages.room_for_parts(4, heads, CPU)
    counters = torch.zeros(ITEMS * heads.heads, dtype=torch.int32)
    return triton_pages.TritonStep(
        arenas, heads, Rotary(angles, angles), ITEMS, arrays, [kind], room, counters
    )


if __name__ == "__main__":
    sys.exit(main())
