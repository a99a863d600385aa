"""What repair costs and what answers lose: every policy against full recompute, on real questions.

    python benchmarks/bench_quality.py --model FOLDER --set hotpotqa --split report --questions 100

Question sets are looked for in $CHUNKCACHE_DATA, then ../shared/data (folder `qa`, JSON lines with
`question`, `answers`, `contexts`); without them nothing is measured and the exit code is 0. Each
question comes with its supporting passages among others, `--passages` in all. A set is cut in two
halves: `tune` is for choosing and calibrating, `report` for figures that are published.

Arms are answered from chunks born after fixed passages, the default; those named `… head` from
chunks born after the head alone, as the papers' policies are meant.

One line per question goes to `--work` (it holds text of the set: not to be committed; a run can be
stopped and resumed), the summary to `--out`, the frontier to a PNG beside it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reporting import command_line, emit, surroundings

from chunkcache import ChunkCache
from chunkcache.cli.evaluation import show_summary
from chunkcache.config import EMBEDDED_MODEL, Settings, load_settings
from chunkcache.evaluate.quality import (
    Beside,
    Evaluation,
    Question,
    calibrate,
    evaluate,
    paired_difference,
    parse_arms,
    read_lines,
    read_questions,
    reliability_bins,
    summarise,
)
from chunkcache.evaluate.quality.picture import draw_frontier, draw_reliability
from chunkcache.protocol import GivenDocument

SUFFIX = " Answer with only the short answer, no sentence."
ARMS = (
    "none", "first_k@0.15", "deviation@0.15", "cfo@0.15",
    "question@0.05", "question@0.15", "question@0.3", "all",
)  # fmt: skip
HEAD_ARMS = ("none", "first_k@0.15", "deviation@0.15", "cfo@0.15", "question@0.15")


def data_folder() -> Path | None:
    """Where the question sets are, if anywhere."""
    here = Path(__file__).resolve().parent.parent
    for folder in (os.environ.get("CHUNKCACHE_DATA"), here.parent / "shared" / "data"):
        if folder and (Path(folder) / "qa").is_dir():
            return Path(folder) / "qa"
    return None


def with_passages(questions: list[Question], count: int, seed: int) -> list[Question]:
    """Questions with exactly their supporting passages and distractors, `count` in all, shuffled.

    Distractors come from the question's own contexts, and from other questions where it has too
    few. The order depends on the seed and the question alone.
    """
    chosen = []
    for question in questions:
        draw = random.Random(f"{seed}-{question.id}")
        own = list(question.contexts or ())
        kept = [c for c in own if c.id in question.supporting]
        rest = [c for c in own if c.id not in question.supporting]
        draw.shuffle(rest)
        known = {c.text for c in own}
        while len(kept) + len(rest) < count:
            other = draw.choice(draw.choice(questions).contexts or ())
            if other.text not in known:
                known.add(other.text)
                rest.append(other)
        passages = kept + rest[: max(0, count - len(kept))]
        draw.shuffle(passages)
        renamed = [GivenDocument(id=str(i), title=c.title, text=c.text)
                   for i, c in enumerate(passages)]  # fmt: skip
        chosen.append(Question(question.id, question.text, question.answers, tuple(renamed)))
    return chosen


def asked(given: argparse.Namespace, split: str) -> list[Question] | None:
    """The questions of one half, with their passages; None, and a word why, without data."""
    folder = data_folder()
    if folder is None:
        print("not measured: no question sets in $CHUNKCACHE_DATA or ../shared/data")
        return None
    everything = read_questions(folder / f"{given.set}.jsonl.gz")
    return halves(with_passages(everything, given.passages, given.seed), split)


def halves(questions: list[Question], split: str) -> list[Question]:
    """Every other question: `tune` has the even ones, `report` the odd ones.

    A set may hold a question twice: it is asked once, and in `tune` if both halves have it.
    """
    tune = {question.id: question for question in questions[0::2]}
    report = {question.id: question for question in questions[1::2] if question.id not in tune}
    return list((tune if split == "tune" else report).values())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="as model.name")
    parser.add_argument("--set", default="hotpotqa", help="name of a file in the qa folder")
    parser.add_argument("--split", default="report", choices=("tune", "report"))
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help="policy@budget")
    parser.add_argument(
        "--head-arms", nargs="*", default=list(HEAD_ARMS), help="with chunks born after the head"
    )
    parser.add_argument(
        "--calibration-from", type=Path, nargs="*", default=[], help="lines of runs on `tune`"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    parser.add_argument("--picture", type=Path, help="write the frontier as PNG")
    parser.add_argument("--reliability", type=Path, help="write predicted against measured as PNG")
    return parser.parse_args()


def main() -> int:
    """Evaluate, print, draw."""
    given = arguments()
    questions = asked(given, given.split)
    if questions is None:
        return 0
    questions = questions[: given.questions]
    evaluation = Evaluation(
        arms=tuple(parse_arms(given.arms, [0.15])), max_tokens=16, suffix=SUFFIX
    )
    name = f"quality-{Path(given.model).name.replace(':', '-')}-{given.set}-{given.split}.jsonl"
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        caches = [
            stack.enter_context(ChunkCache(question_settings(Path(home) / born, given.model, born)))
            for born in ("passages", "head")[: 2 if given.head_arms else 1]
        ]
        cache = caches[0]
        head_arms = tuple(parse_arms(given.head_arms, [0.15]))
        beside = [Beside("head", other, head_arms) for other in caches[1:]]
        if given.calibration_from:
            known = [line for path in given.calibration_from for line in read_lines(path)]
            cache.runtime.calibration, _ = calibrate(known)
        lines = evaluate(
            cache, questions, evaluation, given.work / name, beside=beside, on_progress=_progress()
        )
        facts = {
            "model": cache.model_id,
            "dtype": cache.runtime.model.geometry.dtype,
            "repair": cache.settings.repair.model_dump(mode="json"),
        }
    summary = summarise(lines)
    show_summary(summary)
    title = f"{facts['model']}, {given.set} ({given.split}), {summary.questions} questions"
    if given.picture is not None:
        draw_frontier(summary, given.picture, title=title)
    bins = reliability_bins(lines)
    for one in bins:
        low, high = one.measured[1:]
        print(f"predicted {one.predicted:.4f} measured {one.measured[0]:.4f} "
              f"[{low:.4f}, {high:.4f}] in {one.answers} answers")  # fmt: skip
    if given.reliability is not None:
        draw_reliability(bins, given.reliability, title=title)
    emit(
        {
            "benchmark": "quality", "command": command_line(), "seed": given.seed,
            "set": given.set, "split": given.split, "passages": given.passages, **facts,
            **surroundings("transformers", "chunkcache"),
            **summary.as_dict(), "against": _against(lines),
            "reliability": [asdict(one) for one in bins],
        },
        given.out,
    )  # fmt: skip
    return 0


def question_settings(home: Path, model: str, born_after: str = "passages") -> Settings:
    """An installation for question sets: whole passages as chunks, nothing on disk."""
    return load_settings(
        home=home,
        model={"name": model},
        prompt={"born_after": born_after},
        retrieval={"chunk_tokens": 1024, "embedder": "hashing:64"},
        store={"disk_capacity_bytes": 0},
    )


def _against(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Paired differences in mean KL of `question` at its budgets to the other policies."""
    names = list(lines[0]["arms"])
    ours = [n for n in names if n.startswith(("question@", "drift@")) and " " not in n]
    others = [n for n in names if n not in ours and n != "all"]
    return {f"{a} - {b}": paired_difference(lines, "mean_kl", a, b) for a in ours for b in others}


def _progress() -> Any:
    began = time.perf_counter()

    def show(done: int, total: int, eta_s: float) -> None:
        spent = (time.perf_counter() - began) / 60
        print(f"{done}/{total}, {spent:.1f} min, {eta_s / 60:.0f} min left", flush=True)

    return show


if __name__ == "__main__":
    sys.exit(main())
