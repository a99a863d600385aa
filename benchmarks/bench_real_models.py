"""Real weights of several families: the gate's figures, time to first token, and drift.

    python benchmarks/bench_real_models.py FOLDER... [--parts gate ttft drift] --out FILE

One row a folder; a run may measure some of the parts, and docs/reference/models.md shows the last
row of each model and part, with its commit. Parts:

- `gate`    what `chunkcache doctor` shows: the twin's figures, and the model's own in its own type
- `ttft`    full prefill against warm chunks with a budget of 0 and of 0.15, in turns in one run,
            `--passages` of `--tokens` each; medians, ratios turn by turn
- `drift`   mean KL to full recompute over an answer, without repair and with 15 % of the rows, on
            questions of SQuAD (`bench_quality.py` says where they are looked for); can be stopped
            and resumed, for its lines are kept in `--work`
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_quality import SUFFIX, data_folder, halves, question_settings, with_passages
from bench_ttft import passages, request, ttft_ms
from reporting import command_line, emit, surroundings

from chunkcache import ChunkCache
from chunkcache.evaluate.quality import (
    Evaluation,
    evaluate,
    parse_arms,
    read_questions,
    summarise,
)

PARTS = ("gate", "ttft", "drift")
BUDGETS = (0.0, 0.15)
ARMS = ("none", "question@0.15")
SHOWN = ("reference", "repair_all", "moved", "unrepaired", "own_reference", "own_repair_all",
         "own_noise")  # fmt: skip
POOL = 7  # passages that turns draw from
FEWEST_TURNS = 3


def facts_of(cache: ChunkCache) -> dict[str, Any]:
    """What the model is."""
    model = cache.runtime.model
    windows = {facts.window for facts in model.facts.layers} - {None}
    return {
        "model": Path(cache.settings.model.name).name,
        "type": model.config.model_type,
        "parameters": sum(p.numel() for p in model.hf.parameters()),
        "dtype": model.geometry.dtype,
        "layers": model.geometry.num_layers,
        "windows": sorted(windows),
        "kv_bytes_per_token": model.geometry.bytes_per_token,
        "runner": type(model.runner).__name__,
        "policy": cache.settings.repair.policy,
    }


def gate_figures(cache: ChunkCache) -> dict[str, Any]:
    """Of the gate that the model passed, or did not, when it was loaded."""
    verdict = cache.runtime.verdict
    return {
        "reuses": verdict.reuses,
        "problems": verdict.problems,
        "notes": verdict.notes,
        "figures": {name: verdict.figures[name] for name in SHOWN if name in verdict.figures},
        "limits": {name: verdict.limits[name] for name in SHOWN if name in verdict.limits},
    }


def ttft(cache: ChunkCache, given: argparse.Namespace) -> dict[str, Any]:
    """Medians of the arms over turns, after one that only warms up.

    Turns end when `--most-s` have passed, but there are at least three.
    """
    pool, draw = passages(cache, given.tokens)[:POOL], random.Random(given.seed)
    arms: dict[str, dict[str, Any]] = {
        "full": {"mode": "full"},
        **{f"cache {budget:g}": {"budget": budget} for budget in BUDGETS},
    }
    began, prompt_tokens = time.perf_counter(), 0
    for start in range(0, POOL, given.passages):
        cache.ask(request(pool[start : start + given.passages]))  # every passage is warm then
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(given.turns + 1):
        for name, options in arms.items():
            asked = request(draw.sample(pool, given.passages), **options)
            ms, report = ttft_ms(cache, asked)
            prompt_tokens = report["prompt_tokens"]
            if turn:
                samples[name].append(ms)
        if turn >= FEWEST_TURNS and time.perf_counter() - began > given.most_s:
            break
    return {
        "passages": given.passages,
        "tokens": given.tokens,
        "prompt_tokens": prompt_tokens,
        "turns": len(samples["full"]),
        "arms": {
            name: {
                "ttft_ms": round(statistics.median(values), 1),
                "of_full": round(_paired(values, samples["full"]), 4),
            }
            for name, values in samples.items()
        },
    }


def _paired(values: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def drift(cache: ChunkCache, given: argparse.Namespace) -> dict[str, Any] | None:
    """Summary of the arms over questions; None, and a word why, without data."""
    folder = data_folder()
    if folder is None:
        print("drift: not measured, no question sets in $CHUNKCACHE_DATA or ../shared/data")
        return None
    everything = read_questions(folder / "squad.jsonl.gz")
    questions = halves(with_passages(everything, given.quality_passages, given.seed), "report")
    evaluation = Evaluation(arms=tuple(parse_arms(ARMS, [0.15])), max_tokens=16, suffix=SUFFIX)
    lines = evaluate(
        cache,
        questions[: given.questions],
        evaluation,
        given.work / f"real-{Path(cache.settings.model.name).name}.jsonl",
        on_progress=lambda done, total, eta_s: print(f"{done}/{total}, {eta_s:.0f} s", flush=True),
    )
    return {
        "set": "squad, report half",
        "passages": given.quality_passages,
        **summarise(lines).as_dict(),
    }


def row_of(folder: str, given: argparse.Namespace) -> dict[str, Any]:
    """One model, in the parts that were asked for."""
    with tempfile.TemporaryDirectory() as home:
        settings = question_settings(Path(home), folder)
        with ChunkCache(settings) as cache:
            row = facts_of(cache)
            if "gate" in given.parts:
                row["gate"] = gate_figures(cache)
            if "ttft" in given.parts:
                row["ttft"] = ttft(cache, given)
            if "drift" in given.parts and (found := drift(cache, given)):
                row["drift"] = found
    return row


def show(row: dict[str, Any]) -> None:
    """A line for each part of a row."""
    about = f"{row['model']} ({row['type']}, {row['parameters'] / 1e6:.0f} M, {row['dtype']})"
    print(about, flush=True)
    if "gate" in row:
        figures = " ".join(f"{name} {by:.1e}" for name, by in row["gate"]["figures"].items())
        print("  gate ", "passed" if row["gate"]["reuses"] else row["gate"]["problems"], figures)
    if "ttft" in row:
        arms = row["ttft"]["arms"].items()
        cells = "  ".join(f"{name} {arm['ttft_ms']:.0f} ms ({arm['of_full']:.2f})"
                          for name, arm in arms)  # fmt: skip
        print(f"  ttft  {row['ttft']['prompt_tokens']} tokens  {cells}")
    for arm in row.get("drift", {}).get("arms", ()):
        found = arm["figures"]
        print(f"  drift {arm['name']:14} mean KL {found['mean_kl'][0]:.4f} "
              f"agreement {found['agreement'][0]:.3f} F1 {found['f1'][0]:.3f}")  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", help="of models, as `save_pretrained` writes them")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--passages", type=int, default=3, help="in a prompt of `ttft`")
    parser.add_argument("--tokens", type=int, default=256, help="of each such passage")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--most-s", type=float, default=100.0, help="of turns, for one model")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--quality-passages", type=int, default=3, help="in a prompt of `drift`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    return parser.parse_args()


def main() -> None:
    """Measure each folder, print, keep one line."""
    given = arguments()
    rows = []
    for folder in given.folders:
        rows.append(row_of(folder, given))
        show(rows[-1])
    emit(
        {
            "benchmark": "real_models", "command": command_line(), "seed": given.seed,
            "rows": rows, **surroundings("transformers", "chunkcache"),
        },
        given.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
