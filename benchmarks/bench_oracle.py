"""What better knowledge would buy: row choosers that know what no server can, beside ours.

    python benchmarks/bench_oracle.py --model FOLDER --set hotpotqa --questions 20

All choose the same number of rows, and the probe that only ours needs is not charged to anyone, so
that what is compared is the choice alone. Mean KL to full recompute along its answer:

- `none`        no repair
- `question`    our policy: attention of the question over unrepaired KV
- `deviation`   the true deviation of V from full prefill, summed over all layers (CacheBlend sees
                the second layer only)
- `attention`   attention of the question over the KV of full prefill
- `oracle`      that attention times the true deviation of V
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from bench_quality import asked, question_settings
from lab import Given, Lab
from reporting import command_line, emit, surroundings

from chunkcache import ChunkCache
from chunkcache.config import EMBEDDED_MODEL, RepairSettings
from chunkcache.evaluate.drift import drift_between
from chunkcache.evaluate.quality.summary import bootstrap
from chunkcache.repair import RepairPolicy, RepairTask, Scoring, policy_named
from chunkcache.repair.scored import QuestionRows

if TYPE_CHECKING:
    from chunkcache.engine.prompt import Prompt

CHOOSERS = ("none", "question", "deviation", "attention", "oracle")


class Listener(RepairPolicy):
    """Keeps the question's scores and repairs nothing."""

    name = "listener"
    needs = Scoring.QUESTION

    def __init__(self) -> None:
        self.scores: np.ndarray = np.empty(0)

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """No rows."""
        assert scores is not None
        self.scores = QuestionRows().weigh(task, scores)
        return np.empty(0, dtype=np.int64)


def measure(lab: Lab, prompt: Prompt, budget: float) -> dict[str, float]:
    """Mean KL of every chooser on one prompt."""
    reference = lab.answer(prompt, {}, policy_named("none", RepairSettings()), 0.0,
                           keep_logits=True)  # fmt: skip
    records = lab.records(prompt)
    true = lab.true_records(prompt, records)
    listeners = Listener(), Listener()
    lab.answer(prompt, records, listeners[0], 0.99)
    lab.answer(prompt, true, listeners[1], 0.99)
    deviation = np.zeros(prompt.num_tokens)
    for index, record in records.items():
        span = prompt.spans[index]
        change = (true[index].kv[:, 1].float() - record.kv[:, 1].float()).square().sum(dim=(2, 3))
        deviation[span.start : span.end] = change.sqrt().sum(0).numpy()
    weights = {
        "question": listeners[0].scores,
        "deviation": deviation,
        "attention": listeners[1].scores,
        "oracle": listeners[1].scores * deviation,
    }
    drifts = {}
    for name in CHOOSERS:
        policy = Given(weights.get(name, deviation))
        outcome = lab.answer(prompt, records, policy, budget if name in weights else 0.0,
                             forced_ids=reference.token_ids)  # fmt: skip
        assert reference.step_logits is not None and outcome.step_logits is not None
        drifts[name] = drift_between(reference.step_logits, outcome.step_logits).mean_kl
    return drifts


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="as model.name")
    parser.add_argument("--set", default="hotpotqa", help="name of a file in the qa folder")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--budget", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    questions = asked(given, "tune")
    if questions is None:
        return 0
    rows: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory() as home,
        ChunkCache(question_settings(Path(home), given.model)) as cache,
    ):
        lab = Lab(cache)
        for number, question in enumerate(questions[-given.questions :], start=1):
            rows.append(measure(lab, lab.prompt(question), given.budget))
            print(number, {n: round(v, 4) for n, v in rows[-1].items()}, flush=True)
        model = cache.model_id
    means = {name: bootstrap([row[name] for row in rows]) for name in CHOOSERS}
    for name, (mean, low, high) in means.items():
        print(f"{name:>10} {mean:.4f} [{low:.4f}, {high:.4f}]")
    emit(
        {
            "benchmark": "oracle", "command": command_line(), "model": model, "set": given.set,
            "seed": given.seed, "questions": len(rows), "passages": given.passages,
            "budget": given.budget, "mean_kl": means,
            **surroundings("transformers", "chunkcache"),
        },
        given.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
