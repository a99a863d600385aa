"""What the order of passages is worth to answers: what `order: cache_friendly` may cost.

    python benchmarks/bench_order_answers.py --model FOLDER --set squad --questions 100

That order follows earlier answers, so the passage with the answer may stand anywhere. A question
is answered three times by full recompute, nothing reused: its supporting passages first (as by a
retriever that is always right), anywhere (shuffled by the seed) and last. F1 against gold answers,
differences paired by question. Question sets as for bench_quality; nothing is measured without.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench_quality import SUFFIX, data_folder, halves, question_settings, with_passages
from reporting import command_line, emit, surroundings

from chunkcache import ChunkCache
from chunkcache.config import EMBEDDED_MODEL
from chunkcache.evaluate.quality import Question, read_questions
from chunkcache.evaluate.quality.scores import token_f1
from chunkcache.evaluate.quality.summary import bootstrap
from chunkcache.protocol import (
    AnswerRequest,
    ChunkCacheOptions,
    GivenDocument,
    Message,
    Sampling,
)

ORDERS = ("first", "anywhere", "last")


def ordered(
    passages: tuple[GivenDocument, ...], supporting: set[str]
) -> dict[str, list[GivenDocument]]:
    """The passages in every order; the others keep theirs."""
    holds = {True: [p for p in passages if p.text in supporting]}
    holds[False] = [p for p in passages if p.text not in supporting]
    return {
        "first": holds[True] + holds[False],
        "anywhere": list(passages),
        "last": holds[False] + holds[True],
    }


def answers(
    cache: ChunkCache, question: Question, orders: dict[str, list[GivenDocument]]
) -> dict[str, dict[str, Any]]:
    """Text and F1 of each order, by full recompute."""
    found = {}
    for name, documents in orders.items():
        text = cache.ask(
            AnswerRequest(
                messages=[Message(role="user", content=question.text + SUFFIX)],
                documents=documents,
                sampling=Sampling(max_tokens=16),
                options=ChunkCacheOptions(mode="full", order="relevance"),
            )
        ).text
        found[name] = {"text": text, "f1": token_f1(text, question.answers)}
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="as model.name")
    parser.add_argument("--set", default="squad", help="name of a file in the qa folder")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    return parser.parse_args()


def main() -> int:
    """Answer, compare, print."""
    given = arguments()
    folder = data_folder()
    if folder is None:
        print("not measured: no question sets in $CHUNKCACHE_DATA or ../shared/data")
        return 0
    everything = read_questions(folder / f"{given.set}.jsonl.gz")
    supporting = {
        q.id: {c.text for c in q.contexts or () if c.id in q.supporting} for q in everything
    }
    asked = halves(with_passages(everything, given.passages, given.seed), "report")
    rows: list[dict[str, dict[str, Any]]] = []
    with (
        tempfile.TemporaryDirectory() as home,
        ChunkCache(question_settings(Path(home), given.model)) as cache,
    ):
        for number, question in enumerate(asked[: given.questions], start=1):
            orders = ordered(question.contexts or (), supporting[question.id])
            rows.append(answers(cache, question, orders))
            print(number, {n: round(a["f1"], 2) for n, a in rows[-1].items()}, flush=True)
        model = cache.model_id
    f1 = {name: bootstrap([row[name]["f1"] for row in rows]) for name in ORDERS}
    lost = {
        name: bootstrap([row["first"]["f1"] - row[name]["f1"] for row in rows])
        for name in ORDERS[1:]
    }
    changed = {
        name: sum(row[name]["text"] != row["first"]["text"] for row in rows) / len(rows)
        for name in ORDERS[1:]
    }
    for name in ORDERS:
        print(f"{name:>8} F1 {f1[name][0]:.3f} [{f1[name][1]:.3f}, {f1[name][2]:.3f}]")
    for name in ORDERS[1:]:
        mean, low, high = lost[name]
        print(f"first - {name}: {mean:+.3f} [{low:+.3f}, {high:+.3f}], "
              f"{changed[name]:.0%} other texts")  # fmt: skip
    emit(
        {
            "benchmark": "order_answers", "command": command_line(), "model": model,
            "set": given.set, "seed": given.seed, "questions": len(rows),
            "passages": given.passages, "f1": f1, "f1_lost": lost, "changed": changed,
            **surroundings("transformers", "chunkcache"),
        },
        given.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
