"""Hit rates of the tiers and policies on traces, beside FIFO, GDSF and the offline optimum.

    python benchmarks/bench_hitrate.py TRACE... [--out benchmarks/results/bench_hitrate.jsonl]

A trace is whatever `chunkcache hitrate` reads. First LRU is held to a twin of ten lines, access by
access; nothing is measured when they differ. Then, for each trace, with KV of Llama-3-8B's size:

- one tier of 1, 5, 10 and 30 % of the footprint, every passage an access of its own, as simulators
  of single objects count (libCacheSim's figures are compared with these);
- device over memory over disk of 1/5/30, 2/10/100 and 5/20/50 %, by requests, as the service runs:
  25 GB/s from memory, 5 GB/s from disk, 20,000 tokens/s computed; `cost` is the time of loads and
  of computing, of what computing everything takes;
- with --optimum, what no policy could exceed (a linear programme), for one tier by bytes and for
  tiers of 1/5/30 % by cost; there policies give what they evict to the next tier down, movement is
  free, and 0, 4, 16 or 64 requests behind the present one are known;
- which kinds of reuse an infinite cache allows;
- accesses replayed in a second of processor time, also as a share of what the twin of ten lines
  replays, and bytes of memory for each distinct chunk.

Prints tables, then one JSON line for each trace.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import reporting

from chunkcache.evaluate.hitrate import (
    POLICIES,
    SHIPPED,
    Device,
    RecordSizes,
    Replaying,
    TierSpec,
    Trace,
    TraceFacts,
    best_hit_rates,
    compare_reuse,
    measure,
    read_trace,
    replay,
)
from chunkcache.evaluate.hitrate.cascade import CascadeTier, replay_cascade
from chunkcache.evaluate.hitrate.optimum import Intervals, best_placement

SIZES = RecordSizes()
SHARES = (0.01, 0.05, 0.10, 0.30)
CASCADES = ((0.01, 0.05, 0.30), (0.02, 0.10, 1.00), (0.05, 0.20, 0.50))
MEMORY = Device(bytes_per_s=25e9)
DISK = Device(bytes_per_s=5e9)
COMPUTED_TOKENS_PER_S = 20_000
WAITING = (4, 16, 64)  # requests of the queue that the policy is told of


def lru_twin(trace: Trace, capacity_bytes: int) -> int:
    """Hits of an LRU cache, as simply as it can be said."""
    held: OrderedDict[Any, int] = OrderedDict()
    used = hits = 0
    for request in trace:
        for chunk, tokens in request.passages():
            size = SIZES.in_memory(tokens)
            hits += chunk in held
            if chunk not in held and size <= capacity_bytes:
                while used + size > capacity_bytes:
                    used -= held.popitem(last=False)[1]
                held[chunk] = size
                used += size
            if chunk in held:
                held.move_to_end(chunk)
    return hits


def check_twin(trace: Trace, facts: TraceFacts) -> None:
    """Raises `SystemExit` where LRU is not its twin."""
    capacities = [int(share * facts.footprint_bytes) for share in SHARES]
    settings = [Replaying([TierSpec("memory", c)], "lru", POLICIES["lru"]) for c in capacities]
    for capacity, found in zip(capacities, replay(trace.by_access(), SIZES, settings), strict=True):
        if found.hits != (expected := lru_twin(trace, capacity)):
            raise SystemExit(f"LRU of {capacity} bytes: {found.hits} hits, its twin {expected}")


def one_tier(trace: Trace, facts: TraceFacts) -> dict[str, dict[str, Any]]:
    """Object and byte misses of every policy, by share of the footprint."""
    grid = [(policy, share) for policy in POLICIES for share in SHARES]
    settings = [
        Replaying([TierSpec("memory", int(share * facts.footprint_bytes))], p, POLICIES[p])
        for p, share in grid
    ]
    found: dict[str, dict[str, Any]] = {policy: {} for policy in POLICIES}
    for (policy, share), result in zip(
        grid, replay(trace.by_access(), SIZES, settings), strict=True
    ):
        found[policy][f"{share:.0%}"] = {
            "object_miss": round(1 - result.object_hit_rate, 4),
            "byte_miss": round(result.byte_miss_rate, 4),
        }
    return found


def cascade(trace: Trace, facts: TraceFacts) -> list[dict[str, Any]]:
    """Device over memory over disk, the service's policy and LRU."""
    whole = facts.footprint_bytes
    grid = [(policy, shares) for shares in CASCADES for policy in (SHIPPED, "lru")]
    settings = [
        Replaying(
            [
                TierSpec("device", int(device * whole)),
                TierSpec("memory", int(memory * whole), MEMORY),
                TierSpec("disk", int(disk * whole), DISK, durable=True),
            ],
            policy, POLICIES[policy],
        )
        for policy, (device, memory, disk) in grid
    ]  # fmt: skip
    return [
        {
            "shares": shares, "policy": policy, "cost": round(1 - result.time_saved, 4),
            "hit_rate": round(result.hit_rate, 4),
            "hit_rates": {t.name: round(t.hit_tokens / result.tokens, 4) for t in result.tiers},
            "disk_written": round(result.tiers[-1].written_bytes / whole, 3),
        }
        for (policy, shares), result in zip(grid, replay(trace, SIZES, settings), strict=True)
    ]  # fmt: skip


def optimum(trace: Trace, facts: TraceFacts) -> dict[str, float]:
    """Byte misses that no policy stays below, by requests, by share of the footprint."""
    sizes = [int(share * facts.footprint_bytes) for share in SHARES]
    rates = best_hit_rates(trace, SIZES, sizes)
    return {f"{share:.0%}": round(1 - rate, 4) for share, rate in zip(SHARES, rates, strict=True)}


def beside_optimum(trace: Trace) -> dict[str, Any]:
    """Costs of three tiers, of what computing everything takes: the best placement's, policies'."""
    numbers: dict[int | str, int] = {}
    uses = [
        (numbers.setdefault(chunk, len(numbers)), tokens, number)
        for number, request in enumerate(trace)
        for chunk, tokens in request.passages()
    ]
    chunks, tokens, requests = np.array(uses).T
    whole = tokens[np.unique(chunks, return_index=True)[1]].sum()
    rooms = [int(share * whole) for share in CASCADES[0]]
    compute = 1e6 / COMPUTED_TOKENS_PER_S  # microseconds a token, as are the loads
    loads = [0.0, *(1e6 * SIZES.bytes_per_token / d.bytes_per_s for d in (MEMORY, DISK))]
    intervals = Intervals.of(chunks, tokens, requests)
    gains = intervals.size[:, None] * (compute - np.array(loads))
    least = 1 - best_placement(intervals, gains, rooms).saved / (compute * float(tokens.sum()))
    costs: dict[str, float] = {}
    for policy, waiting in [(p, 0) for p in POLICIES] + [(SHIPPED, n) for n in WAITING]:
        tiers = map(CascadeTier, rooms, loads, POLICIES[policy](rooms))
        found = replay_cascade(
            chunks, tokens, requests, list(tiers), compute_cost=compute, look_ahead=waiting,
            shares_popularity=policy == SHIPPED,
        )  # fmt: skip
        costs[f"{policy}, {waiting} waiting" if waiting else policy] = round(found.cost, 4)
    return {"shares": CASCADES[0], "optimum": round(least, 4), "costs": costs}


def speed(trace: Trace, facts: TraceFacts) -> dict[str, Any]:
    """Accesses in a second of processor time, one setting; the same as a share of what the twin
    does just then at 10 % of the footprint, whatever the setting, which other work on the machine
    hardly touches; memory for a distinct chunk.
    """
    found: dict[str, int] = {}
    requests = list(trace)  # reading is not what is measured
    held = Trace(trace.name, lambda: iter(requests))
    began = time.process_time()
    lru_twin(held, int(0.10 * facts.footprint_bytes))
    twin_per_s = facts.accesses / (time.process_time() - began)
    for policy in (SHIPPED, "lru"):
        for share in (0.10, 1.00):
            tier = TierSpec("memory", int(share * facts.footprint_bytes))
            began = time.process_time()
            replay(held, SIZES, [Replaying([tier], policy, POLICIES[policy])])
            seconds = time.process_time() - began
            found[f"{policy} {share:.0%}"] = round(facts.accesses / seconds)
    tracemalloc.start()
    replay(held, SIZES, [Replaying([tier], SHIPPED, POLICIES[SHIPPED])])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "accesses_per_cpu_s": found,
        "of_twin": {name: round(rate / twin_per_s, 3) for name, rate in found.items()},
        "bytes_per_distinct_chunk": round(peak / facts.distinct),
    }


def show(result: dict[str, Any]) -> None:
    """Tables of one trace."""
    facts = result["facts"]
    print(f"\n{result['trace']}: {facts['accesses']} accesses, {facts['distinct']} distinct")
    print(f"{'object miss / byte miss':<26}" + "".join(f"{s:>14.0%}" for s in SHARES))
    for policy, sizes in result["one_tier"].items():
        cells = [f"{c['object_miss']:.3f}/{c['byte_miss']:.3f}" for c in sizes.values()]
        print(f"{policy:<26}" + "".join(f"{cell:>14}" for cell in cells))
    if result["optimum"]:
        misses = "".join(f"{f'/{miss:.3f}':>14}" for miss in result["optimum"].values())
        print(f"{'offline optimum':<26}{misses}")
    print(f"{'device/memory/disk':<26}{'policy':<10}{'cost':>8}{'hits':>8}{'written':>9}")
    for row in result["cascade"]:
        shares = "/".join(f"{share:.0%}" for share in row["shares"])
        figures = f"{row['cost']:>8.3f}{row['hit_rate']:>8.3f}{row['disk_written']:>9.2f}"
        print(f"{shares:<26}{row['policy']:<10}{figures}")
    if result["beside_optimum"]:
        least = result["beside_optimum"]["optimum"]
        print(f"{'three tiers, optimum':<26}{least:>8.3f}")
        for policy, cost in result["beside_optimum"]["costs"].items():
            print(f"{policy:<26}{cost:>8.3f}{cost / least - 1:>+8.1%}")
    for kind, (accesses, tokens) in result["reuse"].items():
        print(f"{kind:<26}{accesses:>8.4f} of accesses {tokens:>8.4f} of tokens")
    print(result["speed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--optimum", action="store_true", help="needs highspy; minutes")
    arguments = parser.parse_args()
    for path in arguments.traces:
        trace = read_trace(path)
        facts = measure(trace, SIZES)
        check_twin(trace, facts)
        result = {
            "benchmark": "bench_hitrate", "command": reporting.command_line(), "seed": 0,
            **reporting.surroundings("numpy"),
            "trace": trace.name, "bytes_per_token": SIZES.bytes_per_token,
            "facts": {**asdict(facts), "highest_hit_rate": round(facts.highest_hit_rate, 4)},
            "reuse": asdict(compare_reuse(trace)),
            "one_tier": one_tier(trace, facts),
            "cascade": cascade(trace, facts),
            "optimum": optimum(trace, facts) if arguments.optimum else None,
            "beside_optimum": beside_optimum(trace) if arguments.optimum else None,
            "speed": speed(trace, facts),
        }  # fmt: skip
        show(result)
        reporting.emit(result, arguments.out)


if __name__ == "__main__":
    main()
