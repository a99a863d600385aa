"""Sixteen requests at once over shared passages: memory, and the time of a decode step.

    python benchmarks/bench_sharing.py [--out benchmarks/results/bench_sharing.jsonl]

Each cell starts the arms anew (this checkout and an earlier commit, `arms.py`), warms the passages
it needs, and runs its requests in threads of one `ChunkCache` per arm, arms in turns:

- `same`      every request has the same ten passages of 512 tokens in the same order
- `shuffled`  the same ten, each request in an order of its own
- `zipf`      ten drawn for each request from 200, Zipf(1.0)

A step's time is the median gap between two pieces of one answer's text while all sixteen decode;
answers are cancelled when each has `--pieces` of them, and asked for again when they end before.
Memory is the process's peak during the first round, when nothing is left over from another, above
what it was when the model was loaded: KV on the device, records in the host tier, and the largest
step's activations. What the requests alone added to the warm cache is beside it; warming up has
used some of the device's KV before, which then does not count.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from arms import Arm, Arms, add_arguments, commit_of, model_name, open_arms
from bench_decode import spread
from passages import Asked, zipf_draw
from reporting import command_line, emit, surroundings

CELLS = ("same", "shuffled", "zipf")
PASSAGES = 10
ZIPF_POOL = 200
MIN_GAPS = 8  # of each answer; fewer are no measurement
QUESTION = "Repeat document number {} word for word, then the one after it, and so on to the last."


def drawn(cell: str, seed: int) -> Iterator[list[int]]:
    """The passages of one request after another, by number, in prompt order."""
    draw = random.Random(f"{seed}-{cell}")
    while True:
        if cell == "zipf":
            yield zipf_draw(draw, ZIPF_POOL, PASSAGES)
            continue
        order = list(range(PASSAGES))
        if cell == "shuffled":
            draw.shuffle(order)
        yield order


def lasting(arms: Arms, cell: str, given: argparse.Namespace) -> tuple[list[Asked], int]:
    """The first prompts drawn whose answers do not end before all decode, and how many did.

    Each is asked alone of the first arm. Which passages they have is all that is chosen by it.
    """
    arm, ended = next(iter(arms.by_name.values())), 0
    asked: list[Asked] = []
    warm: set[int] = set()
    for number, numbers in enumerate(drawn(cell, given.seed)):
        arms.warm([one for one in numbers if one not in warm])
        warm.update(numbers)
        one = arms.passages.asked(QUESTION.format(number % PASSAGES + 1), numbers)
        got = arms.ask(arm, one, given.lasting_tokens, budget=given.budget)
        if got["tokens"] < given.lasting_tokens:
            ended += 1
            continue
        asked.append(one)
        if len(asked) == given.requests:
            return asked, ended
    raise AssertionError("draws never end")


def together(arms: Arms, arm: Arm, asked: list[Asked], given: argparse.Namespace) -> dict[str, Any]:
    """One round of one arm.

    Raises:
        RuntimeError: an answer ended before all of them had decoded together for long enough.
    """
    told = {
        "do": "together",
        "pieces": given.pieces,
        "requests": [a.told(given.max_tokens, budget=given.budget) for a in asked],
    }
    with arm.turn():
        got = arm.tell(told)
    fewest = min((len(gaps) for gaps in got["gaps_ms"]), default=0)
    if fewest < min(MIN_GAPS, given.pieces - 1):
        raise RuntimeError(
            f"arm {arm.name}: one of {len(asked)} answers ended after {fewest} steps beside all "
            "others. Hint: a larger --max-tokens, or another --seed."
        )
    got["step_ms"] = statistics.median(gap for gaps in got["gaps_ms"] for gap in gaps)
    return got


def measure(cell: str, given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of one cell, and facts about its arms."""
    pool = ZIPF_POOL if cell == "zipf" else PASSAGES
    engine = {"kv_capacity_bytes": given.kv_capacity_mib * 2**20, "max_running": given.requests}
    with open_arms(given, pool, engine=engine) as arms:
        asked, ended = lasting(arms, cell, given)
        needed = {document.text for one in asked for document in one.documents}
        steps: dict[str, list[float]] = {name: [] for name in arms.by_name}
        memory = {}
        for turn in range(given.rounds + 1):
            for arm in arms.in_turn(turn):
                got = together(arms, arm, asked, given)
                if turn:
                    steps[arm.name].append(got["step_ms"])
                else:  # it only warms up, but is the only one whose memory nobody used before
                    memory[arm.name] = memory_of(arm, got)
        row = {
            "cell": cell, "requests": given.requests, "passages": PASSAGES,
            "different_passages": len(needed), "drawn_but_ended_early": ended,
            "prompt_tokens": spread([len(a.token_ids) for a in asked]),
            "arms": {name: {"step_ms": spread(steps[name]), **memory[name]} for name in steps},
        }  # fmt: skip
        if {"ours", "baseline"} <= set(steps):
            both = zip(steps["ours"], steps["baseline"], strict=True)
            row["step_to_baseline"] = spread([a / b for a, b in both])
            added = [memory[name]["added_bytes"] for name in ("ours", "baseline")]
            row["memory_to_baseline"] = round(added[0] / added[1], 4)
        return row, arms.facts()


def memory_of(arm: Arm, got: dict[str, Any]) -> dict[str, Any]:
    """Bytes, of the process and as its own metrics say."""
    loaded = arm.loaded["memory"]["rss_bytes"]
    return {
        "loaded_bytes": loaded,
        "warm_bytes": got["rss_before_bytes"],
        "peak_bytes": got["peak_bytes"],
        "added_bytes": got["peak_bytes"] - loaded,
        "added_by_requests_bytes": got["peak_bytes"] - got["rss_before_bytes"],
        "gauges": got["gauges"],
    }


def show(row: dict[str, Any]) -> None:
    """One line per arm."""
    print(f"{row['cell']}: {row['requests']} requests, {row['different_passages']} passages, "
          f"{row['prompt_tokens'][0]:.0f} tokens each")  # fmt: skip
    for name, arm in row["arms"].items():
        added, alone = arm["added_bytes"] / 2**20, arm["added_by_requests_bytes"] / 2**20
        print(f"{name:>14}{arm['step_ms'][0]:>9.0f} ms a step{added:>9.0f} MiB above the model, "
              f"{alone:.0f} by requests")  # fmt: skip
    if "step_to_baseline" in row:
        step, added = row["step_to_baseline"][0], row["memory_to_baseline"]
        print(f"{'to baseline':>14}{step:>8.2f}x{added:>16.2f}x", flush=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser, ("ours", "int8", "baseline"))
    parser.set_defaults(arms=["ours", "baseline"], rounds=3)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--pieces", type=int, default=32, help="of every answer, all decoding")
    parser.add_argument("--max-tokens", type=int, default=400, help="room for the first to wait")
    parser.add_argument(
        "--lasting-tokens", type=int, default=64, help="prompts whose answers are shorter are left"
    )
    parser.add_argument("--budget", type=float, default=0.15)
    parser.add_argument("--kv-capacity-mib", type=int, default=6144)
    given = parser.parse_args()
    rows, facts = [], {}
    for cell in given.cells:
        row, facts = measure(cell, given)
        rows.append(row)
        show(row)
    emit(
        {
            "benchmark": "sharing", "command": command_line(), "seed": given.seed,
            "model": model_name(given), "baseline": commit_of(given.baseline),
            "rounds": given.rounds, "budget": given.budget, "pieces": given.pieces, **facts,
            **surroundings("transformers", "chunkcache"), "rows": rows,
        },
        given.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
