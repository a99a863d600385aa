"""How many passage tokens an exact prefix serves, by the order passages stand in: a real trace.

    python benchmarks/bench_order.py [--capacity-tokens 0 2000000 200000]

Requests of RAGPulse (arXiv 2511.12979; a week of a campus question service) are put through a
prefix cache of whole passages, evicting the least recently used. In the trace hardly two requests
have the same system prompt, and then no order shares anything (`own heads`); in a service like ours
the head is one and fixed (`one head`). Orders:

- `relevance`       as the trace has them, which is as the retriever ranked them
- `sorted`          by id: the same set always has the same order
- `cache_friendly`  ours (`chunkcache/service/order.py`): what is known already comes first
- `reuse`           not an order: passages seen before, wherever they stood, as chunk KV serves them

The trace (`traces/ragpulse_all.npz`) is looked for in $CHUNKCACHE_DATA, then ../shared/data;
without it nothing is measured and the exit code is 0.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from reporting import command_line, emit, surroundings

from chunkcache.service.order import OrderBook, RankedPassage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SYSTEM, PASSAGE = 0, 1  # kinds of the trace


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """Its system prompt, and its passages as ranked."""

    head: bytes
    passages: tuple[RankedPassage, ...]


class PrefixTree:
    """Which prefixes are held, in passages; 0 tokens of capacity: all that ever were."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity = capacity_tokens
        self._held: OrderedDict[tuple[bytes | int, bytes], tuple[int, int]] = OrderedDict()
        self._nodes = itertools.count()
        self._tokens = 0

    def serve(self, root: bytes, passages: Sequence[RankedPassage]) -> int:
        """Tokens of the longest held prefix; afterwards all of it is held."""
        node: bytes | int = root
        hit, missed, path = 0, False, []
        for passage in passages:
            edge = (node, passage.digest)
            path.append(edge)
            missed = missed or edge not in self._held
            if missed:
                self._held[edge] = (next(self._nodes), passage.num_tokens)
                self._tokens += passage.num_tokens
            else:
                hit += passage.num_tokens
            node = self._held[edge][0]
        for edge in reversed(path):  # a parent is never older than its child
            self._held.move_to_end(edge)
        while self._capacity and self._tokens > self._capacity:
            self._tokens -= self._held.popitem(last=False)[1][1]
        return hit


def trace_file() -> Path | None:
    """Where the trace is, if anywhere."""
    here = Path(__file__).resolve().parent.parent
    for folder in (os.environ.get("CHUNKCACHE_DATA"), here.parent / "shared" / "data"):
        if folder and (path := Path(folder) / "traces" / "ragpulse_all.npz").is_file():
            return path
    return None


def read_trace(path: Path, *, one_head: bool) -> list[TraceRequest]:
    """The requests with passages, in time order."""
    with np.load(path) as data:
        rows = zip(*(data[n].tolist() for n in ("req", "kind", "obj", "size_tok")), strict=True)
    heads: dict[int, list[int]] = {}
    passages: dict[int, list[RankedPassage]] = {}
    for request, kind, thing, tokens in rows:
        if kind == SYSTEM:
            heads.setdefault(request, []).append(thing)
        elif kind == PASSAGE:
            passages.setdefault(request, []).append(RankedPassage(str(thing).encode(), tokens))
    return [
        TraceRequest(b"" if one_head else repr(heads.get(request, [])).encode(), tuple(found))
        for request, found in sorted(passages.items())
    ]


def share_served(
    requests: list[TraceRequest],
    capacity: int,
    order: Callable[[TraceRequest], list[RankedPassage]],
    after: Callable[[TraceRequest, list[RankedPassage]], None] = lambda request, passages: None,
) -> float:
    """Share of passage tokens that an exact prefix serves."""
    tree = PrefixTree(capacity)
    hits = total = 0
    for request in requests:
        passages = order(request)
        hits += tree.serve(request.head, passages)
        total += sum(p.num_tokens for p in passages)
        after(request, passages)
    return hits / total


def share_reused(requests: list[TraceRequest]) -> float:
    """Share of passage tokens seen before anywhere."""
    seen: set[bytes] = set()
    hits = total = 0
    for request in requests:
        for passage in request.passages:
            hits += passage.num_tokens * (passage.digest in seen)
            total += passage.num_tokens
            seen.add(passage.digest)
    return hits / total


def compare_orders(requests: list[TraceRequest], capacity: int) -> dict[str, float]:
    """Share of passage tokens that an exact prefix serves, per order; and what ours takes."""
    book = OrderBook()
    began = time.perf_counter()
    friendly = share_served(
        requests, capacity,
        lambda r: [r.passages[i] for i in book.arrange(r.head, r.passages)],
        lambda r, passages: book.remember(r.head, [p.digest for p in passages]),
    )  # fmt: skip
    spent_us = (time.perf_counter() - began) / len(requests) * 1e6
    ranked = share_served(requests, capacity, lambda r: list(r.passages))
    by_id = share_served(
        requests, capacity, lambda r: sorted(r.passages, key=lambda p: p.digest)
    )  # fmt: skip
    return {
        "relevance": round(ranked, 4), "sorted": round(by_id, 4),
        "cache_friendly": round(friendly, 4), "order_us": round(spent_us, 1),
    }  # fmt: skip


def main() -> None:
    """Replay, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--capacity-tokens", nargs="+", type=int, default=[0, 2_000_000, 200_000],
                        help="of the prefix cache; 0: no limit")  # fmt: skip
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    path = trace_file()
    if path is None:
        print("not measured: no trace in $CHUNKCACHE_DATA or ../shared/data")
        return
    rows = []
    for one_head, capacity in itertools.product((True, False), given.capacity_tokens):
        requests = read_trace(path, one_head=one_head)
        rows.append(
            {"heads": "one head" if one_head else "own heads", "capacity_tokens": capacity,
             **compare_orders(requests, capacity)}
        )  # fmt: skip
        print(rows[-1], flush=True)
    reuse = share_reused(requests)
    print(f"seen before, anywhere: {reuse:.4f} of {len(requests)} requests' passage tokens")
    emit(
        {
            "benchmark": "order", "command": command_line(), "seed": 0, "model": None,
            "trace": "RAGPulse", "requests": len(requests), "reuse": reuse, "rows": rows,
            **surroundings("chunkcache"),
        },
        given.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
