"""Decoding: tokens a second and the whole answer's time, one request at a time, engines in turns.

    python benchmarks/bench_decode.py [--vllm-python PATH]

Prompts of 2 and of 8 passages of 512 tokens, drawn anew each round, the same for every arm; no two
prompts begin with the same passage. Arms are in `arms.py`. Those of chunkcache are warm and repair
`--budget` of the reused rows; the others keep no chunks and compute the prompt. Tokens a second:
(tokens - 1) ÷ (end - first piece of text).

Our answers end when the model says so. A round in which one does before `--tokens` tokens is not
counted, and another one is run instead; the other engines are told to go on. Ratios are medians of
the rounds' own. First every arm must read what a passage says.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from arms import NAMES, Arms, add_arguments, commit_of, model_name, open_arms
from passages import Draws
from reporting import command_line, emit, surroundings

COUNTS = (2, 8)
SPARE = 2  # prompts there are for each that is measured
QUESTION = "Repeat the documents word for word, one after the other, and leave nothing out."


def round_of(arms: Arms, turn: int, numbers: list[int], given: argparse.Namespace) -> Any:
    """Every arm's figures for one prompt; the name of an arm whose answer ended early instead."""
    asked, figures = arms.passages.asked(QUESTION, numbers), {}
    for arm in arms.in_turn(turn):
        got = arms.ask(arm, asked, given.tokens, budget=given.budget)
        if got["tokens"] < given.tokens:
            return arm.name
        seconds = (got["end_ms"] - got["first_ms"]) / 1e3
        figures[arm.name] = {
            "tokens_per_s": (got["tokens"] - 1) / seconds,
            "ttft_ms": got["first_ms"],
            "answer_ms": got["end_ms"],
        }
    return {name: figures[name] for name in arms.by_name}


def measure(arms: Arms, draws: Draws, count: int, given: argparse.Namespace) -> dict[str, Any]:
    """Rounds over prompts of `count` passages.

    Raises:
        RuntimeError: too many answers ended early.
    """
    rounds: list[dict[str, Any]] = []
    ended: list[str] = []
    while len(rounds) <= given.rounds:
        figures = round_of(arms, len(rounds) + len(ended), draws.next(count), given)
        if isinstance(figures, str):
            ended.append(figures)
        else:
            rounds.append(figures)
    prompt = len(arms.passages.asked(QUESTION, range(count)).token_ids)
    return {
        "passages": count, "prompt_tokens": prompt, "ended_early": ended,
        "arms": summary(rounds[1:]),  # the first one only warms up
    }  # fmt: skip


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians with the extremes, and each arm's ratios to the baseline and to each vLLM."""
    arms = {}
    for name in rounds[0]:
        arms[name] = {
            figure: spread([r[name][figure] for r in rounds]) for figure in rounds[0][name]
        }
        for other in rounds[0]:
            if other != name and other.startswith(("baseline", "vllm")):
                arms[name][f"to {other}"] = {
                    figure: spread([r[name][figure] / r[other][figure] for r in rounds])
                    for figure in rounds[0][name]
                }
    return arms


def spread(values: list[float]) -> list[float]:
    """Median, least, most."""
    return [round(v, 4) for v in (statistics.median(values), min(values), max(values))]


def show(row: dict[str, Any]) -> None:
    """One table of a prompt length."""
    print(f"{row['passages']} passages, about {row['prompt_tokens']} tokens")
    others = [n for n in row["arms"] if n.startswith(("baseline", "vllm"))]
    print(f"{'':>14}{'tokens/s':>10}{'TTFT ms':>9}{'answer ms':>11}"
          + "".join(f"{'tok/s to ' + n:>22}{'answer':>8}" for n in others))  # fmt: skip
    for name, arm in row["arms"].items():
        line = f"{name:>14}{arm['tokens_per_s'][0]:>10.1f}{arm['ttft_ms'][0]:>9.0f}"
        line += f"{arm['answer_ms'][0]:>11.0f}"
        for other in others:
            ratio = arm.get(f"to {other}", {"tokens_per_s": [1.0], "answer_ms": [1.0]})
            line += f"{ratio['tokens_per_s'][0]:>21.2f}x{ratio['answer_ms'][0]:>7.2f}x"
        print(line, flush=True)


def main() -> int:
    """Check, warm, measure, print. Returns the exit code: 1 when an arm reads another prompt."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser, NAMES)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--budget", type=float, default=0.15)
    parser.add_argument("--passages", type=int, nargs="+", default=list(COUNTS))
    given = parser.parse_args()
    rows, pool = [], max(*given.passages, SPARE * (given.rounds + 1) * len(given.passages))
    draws = Draws(given.seed, pool)
    with open_arms(given, pool) as arms:
        if (problem := arms.check()) is not None:
            print(f"not measured: {problem}", file=sys.stderr)
            return 1
        arms.warm(range(pool))
        for count in given.passages:
            rows.append(measure(arms, draws, count, given))
            show(rows[-1])
        facts = arms.facts()
    emit(
        {
            "benchmark": "decode", "command": command_line(), "seed": given.seed,
            "model": model_name(given), "baseline": commit_of(given.baseline),
            "rounds": given.rounds, "tokens": given.tokens, "budget": given.budget, **facts,
            **surroundings("transformers", "chunkcache"), "rows": rows,
        },
        given.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
