"""Time to first token and decoding on a GPU, in the shapes of Llama-3-8B and Qwen2.5-7B.

    python benchmarks/bench_gpu_ttft.py [--shape llama-3-8b qwen2.5-7b] [--seconds 160] [--warm]
        [--out FILE]

Weights and chunk KV are random: no time depends on them. Prompts of 8k and 32k tokens are chunks of
512 between a head and a question. Arms: full prefill by our engine and by transformers with SDPA,
then budgets 0, .05 and .15 with the chunks in pages, in pinned host memory, and on disk with the
page cache dropped. Parts of a time: `wait_ms` for layers on their way up, `probe_ms`, `compute_ms`
(repair and question); `load_ms` and `promote_ms` are bringing all chunks up without a request, from
pinned memory, and from numbers that lie on the device. Decoding: 1, 8 and 32 requests over one
prompt's chunks, beside the bandwidth of a copy on the same device. Over pages of 8 and of 4 bits:
from pages with budget .05, and decoding.

Every part writes its JSON line when it has it; what no time is left for says so. First the gate:
nothing is measured where reuse is not right. All shapes at the first length come before any at the
next. `--warm` runs what compiles kernels, at the first length, for a run that is to be read.
`--shape tiny` tries all of it on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import chunkcache  # noqa: F401 - before torch: it tells OpenMP's threads not to spin

# isort: split
import torch
from gpu_world import SHAPES, BringUp, Shape, World
from reporting import command_line, emit, surroundings

from chunkcache.engine.gate import run_gate
from chunkcache.engine.generation import Generation
from chunkcache.engine.outcome import Outcome
from chunkcache.engine.reference import as_transformers_runs_it

BUDGETS = (0.0, 0.05, 0.15)
ROUNDED, ROUNDED_AT = ("int8", "int4"), 0.05  # pages of chunks, and the budget over them
REPEATS = 3
COMPILE_NOTHING = ("transformers", "pinned", "disk", "load")
Part = Callable[[], dict[str, Any]]


def outcome_of(request: Generation) -> Outcome:
    """Wait for it."""
    return next(event for event in request.events() if isinstance(event, Outcome))


def synchronize(device: torch.device) -> None:
    """The device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The median of some runs behind one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def median_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Field by field, without the first row."""
    return {name: round(statistics.median(r[name] for r in rows[1:]), 3) for name in rows[0]}


class Measures:
    """What is measured of one shape at one length of prompt."""

    def __init__(self, world: World, tokens: int, folder: Path) -> None:
        self._world = world
        world.use_pages("raw")
        self._prompt = world.prompt(tokens)
        self._records = world.records(self._prompt)
        self._folder = folder

    def parts(self) -> dict[str, Part]:
        """By name, the most wanted first."""
        tokens = self._prompt.num_tokens
        parts: dict[str, Part] = {
            f"full {tokens}": self.full, f"transformers {tokens}": self.transformers,
        }  # fmt: skip
        counts = self._world.shape.requests
        ways = {"pages": self._from_pages, "pinned": self._from_pinned, "disk": self._from_disk}
        for name, way in ways.items():
            for budget in BUDGETS:
                parts[f"{name} {tokens} {budget}"] = lambda way=way, at=budget: way(at)
            if name == "pages":
                for count in counts:
                    parts[f"decode {tokens} {count}"] = lambda count=count: self.decode(count)
            if name == "pinned":
                parts[f"load {tokens}"] = self.load
        for of in ROUNDED:
            parts |= self._rounded(of, tokens, counts)
        return parts

    def _rounded(self, pages: str, tokens: int, counts: tuple[int, ...]) -> dict[str, Part]:
        parts: dict[str, Part] = {
            f"{pages} pages {tokens} {ROUNDED_AT}": lambda: self._from_pages(ROUNDED_AT, pages)
        }
        for count in counts:
            name = f"decode over {pages} {tokens} {count}"
            parts[name] = lambda count=count: self.decode(count, pages)
        return parts

    def full(self) -> dict[str, Any]:
        """Nothing reused."""
        return median_of([self._asked({}, 0.0) for _ in range(REPEATS + 1)])

    def transformers(self) -> dict[str, Any]:
        """The same token ids through the same modules, with SDPA and a cache."""
        model: Any = self._world.model
        ids = torch.tensor([self._prompt.token_ids], device=model.device)

        def first_token() -> int:
            out = model.hf(ids, use_cache=True, logits_to_keep=1)
            return int(out.logits[0, -1].argmax())

        with torch.inference_mode(), as_transformers_runs_it(model, "sdpa"):
            return {"ttft_ms": round(seconds(model.device, first_token) * 1e3, 3)}

    def load(self) -> dict[str, Any]:
        """All chunks up, without a request: from pinned memory, and from the device."""
        world, chunks = self._world, self._world.engine.chunks
        device = world.model.device
        there = self._records[1].kv.to(device)

        def promote() -> None:
            held = [chunks.expect(r.key, r.stats) for r in self._records.values()]
            for resident, _ in filter(None, held):
                chunks.write(resident, 0, there)
                chunks.settle(resident)
                chunks.release([resident])
            chunks.clear()

        def load() -> None:
            ended = threading.Event()
            residents = world.bring_up(self._records, ended.set)
            ended.wait()
            chunks.release(residents.values())
            chunks.clear()

        size = sum(record.kv.nbytes for record in self._records.values())
        load_s, promote_s = seconds(device, load), seconds(device, promote)
        return {
            "load_ms": load_s * 1e3, "promote_ms": promote_s * 1e3, "bytes": size,
            "load_gb_per_s": size / load_s / 1e9, "promote_gb_per_s": size / promote_s / 1e9,
        }  # fmt: skip

    def decode(self, count: int, pages: str = "raw") -> dict[str, Any]:
        """So many requests over the same chunks, each with pages of its own for what it writes."""
        world, new = self._world, self._world.shape.new_tokens
        world.use_pages(pages)
        with world.held(self._records) as held:
            requests = [
                world.ask(self._prompt, world.again(held), 0.0, new_tokens=new)
                for _ in range(count)
            ]
            outcomes = [outcome_of(request) for request in requests]
        firsts, ends = (
            max(
                r.submitted_at + getattr(o, name) / 1e3
                for r, o in zip(requests, outcomes, strict=True)
            )
            for name in ("ttft_ms", "total_ms")
        )
        step_s = (ends - firsts) / (new - 1)  # of the last to begin: all others decode beside it
        of_chunks = sum(record.num_tokens for record in self._records.values())
        kv_bytes = world.prompt_bytes(self._prompt.num_tokens, of_chunks)
        read = {
            "shared": world.weight_bytes + kv_bytes,
            "each": world.weight_bytes + count * kv_bytes,
        }
        copy_s = {name: size / world.copy_bytes_per_s for name, size in read.items()}
        return {
            "requests": count, "step_ms": step_s * 1e3, "tokens_per_s": count / step_s,
            "weight_bytes": world.weight_bytes, "kv_bytes": kv_bytes,
            "copy_gb_per_s": world.copy_bytes_per_s / 1e9,
            "of_reading": {name: step_s / bound for name, bound in copy_s.items()},
            "captured": sum(len(b.pieces) for b in world.engine.pool.captured.values()),
        }  # fmt: skip

    # ------------------------------------------------------------ where chunks are

    def _from_pages(self, budget: float, pages: str = "raw") -> dict[str, Any]:
        self._world.use_pages(pages)
        with self._world.held(self._records) as held:
            rows = [self._asked(self._world.again(held), budget) for _ in range(REPEATS + 1)]
        return median_of(rows)

    def _from_pinned(self, budget: float) -> dict[str, Any]:
        self._world.use_pages("raw")
        return self._brought_up(budget, lambda end: self._world.bring_up(self._records, end))

    def _from_disk(self, budget: float) -> dict[str, Any]:
        with self._world.on_disk(self._records, self._folder) as (forget, bring_up):
            return self._brought_up(budget, bring_up, before=forget)

    def _brought_up(
        self, budget: float, bring_up: BringUp, *, before: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        rows = []
        for _ in range(REPEATS + 1):
            before()
            ended, began = threading.Event(), time.perf_counter()
            rows.append(self._asked(bring_up(ended.set), budget, began=began))
            ended.wait()
            self._world.engine.chunks.clear()
        return median_of(rows)

    def _asked(
        self, residents: dict[int, Any], budget: float, *, began: float | None = None
    ) -> dict[str, float]:
        world = self._world
        request = world.ask(self._prompt, residents, budget, new_tokens=1)
        outcome = outcome_of(request)
        before_ms = 0.0 if began is None else (request.submitted_at - began) * 1e3
        rows = len(outcome.plan.missing) + len(outcome.recomputed)
        return {
            "ttft_ms": outcome.ttft_ms + before_ms, "queue_ms": outcome.queue_ms,
            "wait_ms": outcome.wait_ms, "probe_ms": outcome.probe_ms,
            "compute_ms": outcome.compute_ms, "rows": rows,
            "own_kv_bytes": world.pages_bytes(rows), "cost_ratio": outcome.cost_ratio,
        }  # fmt: skip


class Run:
    """Parts one after the other, as long as there is time."""

    def __init__(
        self, shape: str, until: float, out: Path | None, clock: Callable[[], float]
    ) -> None:
        self._shape = shape
        self._clock = clock
        self._until = until
        self._out = out
        self.failed: list[str] = []

    @property
    def time_is_over(self) -> bool:
        """What has not begun is skipped."""
        return self._clock() > self._until

    def try_part(self, name: str, part: Part) -> bool:
        """Run it and write what it found; what it raised is written too. Whether it found some."""
        found: dict[str, Any]
        if self.time_is_over:
            found = {"skipped": "no time was left"}
        else:
            try:
                found = part()
            except Exception as error:
                traceback.print_exc()
                self.failed.append(name)
                found = {"error": f"{type(error).__name__}: {error}"}
        emit(
            {
                "benchmark": "gpu_ttft", "command": command_line(), "seed": 0,
                "shape": self._shape, "part": name, **found, **surroundings("transformers"),
            },
            self._out,
        )  # fmt: skip
        sys.stdout.flush()
        return "error" not in found and "skipped" not in found

    def all_of(
        self, shape: Shape, device: torch.device, *, gate: bool = True, warm: bool = False
    ) -> bool:
        """The gate, if it is asked for, then every length of prompt. Whether the gate has passed.

        `warm`: only parts that run kernels of ours other than those before them.
        """
        if self.time_is_over:
            self.try_part(f"prompts of {shape.prompts}", dict)
            return False
        with World(shape, device) as world, tempfile.TemporaryDirectory() as folder:
            if gate and not self.try_part("gate", lambda: checked(world)):
                return False
            for tokens in shape.prompts:
                if self.time_is_over:
                    self.try_part(f"prompts of {tokens}", dict)
                    continue
                for name, part in Measures(world, tokens, Path(folder)).parts().items():
                    if not (warm and name.startswith(COMPILE_NOTHING)):
                        self.try_part(name, part)
        return True


def checked(world: World) -> dict[str, Any]:
    """The gate's verdict.

    Raises:
        RuntimeError: reuse is not right here, so that no time of it means anything.
    """
    verdict = run_gate(world.model)
    if not verdict.reuses:
        raise RuntimeError(f"the gate: {'; '.join(verdict.problems)}")
    return {"figures": verdict.figures}


def main(arguments: list[str] | None = None) -> int:
    """Measure; how many parts failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--shape", nargs="+", choices=list(SHAPES), default=["llama-3-8b", "qwen2.5-7b"]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=600.0, help="shared by the shapes")
    parser.add_argument("--warm", action="store_true", help="what compiles kernels, once")
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    runs = {
        name: Run(name, began + given.seconds, given.out, time.monotonic) for name in given.shape
    }
    lengths = max(len(SHAPES[name].prompts) for name in given.shape)
    passed = dict.fromkeys(given.shape, True)
    for number in range(1 if given.warm else lengths):
        for name, run in runs.items():
            prompts = SHAPES[name].prompts[number : number + 1]
            if prompts and passed[name]:
                shape = replace(SHAPES[name], prompts=prompts)
                passed[name] = run.all_of(
                    shape, torch.device(given.device), gate=number == 0, warm=given.warm
                )
    failed = sum(len(run.failed) for run in runs.values())
    return failed


if __name__ == "__main__":
    sys.exit(main())
