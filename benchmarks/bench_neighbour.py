"""What one busy neighbour process costs: TTFT and decoding beside it, and alone, in turns.

    python benchmarks/bench_neighbour.py --out benchmarks/results/bench_neighbour.jsonl

The neighbour takes a whole core: it counts, and sleeps while the turns without it are measured.
Passages are warm; `full` computes the prompt, `cache 0.15` repairs 15 % of the reused rows,
`decode` is the time of a token behind the first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from bench_quality import question_settings
from bench_ttft import POOL, passages, request
from reporting import command_line, emit, surroundings

from chunkcache import ChunkCache
from chunkcache.config import EMBEDDED_MODEL
from chunkcache.protocol import GivenDocument

ARMS: dict[str, dict[str, Any]] = {"full": {"mode": "full"}, "cache 0.15": {"budget": 0.15}}


def busy(runs: Event) -> None:
    """Take a core for as long as `runs` is set."""
    while runs.wait():
        for _ in range(100_000):
            pass


def times_of(
    cache: ChunkCache, documents: list[GivenDocument], tokens: int, options: dict[str, Any]
) -> tuple[float, float]:
    """TTFT, and milliseconds of a token behind it."""
    asked = request(documents, **options)
    sampling = asked.sampling.model_copy(update={"max_tokens": tokens, "ignore_eos": True})
    began = time.perf_counter()
    report = cache.ask(asked.model_copy(update={"sampling": sampling})).report
    whole_ms = (time.perf_counter() - began) * 1e3
    ttft_ms = report.timings.ttft_ms
    return ttft_ms, (whole_ms - ttft_ms) / (tokens - 1)


def measure(cache: ChunkCache, given: argparse.Namespace) -> dict[str, Any]:
    """Medians alone and beside the neighbour, and their ratio turn by turn."""
    pool, draw = passages(cache, given.tokens)[:POOL], random.Random(given.seed)
    for start in range(0, POOL, given.passages):
        cache.ask(request(pool[start : start + given.passages]))  # every passage is warm then
    spawning = multiprocessing.get_context("spawn")
    runs = spawning.Event()
    neighbour = spawning.Process(target=busy, args=(runs,), daemon=True)
    neighbour.start()
    samples: dict[str, dict[str, list[float]]] = {}
    try:
        for turn in range(given.turns + 1):  # the first warms up
            documents = draw.sample(pool, given.passages)
            for beside in (False, True):
                runs.set() if beside else runs.clear()
                time.sleep(0.2)  # the neighbour has noticed, and the cores' clocks have settled
                for name, options in ARMS.items():
                    ttft_ms, token_ms = times_of(cache, documents, given.answer, options)
                    cells = {name: ttft_ms} | ({"decode": token_ms} if name != "full" else {})
                    for cell, found_ms in cells.items() if turn else ():
                        kept = samples.setdefault(cell, {"alone": [], "beside": []})
                        kept["beside" if beside else "alone"].append(found_ms)
    finally:
        neighbour.terminate()
        neighbour.join()
    return {
        cell: {
            "alone_ms": round(statistics.median(kept["alone"]), 2),
            "beside_ms": round(statistics.median(kept["beside"]), 2),
            "beside_of_alone": [
                round(of(b / a for a, b in zip(kept["alone"], kept["beside"], strict=True)), 3)
                for of in (statistics.median, min, max)
            ],
        }
        for cell, kept in samples.items()
    }


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="as model.name")
    parser.add_argument("--passages", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512, help="of each passage")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        settings = question_settings(Path(home), given.model)
        with ChunkCache(settings) as cache:
            model = cache.runtime.model.name
            cells = measure(cache, given)
    print(f"{'':12}{'alone ms':>10}{'beside ms':>11}  beside / alone")
    for cell, found in cells.items():
        ratio, low, high = found["beside_of_alone"]
        print(f"{cell:12}{found['alone_ms']:10.1f}{found['beside_ms']:11.1f}"
              f"  {ratio:.2f} ({low:.2f}-{high:.2f})")  # fmt: skip
    emit(
        {
            "benchmark": "neighbour", "command": command_line(), "seed": given.seed,
            "model": model, "prompt": f"{given.passages} x {given.tokens}",
            "answer_tokens": given.answer, "turns": given.turns, "cells": cells,
            **surroundings("transformers"),
        },
        given.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
