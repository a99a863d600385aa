"""Time to first token against an earlier commit, transformers and vLLM, in turns.

    python benchmarks/bench_against.py [--vllm-python PATH]

Ten passages of 512 tokens that chunkcache holds warm, with no row repaired and with 15 %; and five
passages computed in full. Passages are drawn anew each round, the same for every arm, and no two
prompts begin with the same one, so that vLLM's prefix cache finds the head at most. Arms are in
`arms.py`; ratios are medians of the rounds' own. First every arm must read what a passage says.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from arms import NAMES, Arms, add_arguments, commit_of, model_name, open_arms
from bench_decode import spread
from passages import Draws
from reporting import command_line, emit, surroundings

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "warm@0": (10, {"budget": 0.0}),
    "warm@0.15": (10, {"budget": 0.15}),
    "full": (5, {"mode": "full"}),
}
POOL = 20  # passages, or as many as there are prompts
QUESTION = "What do these documents have in common?"


def measure(arms: Arms, draws: Draws, case: str, given: argparse.Namespace) -> dict[str, Any]:
    """TTFT of every arm over `rounds` prompts; one before them only warms up."""
    count, options = CASES[case]
    samples: dict[str, list[float]] = {name: [] for name in arms.by_name}
    prompts, recomputed = [], {}
    for turn in range(given.rounds + 1):
        asked = arms.passages.asked(QUESTION, draws.next(count))
        for arm in arms.in_turn(turn):
            got = arms.ask(arm, asked, 1, **options)
            if turn:
                samples[arm.name].append(got["first_ms"])
            if "recomputed_tokens" in got:
                recomputed[arm.name] = got["recomputed_tokens"]
            if "budget" in options:  # a chunk that was computed now would be timed as reused
                assert "None" not in got.get("tiers", ()), f"{arm.name} is not warm: {got['tiers']}"
        prompts.append(len(asked.token_ids))
    first = next(iter(samples))
    return {
        "case": case, "passages": count, "prompt_tokens": prompts[-1],
        "recomputed_tokens": recomputed,
        "arms": {
            name: {
                "ttft_ms": spread(values),
                # how much longer than the first arm, which is ours
                f"of {first}": spread([a / b for a, b in zip(values, samples[first], strict=True)]),
            }
            for name, values in samples.items()
        },
    }  # fmt: skip


def show(row: dict[str, Any]) -> None:
    """One line per arm."""
    print(f"{row['case']}: {row['passages']} passages, {row['prompt_tokens']} tokens")
    for name, arm in row["arms"].items():
        ttft, (of, ratio) = arm["ttft_ms"], list(arm.items())[1]
        print(f"{name:>14}{ttft[0]:>9.0f} ms ({ttft[1]:.0f}-{ttft[2]:.0f}) {ratio[0]:>6.2f} {of}",
              flush=True)  # fmt: skip


def main() -> int:
    """Check, warm, measure, print. Returns the exit code: 1 when an arm reads another prompt."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser, NAMES)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    given = parser.parse_args()
    rows, pool = [], max(POOL, (given.rounds + 1) * len(given.cases))
    draws = Draws(given.seed, pool)
    with open_arms(given, pool) as arms:
        if (problem := arms.check()) is not None:
            print(f"not measured: {problem}", file=sys.stderr)
            return 1
        arms.warm(range(pool))
        for case in given.cases:
            rows.append(measure(arms, draws, case, given))
            show(rows[-1])
        facts = arms.facts()
    emit(
        {
            "benchmark": "against", "command": command_line(), "seed": given.seed,
            "model": model_name(given), "baseline": commit_of(given.baseline),
            "rounds": given.rounds, **facts,
            **surroundings("transformers", "chunkcache"), "rows": rows,
        },
        given.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
