"""Time to first token when chunk KV comes from memory, and from LMDB in and out of the page cache.

    python benchmarks/bench_load.py [--out benchmarks/results/bench_load.jsonl]

Ten passages of 512 tokens before a question, in three arms in turns, medians of the turns:

- `memory`   every chunk is on the device
- `lmdb`     no chunk is; the store's file is in the page cache
- `dropped`  no chunk is; the file was dropped from the page cache (`fetched`: bytes that the kernel
             really had to fetch, ÷ the KV's)

`waited` is what the pass waited for layers, `overlap` the share of the time it took to bring all
layers up in which the pass was not waiting for them. The trace is of the last `dropped` turn: when
each layer was asked for by the first pass over it, and when all chunks had it.

Before anything is measured, an answer from LMDB is held to the same answer from memory, bit by bit.
Then, in the same run: bytes a second from LMDB beside the best plain read of as many bytes of the
same file, and from memory to pages that can be attended beside one copy of the same bytes.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chunkcache  # noqa: F401 - before torch: it tells OpenMP's threads not to spin

# isort: split
import torch
from page_cache import bytes_fetched, drop
from passages import Passages
from reporting import command_line, emit, surroundings

from chunkcache import ChunkCache
from chunkcache.chunk import KVGeometry
from chunkcache.config import Settings, load_settings
from chunkcache.cores import one_core
from chunkcache.engine.attention import StepRows
from chunkcache.engine.chunk_pages import ChunkPages
from chunkcache.engine.loader import end_of_task
from chunkcache.engine.outcome import Outcome
from chunkcache.engine.resident import Resident
from chunkcache.protocol import AnswerFinished, AnswerRequest, ChunkCacheOptions, Message, Sampling
from chunkcache.service.asking import Measure
from chunkcache.store import store_path
from chunkcache.store.reader import DTYPES, kv_shape

COUNT, TOKENS = 10, 512
BUDGETS = (0.0, 0.15)
ARMS = ("memory", "lmdb", "dropped")
BLOCK_BYTES = 4 << 20
QUESTION = "Which of these functions would you use, and what does it return?"


class Trace:
    """When each layer was first asked for, and when all chunks had it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin at 0 now."""
        self.began = time.perf_counter()
        self.asked: dict[int, float] = {}
        self.there: dict[int, float] = {}

    def now_ms(self) -> float:
        """Milliseconds since it began."""
        return (time.perf_counter() - self.began) * 1e3

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen to loaders and passes."""
        write, wait_for = ChunkPages.write, StepRows.wait_for

        def written(of: ChunkPages, resident: Resident, first: int, kv: torch.Tensor) -> None:
            write(of, resident, first, kv)
            self.there.update(dict.fromkeys(range(first, first + len(kv)), self.now_ms()))

        def waited(of: StepRows, layer: int) -> int:
            if any(group.kv.is_arriving for group in of.groups):
                self.asked.setdefault(layer, self.now_ms())
            return wait_for(of, layer)

        ChunkPages.write, StepRows.wait_for = written, waited  # type: ignore[method-assign]
        try:
            yield
        finally:
            ChunkPages.write, StepRows.wait_for = write, wait_for  # type: ignore[method-assign]


class Bench:
    """One service, its ten passages, and ways to ask about them."""

    def __init__(self, cache: ChunkCache, documents: Sequence[Any], seed: int) -> None:
        self.cache = cache
        self.file = store_path(cache.settings) / "data.mdb"
        self._documents = list(documents)
        self._draw = random.Random(seed)
        self._prepare = {"memory": lambda: None, "lmdb": self.forget, "dropped": self.forget_all}
        self.trace = Trace()
        model = cache.runtime.model
        self.kv_bytes = COUNT * TOKENS * model.geometry.bytes_per_token

    def forget(self) -> None:
        """No chunk is in memory."""
        self.cache.runtime.engine.chunks.clear()

    def forget_all(self) -> None:
        """Nor in the page cache."""
        self.forget()
        drop(self.file)

    def ask(self, budget: float, *, shuffled: bool = True) -> tuple[AnswerFinished, Outcome]:
        """One answer of one token, sharing no prefix with any other."""
        documents = list(self._documents)
        if shuffled:
            self._draw.shuffle(documents)
        request = AnswerRequest(
            messages=[Message(role="user", content=QUESTION)], documents=documents,
            sampling=Sampling(max_tokens=1), options=ChunkCacheOptions(budget=budget),
        )  # fmt: skip
        measure = Measure(takes_no_prefix=True, leaves_no_prefix=True)
        handle = self.cache.start(request, measure=measure)
        last = [event for event in handle.events() if isinstance(event, AnswerFinished)][-1]
        assert handle.outcome is not None
        return last, handle.outcome

    def turn(self, arm: str, budget: float) -> dict[str, float]:
        """Ask once in an arm; milliseconds."""
        self._prepare[arm]()
        fetched = -bytes_fetched()
        self.trace.clear()
        finished, _ = self.ask(budget)
        report, fetched = finished.report, fetched + bytes_fetched()
        tiers = {span.tier for span in report.spans if span.kind == "chunk"}
        assert tiers == {"host" if arm == "memory" else "disk"}, tiers
        times = report.timings
        found = {
            "ttft_ms": times.ttft_ms, "load_ms": times.load_ms, "probe_ms": times.probe_ms,
            "wait_ms": times.wait_ms, "compute_ms": times.compute_ms,
            "planned_ratio": (times.planned_ms or 0.0)
            / (times.load_ms + times.probe_ms + times.wait_ms + times.compute_ms),
        }  # fmt: skip
        if arm != "memory":
            up_ms = max(self.trace.there.values())
            found |= {
                "up_ms": up_ms, "overlap": 1 - min(1.0, times.wait_ms / up_ms),
                "fetched": fetched / self.kv_bytes,
            }  # fmt: skip
        return found

    def differs(self) -> bool:
        """Whether an answer from LMDB is another than the same from memory."""
        answers = []
        for prepare in (self.forget_all, lambda: None):
            prepare()
            answers.append(self.ask(0.15, shuffled=False)[1].first_logits)
        return not torch.equal(*answers)

    # ------------------------------------------------------------ bytes a second

    def rates(self) -> dict[str, float]:
        """GB/s: LMDB and plain reads of its file, cold and warm; to pages, and a copy."""
        geometry = self.cache.runtime.model.geometry
        keys = [resident.key for resident in self.cache.runtime.engine.chunks._residents.values()]
        disk = self.cache.runtime.store.tiers[-1]
        shape = torch.Size(kv_shape(geometry, TOKENS))
        outs = [torch.zeros(shape.numel(), dtype=DTYPES[geometry.dtype]) for _ in "ab"]

        def read(thread: int) -> int:
            count = 0
            for reader in disk.open_many(keys[thread::2]):  # type: ignore[attr-defined]
                with reader or sys.exit("a record has gone"):
                    for first, last in tasks_of(geometry, reader.num_tokens):
                        of = torch.Size((last - first, *kv_shape(geometry, reader.num_tokens)[1:]))
                        reader.read_layers(first, last, outs[thread][: of.numel()].view(of))
                    count += reader.num_tokens * geometry.bytes_per_token
            return count

        def plain(thread: int, threads: int) -> int:
            into, count = bytearray(BLOCK_BYTES), 0
            with self.file.open("rb", buffering=0) as file:
                for at in range(thread * BLOCK_BYTES, self.kv_bytes, threads * BLOCK_BYTES):
                    count += os.preadv(file.fileno(), [into], at)
            return count

        found: dict[str, float] = {}
        for name, prepare in (("cold", lambda: drop(self.file)), ("warm", lambda: None)):
            for threads in (1, 2):
                prepare()
                rate = _rate([lambda t=t, n=threads: plain(t, n) for t in range(threads)])  # type: ignore[misc]
                found[f"plain {name}"] = max(found.get(f"plain {name}", 0.0), rate)
            prepare()
            found[f"lmdb {name}"] = _rate([lambda t=t: read(t) for t in range(2)])  # type: ignore[misc]
        return found | self._to_pages()

    def _to_pages(self) -> dict[str, float]:
        """One thread, as many layers at a time as the loader brings up."""
        chunks, geometry = self.cache.runtime.engine.chunks, self.cache.runtime.model.geometry
        resident = next(iter(chunks._residents.values()))
        kv = torch.randn(kv_shape(geometry, resident.num_tokens)).to(DTYPES[geometry.dtype])
        copy = torch.zeros_like(kv)

        def place() -> int:
            for first, last in tasks_of(geometry, resident.num_tokens):
                chunks.write(resident, first, kv[first:last])
            return kv.nbytes

        with one_core():
            found = {
                "copy": _rate([lambda: copy.copy_(kv).nbytes]), "to pages": _rate([place]),
            }  # fmt: skip
        chunks.clear()  # it holds other numbers now
        return found


def tasks_of(geometry: KVGeometry, tokens: int) -> list[tuple[int, int]]:
    """The layers that a loader's thread brings up at a time: first, and the one behind the last."""
    layers, tasks = geometry.num_layers, [(0, 0)]
    while (first := tasks[-1][1]) < layers:
        tasks.append(
            (first, end_of_task(first, tokens * geometry.bytes_per_token // layers, layers))
        )
    return tasks[1:]


def _rate(actions: Sequence[Callable[[], int]]) -> float:
    """GB/s of actions that run together and say how many bytes they moved."""
    with ThreadPoolExecutor(len(actions)) as executor:
        began = time.perf_counter()
        moved = sum(done.result() for done in [executor.submit(action) for action in actions])
        return moved / (time.perf_counter() - began) / 1e9


def _medians(samples: list[dict[str, float]]) -> dict[str, float]:
    names = samples[0]
    return {n: round(statistics.median(s[n] for s in samples), 3) for n in names}


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """All arms in turns, then rates; medians, and ratios of the same turn's."""
    turns: dict[tuple[float, str], list[dict[str, float]]] = {}
    for number in range(repeats + 1):
        for budget in BUDGETS:
            for arm in ARMS:
                found = bench.turn(arm, budget)
                if number:  # the first turn only warms up
                    turns.setdefault((budget, arm), []).append(found)
    trace = {
        "asked_ms": [round(bench.trace.asked.get(i, 0.0), 1) for i in sorted(bench.trace.there)],
        "there_ms": [round(bench.trace.there[i], 1) for i in sorted(bench.trace.there)],
    }
    arms = {}
    for (budget, arm), samples in turns.items():
        beside = [s["ttft_ms"] for s in turns[budget, "memory"]]
        ratio = statistics.median(s["ttft_ms"] / b for s, b in zip(samples, beside, strict=True))
        arms[f"{arm} {budget:g}"] = {**_medians(samples), "of_memory": round(ratio, 3)}
    rates = []
    for _ in range(repeats):
        bench.forget()
        bench.ask(0.0)
        rates.append(bench.rates())
    gb_per_s = _medians(rates)
    gb_per_s["lmdb_of_plain_cold"] = _ratio(rates, "lmdb cold", "plain cold")
    gb_per_s["lmdb_of_plain_warm"] = _ratio(rates, "lmdb warm", "plain warm")
    gb_per_s["pages_of_copy"] = _ratio(rates, "to pages", "copy")
    return {"arms": arms, "gb_per_s": gb_per_s, "trace": trace}


def _ratio(rates: list[dict[str, float]], name: str, other: str) -> float:
    return round(statistics.median(r[name] / r[other] for r in rates), 3)


def _print(dtype: str, found: dict[str, Any]) -> None:
    names = ("ttft_ms", "of_memory", "load_ms", "wait_ms", "up_ms", "overlap", "fetched")
    print(f"{dtype:<14}" + "".join(f"{name:>11}" for name in names))
    for arm, row in found["arms"].items():
        print(f"{arm:<14}" + "".join(f"{row.get(name, float('nan')):>11.2f}" for name in names))
    print("GB/s " + ", ".join(f"{name} {rate:.2f}" for name, rate in found["gb_per_s"].items()))


def main() -> int:
    """Check, measure, print. Returns: the exit code, 1 when the twins differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    parser.add_argument("--repeats", type=int, default=5, help="turns measured, at least 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--folder", type=Path, help="where the stores are made")
    given = parser.parse_args()
    if given.repeats < 5:
        parser.error(f"--repeats: got {given.repeats}, must be at least 5. Hint: leave it out")
    rows: dict[str, Any] = {}
    for dtype in given.dtypes:
        with tempfile.TemporaryDirectory(dir=given.folder) as home:
            settings = _settings(Path(home), dtype)
            documents = Passages(settings, "squad", TOKENS, COUNT).documents
            with ChunkCache(settings) as cache:
                bench = Bench(cache, documents, given.seed)
                bench.ask(0.15)
                cache.runtime.store.flush()
                if bench.differs():
                    print("not measured: an answer from LMDB is another one", file=sys.stderr)
                    return 1
                with bench.trace.watching():
                    rows[dtype] = measure(bench, given.repeats)
                name = cache.runtime.model.name
        _print(dtype, rows[dtype])
    result = {
        "benchmark": "load", "command": command_line(), "seed": given.seed, "model": name,
        "passages": COUNT, "tokens": TOKENS, **surroundings("lmdb", "xxhash"), "rows": rows,
    }  # fmt: skip
    emit(result, given.out)
    return 0


def _settings(home: Path, dtype: str) -> Settings:
    return load_settings(
        home=home,
        model={"dtype": dtype},
        retrieval={"chunk_tokens": TOKENS, "match_messages": False},
        store={"host_capacity_bytes": 3 * 2**30},
    )


if __name__ == "__main__":
    sys.exit(main())
