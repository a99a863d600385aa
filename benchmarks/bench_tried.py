"""Ways of making reused chunks better that are not part of the product, beside the one that is.

    python benchmarks/bench_tried.py --model FOLDER --set squad --questions 20

Each is given the same honest budget (share of the reused rows × layers, all that it must run first
included). Mean KL to full recompute along its answer. A name says where chunks were born (`head`:
after the head alone; `passages`: after three unrelated passages, as the product does it; `orders`:
beside the other passages of this very prompt, in the best of some other orders) and what is done.

- `sharper`       the keys of reused rows times 1.1: attention at a lower temperature (APE, arXiv
                  2502.05431, without its scaling factor, which no change of keys can express)
- `shift`         the mean change of eight even rows of a chunk, recomputed, added to its other
                  rows, layer by layer, shrunk by n/(n+2) (AgentKVShift)
- `first rows`    the first two rows of every chunk and the question's rows
- `all three`     first rows, question and shift of four rows a chunk
- `outward`       the question's scores × what a row attended to outside of its chunk at birth
- `whole probe`   all of the question's rows run from the start again after the repair
- `short probe`   the same, with votes of the layers from a half to two thirds of the depth only
- `half depth`    twice the question's rows through the lower half of the layers
- `cfo`, `question`, `none`: the policies of those names; with `orders`, records are chosen by the
  lowest CFO (Cache-Craft's variants, arXiv 2502.15734, §3.3), the canonical one among them

Variants have seen no others than the neighbours of this prompt. One that stood first has seen none,
and CCI says .5 of it for want of evidence, so that the least CFO may prefer it.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench_quality import asked, question_settings
from lab import Lab
from lab_records import Records, best_variants, born_after_head, sharper, shifted, twin
from reporting import command_line, emit, surroundings

from chunkcache import ChunkCache
from chunkcache.config import EMBEDDED_MODEL, RepairSettings
from chunkcache.evaluate.drift import drift_between
from chunkcache.evaluate.quality.summary import bootstrap
from chunkcache.repair import RepairPolicy, RepairTask, Scoring, Step, policy_named
from chunkcache.repair.cfo import FixOverhead
from chunkcache.repair.scored import QuestionRows
from chunkcache.repair.select import reusable_positions, top_rows

if TYPE_CHECKING:
    from chunkcache.engine.prompt import Prompt

SHARPER = 1.1


@dataclass(frozen=True, slots=True)
class Way:
    """Records, and what is repaired of them; `paid` has been spent of the budget already."""

    records: Records
    policy: RepairPolicy
    paid: float = 0.0


# ---------------------------------------------------------------- choosers


class FirstAndQuestion(QuestionRows):
    """The first two rows of every chunk, as far as the budget goes, then the question's."""

    name = "first rows"
    FIRST = 2

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """First rows, then the largest scores."""
        if scores is None or task.needs_no_scores:
            return super().choose(task, scores)
        first = np.concatenate([np.arange(c.start, c.start + c.num_tokens)[: self.FIRST]
                                for c in task.chunks])[: task.max_rows]  # fmt: skip
        rest = np.setdiff1d(reusable_positions(task), first)
        best = top_rows(rest, self.weigh(task, scores)[rest], task.max_rows - len(first))
        return np.union1d(first, best).astype(np.int64)


class OutwardQuestion(QuestionRows):
    """The question's scores × the attention a row paid outside of its chunk when it was born."""

    name = "outward"

    def weigh(self, task: RepairTask, scores: np.ndarray) -> np.ndarray:
        """The product; rows of all chunks on one scale."""
        weighed = super().weigh(task, scores).copy()
        for chunk in task.chunks:
            stats = chunk.stats
            outside = (stats.token_inter + stats.token_head)[chunk.first_row :]
            weighed[chunk.start : chunk.start + chunk.num_tokens] *= outside
        return weighed


class HalfDepth(QuestionRows):
    """Twice the rows, through the lower half of the layers."""

    name = "half depth"

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """The largest scores."""
        if scores is None or task.needs_no_scores:
            return super().choose(task, scores)
        positions = reusable_positions(task)
        return top_rows(positions, self.weigh(task, scores)[positions], 2 * task.max_rows)

    def steps(self, task: RepairTask) -> tuple[Step, ...]:
        """Nobody goes on from half of the depth."""
        return () if task.needs_no_scores else (Step(task.num_layers // 2, 0),)

    def narrow(
        self, task: RepairTask, step: Step, rows: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        """Nobody."""
        return rows[:0]


class ThoroughQuestion(QuestionRows):
    """As the product's, but the question's rows run again from the start after the repair."""

    name = "whole probe"
    probe_keeps = 0.0


class Listener(RepairPolicy):
    """Keeps the question's votes of the layers up to a half and up to two thirds of the depth.

    One row must be repaired for anything to be watched; it is the first.
    """

    name = "listener"
    needs = Scoring.NONE
    watches = Scoring.QUESTION

    def __init__(self) -> None:
        self.heard: list[np.ndarray] = []

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """One row."""
        return reusable_positions(task)[:1]

    def steps(self, task: RepairTask) -> tuple[Step, ...]:
        """Where to listen."""
        return Step(task.num_layers // 2, 1), Step(task.num_layers * 2 // 3, 1)

    def narrow(
        self, task: RepairTask, step: Step, rows: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        """Everybody."""
        self.heard.append(scores.copy())
        return rows


class Votes(QuestionRows):
    """Rows by votes that were taken before."""

    name = "votes"
    needs = Scoring.NONE

    def __init__(self, votes: np.ndarray) -> None:
        self._votes = votes

    def choose(self, task: RepairTask, scores: np.ndarray | None) -> np.ndarray:
        """The largest."""
        return super().choose(task, self._votes)


def short_probe(lab: Lab, prompt: Prompt, records: Records) -> Way:
    """Votes of layers from a half to two thirds of the depth, where the probe ends."""
    listener = Listener()
    task = lab.answer(prompt, records, listener, 1.0, tokens=1).plan.task
    votes = listener.heard[1] - listener.heard[0]
    asking = prompt.num_tokens - max(c.start + c.num_tokens for c in task.chunks)
    return Way(records, Votes(votes), asking * 2 / 3 / task.reusable_rows)


# ---------------------------------------------------------------- measuring


def ways(lab: Lab, prompt: Prompt, orders: int, seed: int) -> dict[str, Way]:
    """Everything that is compared, on one prompt."""
    none, question = policy_named("none", RepairSettings()), QuestionRows()
    cfo = FixOverhead(1.0)
    passages, head = lab.records(prompt), born_after_head(lab, prompt)
    variants = best_variants(lab, prompt, passages, orders, random.Random(seed))
    eight, price_of_eight = shifted(lab, prompt, passages, 8)
    four, price_of_four = shifted(lab, prompt, passages, 4)
    eight_head, price_of_head = shifted(lab, prompt, head, 8)
    return {
        "head: none": Way(head, none),
        "head: sharper": Way(sharper(head, SHARPER), none),
        "head: shift": Way(eight_head, none, price_of_head),
        "passages: none": Way(passages, none),
        "passages: sharper": Way(sharper(passages, SHARPER), none),
        "passages: shift": Way(eight, none, price_of_eight),
        "passages: question": Way(passages, question),
        "passages: shift, question": Way(four, question, price_of_four),
        "passages: question, whole probe": Way(passages, ThoroughQuestion()),
        "passages: question, short probe": short_probe(lab, prompt, passages),
        "passages: first rows, question": Way(passages, FirstAndQuestion()),
        "passages: all three": Way(four, FirstAndQuestion(), price_of_four),
        "passages: outward × question": Way(passages, OutwardQuestion()),
        "passages: half depth": Way(passages, HalfDepth()),
        "passages: cfo": Way(passages, cfo),
        "orders: none": Way(variants, none),
        "orders: cfo": Way(variants, cfo),
        "orders: question": Way(variants, question),
    }


def measure(
    lab: Lab, prompt: Prompt, budget: float, orders: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Mean KL and cost of every way on one prompt."""
    reference = lab.answer(
        prompt, {}, policy_named("none", RepairSettings()), 0.0, keep_logits=True
    )
    assert reference.step_logits is not None
    found = {}
    for name, way in ways(lab, prompt, orders, seed).items():
        outcome = lab.answer(
            prompt, way.records, way.policy, max(0.0, budget - way.paid), tokens=1,
            forced_ids=reference.token_ids,
        )  # fmt: skip
        assert outcome.step_logits is not None
        drift = drift_between(reference.step_logits, outcome.step_logits).mean_kl
        found[name] = drift, outcome.repair_ratio + way.paid
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="as model.name")
    parser.add_argument("--set", default="squad", help="name of a file in the qa folder")
    parser.add_argument("--split", default="tune", choices=("tune", "report"))
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--orders", type=int, default=2, help="other orders that were seen before")
    parser.add_argument("--budget", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    return parser.parse_args()


def show(rows: Sequence[dict[str, tuple[float, float]]]) -> dict[str, dict[str, Any]]:
    """The table, and the same as data: mean KL, cost, difference to the product's way."""
    figures = {}
    for name in rows[0]:
        drift = [row[name][0] for row in rows]
        ours = [row["passages: question"][0] for row in rows]
        figures[name] = {
            "mean_kl": bootstrap(drift),
            "cost": sum(row[name][1] for row in rows) / len(rows),
            "against_question": bootstrap([a - b for a, b in zip(drift, ours, strict=True)]),
        }
        (kl, low, high), (less, a, b) = figures[name]["mean_kl"], figures[name]["against_question"]
        print(f"{name:32} {figures[name]['cost']:.3f}  {kl:.4f} [{low:.4f}, {high:.4f}]  "
              f"{less:+.4f} [{a:+.4f}, {b:+.4f}]", flush=True)  # fmt: skip
    return figures


def main() -> int:
    """Measure, print."""
    given = arguments()
    questions = asked(given, given.split)
    if questions is None:
        return 0
    rows: list[dict[str, tuple[float, float]]] = []
    with (
        tempfile.TemporaryDirectory() as home,
        ChunkCache(question_settings(Path(home), given.model)) as cache,
    ):
        lab = Lab(cache)
        for number, question in enumerate(questions[: given.questions], start=1):
            prompt = lab.prompt(question)
            if number == 1:
                print(f"twin: documents together and apart differ by {twin(lab, prompt):.2g}")
            rows.append(measure(lab, prompt, given.budget, given.orders, given.seed + number))
            print(number, {n: round(v, 4) for n, (v, _) in rows[-1].items()}, flush=True)
        model, dtype = cache.model_id, cache.runtime.model.geometry.dtype
    emit(
        {
            "benchmark": "tried", "command": command_line(), "model": model, "dtype": dtype,
            "set": given.set, "split": given.split, "seed": given.seed, "questions": len(rows),
            "passages": given.passages, "orders": given.orders, "budget": given.budget,
            "ways": show(rows), **surroundings("transformers", "chunkcache"),
        },
        given.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
