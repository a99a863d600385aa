"""How often the recomputed rows hold the answer, per policy: needles in hay.

    python benchmarks/bench_needle.py --model FOLDER [--cases 40] [--budget 0.15]

`rows` is what chance would find: the share of rows that is recomputed, and so the chance for one
token; a needle has several.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from needles import finds_needle, needle_case
from reporting import command_line, emit, surroundings

from chunkcache import ChunkCache
from chunkcache.config import EMBEDDED_MODEL, load_settings
from chunkcache.protocol import ChunkCacheOptions

POLICIES = ("question", "deviation", "cfo", "first_k")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="as model.name")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--first", type=int, default=60, help="windows were chosen on cases 0-59")
    parser.add_argument("--budget", type=float, default=0.15)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        settings = load_settings(
            home=home,
            model={"name": given.model},
            retrieval={"embedder": "hashing:64"},
            store={"disk_capacity_bytes": 0},
        )
        with ChunkCache(settings) as cache:
            found = {}
            for policy in POLICIES:
                options = ChunkCacheOptions(policy=policy, budget=given.budget)
                cases = map(needle_case, range(given.first, given.first + given.cases))
                found[policy] = sum(finds_needle(cache, case, options) for case in cases)
                print(f"{policy:>12}: {found[policy]} of {given.cases}", flush=True)
            model = cache.model_id
    emit(
        {
            "benchmark": "needle", "command": command_line(), "model": model, "seed": 0,
            "budget": given.budget, "cases": given.cases, "first": given.first,
            "found": found,
            **surroundings("transformers", "chunkcache"),
        },
        given.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
