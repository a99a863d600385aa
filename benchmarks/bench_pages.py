"""What int8 and int4 pages cost in drift, beside what the number type costs by itself.

    python benchmarks/bench_pages.py --set squad --questions 12 --dtype bfloat16

Mean KL along the answer of full recompute, of one model over raw, int8 and int4 chunk pages:

- `noise`              every row repaired over raw pages: what the number type alone makes of it
- `true`               the KV that full prefill makes, read as chunks: nothing is to be repaired
- `none`, `question`   chunks as the service makes them, without and with 15 % repaired

`true int8` and `true int4` tell what rounding alone does. The others tell whether it shows beside
reuse.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bench_quality import asked, question_settings
from lab import Lab
from reporting import command_line, emit, surroundings

from chunkcache import ChunkCache
from chunkcache.config import EMBEDDED_MODEL, RepairSettings, load_settings
from chunkcache.evaluate.drift import drift_between
from chunkcache.evaluate.quality.summary import bootstrap
from chunkcache.repair import policy_named

if TYPE_CHECKING:
    from chunkcache.evaluate.quality.questions import Question

PAGES = ("raw", "int8", "int4")
BUDGET = 0.15


def measure(labs: dict[str, Lab], question: Question) -> dict[str, float]:
    """Mean KL of every way on one prompt."""
    raw = labs["raw"]
    prompt = raw.prompt(question)
    reference = raw.answer(
        prompt, {}, policy_named("none", RepairSettings()), 0.0, keep_logits=True
    )
    assert reference.step_logits is not None
    records = raw.records(prompt)
    true = raw.true_records(prompt, records)
    ways = [("noise", "raw", records, "all", 1.0)]
    for pages in PAGES:
        ways.append((f"true {pages}", pages, true, "none", 0.0))
        ways.append((f"none {pages}", pages, records, "none", 0.0))
        ways.append((f"question {pages}", pages, records, "question", BUDGET))
    drifts = {}
    for name, pages, used, policy, budget in ways:
        outcome = labs[pages].answer(
            prompt, used, policy_named(policy, RepairSettings()), budget,
            forced_ids=reference.token_ids,
        )  # fmt: skip
        assert outcome.step_logits is not None
        drifts[name] = drift_between(reference.step_logits, outcome.step_logits).mean_kl
    return drifts


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="as model.name")
    parser.add_argument("--set", default="squad", help="name of a file in the qa folder")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    questions = asked(given, "report")
    if questions is None:
        return 0
    rows: list[dict[str, float]] = []
    with ExitStack() as stack:
        labs = {}
        for pages in PAGES:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            base = question_settings(home, given.model)
            settings = load_settings(
                home=home, prompt=base.prompt.model_dump(), retrieval=base.retrieval.model_dump(),
                store=base.store.model_dump(), engine={"chunk_pages": pages},
                model={"name": given.model, "dtype": given.dtype},
            )  # fmt: skip
            labs[pages] = Lab(stack.enter_context(ChunkCache(settings)))
        for number, question in enumerate(questions[: given.questions], start=1):
            rows.append(measure(labs, question))
            print(number, {n: round(v, 5) for n, v in rows[-1].items()}, flush=True)
        model = labs["raw"].runtime.model.name
    means = {name: bootstrap([row[name] for row in rows]) for name in rows[0]}
    for name, (mean, low, high) in means.items():
        print(f"{name:>14} {mean:.5f} [{low:.5f}, {high:.5f}]")
    emit(
        {
            "benchmark": "pages", "command": command_line(), "model": model, "set": given.set,
            "dtype": given.dtype, "seed": given.seed, "questions": len(rows),
            "passages": given.passages, "budget": BUDGET, "mean_kl": means,
            **surroundings("transformers", "chunkcache"),
        },
        given.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
