"""Time to first token: full recompute, exact prefixes, and the chunk cache at several budgets.

    python benchmarks/bench_ttft.py [--out benchmarks/results/bench_ttft.jsonl]

k passages of n tokens are put before a question. Arms, interleaved in one run, medians reported:

- `full`           our engine, nothing reused
- `transformers`   the same token ids through plain `model.generate(max_new_tokens=1)`
- `prefix`         exact prefixes only (mode `exact`); passages come in random order
- `cache B`        chunk cache, everything warm in memory, budget B, the default policy
- `lmdb B`         the same with no chunk in memory and the store's file out of the page cache

Every arm draws its own passages and order, so no arm profits from the prefix another one left.
First, on a smaller prompt, repairing every row is held equal to full recompute; nothing is measured
when it is not.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chunkcache  # noqa: F401 - before torch: it tells OpenMP's threads not to spin

# isort: split
import torch
from page_cache import drop
from reporting import command_line, emit, surroundings
from transformers import AutoModelForCausalLM

from chunkcache import ChunkCache
from chunkcache.cli.stdlib_pages import stdlib_pages
from chunkcache.config import Settings, load_settings
from chunkcache.cores import in_own_thread
from chunkcache.engine.weights import resolve_model
from chunkcache.evaluate.drift import kl_divergence
from chunkcache.protocol import (
    AnswerRequest,
    ChunkCacheOptions,
    GivenDocument,
    Message,
    Sampling,
)
from chunkcache.service.asking import Measure
from chunkcache.store import store_path

COUNTS = (3, 5, 10)
LENGTHS = (128, 256, 512)
BUDGETS = (0.0, 0.05, 0.15, 0.3)
LMDB_BUDGETS = (0.0, 0.15)
POOL = 14  # passages of each length that arms draw from
QUESTION = "Which of these functions would you use, and what does it return?"
HOST_BYTES = 3 * 2**30


def passages(cache: ChunkCache, length: int) -> list[GivenDocument]:
    """`POOL` passages of `length` tokens each, cut from the documentation of the interpreter."""
    tokenizer: Any = cache.runtime.model.tokenizer
    text = "\n".join(page for _, page in stdlib_pages())
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    found = []
    for number in range(POOL):
        # the title line and the blank line that prompts put around a passage take some tokens
        first = number * length
        last = first + length - 12
        piece = text[offsets[first][0] : offsets[last][1]]
        found.append(GivenDocument(id=f"{length}-{number}", title="stdlib", text=piece))
    return found


def request(
    documents: list[GivenDocument], tenant: str = "public", **options: Any
) -> AnswerRequest:
    """The question over `documents`."""
    return AnswerRequest(
        messages=[Message(role="user", content=QUESTION)],
        documents=documents,
        tenant=tenant,
        sampling=Sampling(max_tokens=1),
        options=ChunkCacheOptions(**options),
    )


def ttft_ms(cache: ChunkCache, asked: AnswerRequest) -> tuple[float, dict[str, Any]]:
    """TTFT of an answer, and its report."""
    report = cache.ask(asked).report
    return report.timings.ttft_ms, report.model_dump()


def repair_equals_full(cache: ChunkCache, documents: list[GivenDocument]) -> float:
    """KL in nats of the first token between full recompute and repairing every row.

    Raises:
        RuntimeError: nothing was reused, so that nothing was compared.
    """
    logits, repaired = [], 0
    # the first one only sees to it that there are records to repair
    for options in ({}, {"mode": "full"}, {"policy": "all", "budget": 1.0}):
        handle = cache.start(request(documents, **options), measure=Measure(leaves_no_prefix=True))
        list(handle.events())
        assert handle.outcome is not None
        logits.append(handle.outcome.first_logits)
        repaired = len(handle.outcome.recomputed)
    if not repaired:
        raise RuntimeError("no row was repaired")
    return float(kl_divergence(logits[1], logits[2]))


class Transformers:
    """Plain `generate` on the same weights, in the same number type."""

    def __init__(self, settings: Settings, dtype: torch.dtype) -> None:
        source = resolve_model(settings.model.name, settings.cache)
        self._model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()

    def first_token_ms(self, token_ids: tuple[int, ...]) -> float:
        """Prefill and one token."""
        ids = torch.tensor([token_ids])
        began = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False
            )
        return (time.perf_counter() - began) * 1e3


def forget_disk_pages(cache: ChunkCache) -> None:
    """No chunk in memory, and the store's file out of the page cache."""
    cache.runtime.engine.chunks.clear()
    drop(store_path(cache.settings) / "data.mdb")


class Run:
    """The arms over one pool of passages."""

    def __init__(
        self, cache: ChunkCache, on_disk: ChunkCache, outside: Transformers, seed: int
    ) -> None:
        self._cache = cache
        self._disk = on_disk
        self._outside = outside
        self._random = random.Random(seed)
        self.last_report: dict[str, Any] = {}

    def arms(self, pool: list[GivenDocument], count: int) -> dict[str, Callable[[], float]]:
        """Name → a function that runs the arm once and returns milliseconds."""
        arms: dict[str, Callable[[], float]] = {
            "full": lambda: self._ask(self._cache, pool, count, mode="full"),
            # in a thread that ends: a second team of cores would slow the engine's (cores.py)
            "transformers": lambda: in_own_thread(
                self._outside.first_token_ms, self._ids(pool, count)
            ),
            "prefix": lambda: self._ask(self._cache, pool, count, "prefix", mode="exact"),
        }
        for budget in BUDGETS:
            arms[f"cache {budget:g}"] = lambda b=budget: self._ask(  # type: ignore[misc]
                self._cache, pool, count, budget=b
            )
        for budget in LMDB_BUDGETS:
            arms[f"lmdb {budget:g}"] = lambda b=budget: self._from_disk(pool, count, b)  # type: ignore[misc]
        return arms

    def _draw(self, pool: list[GivenDocument], count: int) -> list[GivenDocument]:
        return self._random.sample(pool, count)

    def _ask(
        self, cache: ChunkCache, pool: list[GivenDocument], count: int, tenant: str = "public",
        **options: Any,
    ) -> float:  # fmt: skip
        ms, self.last_report = ttft_ms(cache, request(self._draw(pool, count), tenant, **options))
        return ms

    def _from_disk(self, pool: list[GivenDocument], count: int, budget: float) -> float:
        forget_disk_pages(self._disk)
        ms = self._ask(self._disk, pool, count, budget=budget)
        tiers = {s["tier"] for s in self.last_report["spans"] if s["kind"] == "chunk"}
        assert tiers <= {"disk", "prefix"}, tiers
        return ms

    def _ids(self, pool: list[GivenDocument], count: int) -> tuple[int, ...]:
        handle = self._cache.start(request(self._draw(pool, count), mode="full"))
        ids = handle.prompt.token_ids
        handle.cancel()
        while self._cache.runtime.engine.unfinished:  # nothing may run beside the next arm
            time.sleep(0.001)
        return ids


def measure(run: Run, pool: list[GivenDocument], count: int, repeats: int) -> dict[str, Any]:
    """Medians of all arms, in turns; ratios are medians of the turns' own ratios."""
    samples: dict[str, list[float]] = {}
    arms = run.arms(pool, count)
    for turn in range(repeats + 1):
        for name, arm in arms.items():
            value = arm()
            if turn:  # the first turn only warms up
                samples.setdefault(name, []).append(value)
    rows = {
        name: {
            "ttft_ms": round(statistics.median(values), 1),
            "min_ms": round(min(values), 1),
            "max_ms": round(max(values), 1),
            "of_full": round(_paired(values, samples["full"]), 4),
        }
        for name, values in samples.items()
    }
    for budget in LMDB_BUDGETS:
        ratio = _paired(samples[f"lmdb {budget:g}"], samples[f"cache {budget:g}"])
        rows[f"lmdb {budget:g}"]["of_host"] = round(ratio, 4)
    rows["full"]["of_transformers"] = round(_paired(samples["full"], samples["transformers"]), 4)
    return rows


def _paired(values: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def main() -> int:
    """Check, warm, measure, print. Returns the exit code: 1 when the twins differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    parser.add_argument("--repeats", type=int, default=5, help="turns measured, at least 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs=2, type=int, metavar=("K", "TOKENS"), help="one cell")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    given = parser.parse_args()
    if given.repeats < 5:
        parser.error(f"--repeats: got {given.repeats}, must be at least 5. Hint: leave it out")
    cells = [tuple(given.only)] if given.only else [(k, n) for k in COUNTS for n in LENGTHS]
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "model": {"dtype": given.dtype},
            "retrieval": {"chunk_tokens": 512},
            "engine": {"kv_capacity_bytes": 2**29},
        }
        settings = load_settings(
            home=Path(folder) / "host",
            store={"host_capacity_bytes": HOST_BYTES, "disk_capacity_bytes": 0},
            **common,
        )
        on_disk = load_settings(
            home=Path(folder) / "disk", store={"host_capacity_bytes": HOST_BYTES}, **common
        )
        with ChunkCache(settings) as cache, ChunkCache(on_disk) as disk:
            result = _measure_all(cache, disk, cells, given)
    if result is None:
        return 1
    emit({"benchmark": "ttft", "command": command_line(), "seed": given.seed, **result}, given.out)
    return 0


def _measure_all(
    cache: ChunkCache, disk: ChunkCache, cells: list[Any], given: argparse.Namespace
) -> dict[str, Any] | None:
    model = cache.runtime.model
    pools = {length: passages(cache, length) for length in sorted({n for _, n in cells})}
    difference = in_own_thread(repair_equals_full, cache, next(iter(pools.values()))[:3])
    # no repair is off by some 0.1; bf16 by a few thousandths (docs/concepts/repair.md: `all`)
    limit = 1e-6 if model.dtype is torch.float32 else 0.02
    if difference > limit:
        print(f"not measured: repairing every row is {difference:.2e} nats off", file=sys.stderr)
        return None
    outside = in_own_thread(Transformers, cache.settings, model.dtype)
    run = Run(cache, disk, outside, given.seed)
    rows = []
    for count, length in cells:
        pool = pools[length]
        for each in (cache, disk):
            for start in range(0, POOL, 7):
                each.ask(request(pool[start : start + 7]))
            each.runtime.store.flush()
        arms = measure(run, pool, count, given.repeats)
        rows.append(
            {"passages": count, "tokens": length, "prompt_tokens": run.last_report["prompt_tokens"],
             "arms": arms}
        )  # fmt: skip
        _print_row(rows[-1], header=len(rows) == 1)
    return {
        "model": model.name,
        "dtype": model.geometry.dtype,
        "policy": cache.settings.repair.policy,
        "twin_difference": difference,
        **surroundings("transformers", "lmdb", "chunkcache"),
        "rows": rows,
    }


def _print_row(row: dict[str, Any], *, header: bool) -> None:
    arms = row["arms"]
    if header:
        print(f"{'k':>3}{'tokens':>7}{'prompt':>8}" + "".join(f"{name:>14}" for name in arms))
    cells = "".join(f"{a['ttft_ms']:>8.0f} {a['of_full']:>4.2f}x" for a in arms.values())
    print(f"{row['passages']:>3}{row['tokens']:>7}{row['prompt_tokens']:>8}" + cells, flush=True)


if __name__ == "__main__":
    sys.exit(main())
