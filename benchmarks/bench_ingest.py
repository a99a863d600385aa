"""Chunks a second while documents are ingested, beside an earlier commit, in turns.

    python benchmarks/bench_ingest.py [--out benchmarks/results/bench_ingest.jsonl]

Documents are the paragraphs of HotpotQA's and MuSiQue's corpora in $CHUNKCACHE_DATA or
../shared/data; without them, pages of the interpreter's documentation. Two cells of plain text:

- `paragraphs`  a file each, as support articles and tickets are: mostly one chunk a document
- `pages`       many paragraphs in a file: some tens of chunks a document

The baseline takes one document at a time, in fp32 through torch: it is the slow twin, too. After
the last round both are asked the same questions by vectors alone; `recall` is the share of its ten
best that are among ours, `score` the largest difference of a score. Memory is the peak of a round
above what the process held before it. `--large N` ingests N paragraphs once more (where there are
fewer, again, each with a number of its own), ours alone, and notes the peak as it goes; then it
searches them, by vectors and words, and notes what the first search, which builds the indexes, and
later ones take.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from arms import ROOT, Arm, checkout_of, commit_of, leave
from bench_decode import spread
from bench_quality import data_folder
from reporting import command_line, emit, surroundings

from chunkcache.cli.stdlib_pages import stdlib_pages
from chunkcache.config import EMBEDDED_EMBEDDER, EMBEDDED_MODEL, load_settings
from chunkcache.engine.weights import resolve_model

CELLS = ("paragraphs", "pages")
PARAGRAPHS_IN_A_PAGE = 40
TOP_K = 10
QUERIES = 100
CORPORA = ("hotpotqa_corpus", "musique_corpus")


def read_paragraphs() -> tuple[str, list[tuple[str, str]]]:
    """Where they are from; title and text of each."""
    folder = data_folder()
    if folder is None:
        return "documentation of the interpreter", list(stdlib_pages())
    found = []
    for name in CORPORA:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                one = json.loads(line)
                found.append((one["title"], one["text"]))
    return ", ".join(CORPORA), found


def write_cell(cell: str, paragraphs: list[tuple[str, str]], folder: Path) -> int:
    """The cell's files; how many."""
    folder.mkdir(parents=True)
    size = PARAGRAPHS_IN_A_PAGE if cell == "pages" else 1
    pages = [paragraphs[first : first + size] for first in range(0, len(paragraphs), size)]
    for number, page in enumerate(pages):
        text = "\n\n".join(f"{title}\n\n{text}" for title, text in page)
        (folder / f"{number:06}.txt").write_text(text, encoding="utf-8")
    return len(pages)


def tell(arm: Arm, **told: Any) -> dict[str, Any]:
    """Tell an arm something in its turn."""
    with arm.turn():
        return arm.tell(told)


def measure(cell: str, arms: list[Arm], folder: Path, queries: list[str], rounds: int) -> Any:
    """One row: every arm's rounds in turns, and what they find in the end."""
    made: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    for turn in range(rounds + 1):  # the first warms up
        for arm in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
            got = tell(arm, do="ingest", folder=str(folder), every=10**9)
            if turn:
                made[arm.name].append(got)
            if turn < rounds:
                tell(arm, do="forget", collection=got["collection"])
    row: dict[str, Any] = {"cell": cell, "arms": {}}
    for arm in arms:
        several = made[arm.name]
        row["arms"][arm.name] = {
            "documents": several[0]["documents"], "chunks": several[0]["chunks"],
            "chunks_per_s": spread([one["chunks"] / one["seconds"] for one in several]),
            "added_bytes": spread([one["peak_bytes"] - one["rss_before_bytes"] for one in several]),
        }  # fmt: skip
    if len(arms) > 1:
        rates = [[one["chunks"] / one["seconds"] for one in made[arm.name]] for arm in arms]
        row["speedup"] = spread([a / b for a, b in zip(*rates, strict=True)])
        row |= compare(arms, {arm.name: made[arm.name][-1]["collection"] for arm in arms}, queries)
    for arm in arms:
        tell(arm, do="forget", collection=made[arm.name][-1]["collection"])
    return row


def compare(arms: list[Arm], collections: dict[str, str], queries: list[str]) -> dict[str, float]:
    """Overlap of what the first arm finds with what the second does."""
    ours, twin = (
        tell(arm, do="search", collection=collections[arm.name], queries=queries, top_k=TOP_K)
        for arm in arms
    )
    shared, wanted, furthest = 0, 0, 0.0
    for mine, theirs in zip(ours["found"], twin["found"], strict=True):
        scores = dict(map(tuple, mine))
        for text, score in theirs:
            wanted += 1
            if text in scores:
                shared += 1
                furthest = max(furthest, abs(scores[text] - score))
    return {"recall": round(shared / wanted, 4), "score": furthest}


def numbered(paragraphs: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """So many paragraphs, no two alike."""
    times = range(-(-count // len(paragraphs)))
    copies = [(t, f"{text} ({n})" if n else text) for n in times for t, text in paragraphs]
    return copies[:count]


def measure_large(arm: Arm, folder: Path, documents: int, queries: list[str]) -> dict[str, Any]:
    """Memory and speed over many documents: peaks after every tenth of them; then searches."""
    got = tell(arm, do="ingest", folder=str(folder), every=max(1, documents // 10))
    search = {"do": "search", "collection": got["collection"], "top_k": TOP_K}
    first = tell(arm, **search, queries=queries[:1])
    later = tell(arm, **search, queries=queries)
    took_ms = sorted(later["took_ms"])
    return {
        "cell": "large", "documents": got["documents"], "chunks": got["chunks"],
        "chunks_per_s": round(got["chunks"] / got["seconds"], 2),
        "rss_before_bytes": got["rss_before_bytes"], "peaks_bytes": got["peaks"],
        "first_search_ms": first["took_ms"][0], "search_peak_bytes": first["peak_bytes"],
        "search_p50_ms": took_ms[len(took_ms) // 2],
        "search_p95_ms": took_ms[len(took_ms) * 95 // 100],
    }  # fmt: skip


def show(row: dict[str, Any]) -> None:
    """One line per arm."""
    if row["cell"] == "large":
        sizes = [f"{b / 2**20:.0f}" for b in (row["rss_before_bytes"], *row["peaks_bytes"])]
        print(f"large: {row['chunks']} chunks, {row['chunks_per_s']:.1f} chunks/s; "
              f"MiB before and peaks: {' '.join(sizes)}; first search {row['first_search_ms']:.0f} "
              f"ms, peak {row['search_peak_bytes'] / 2**20:.0f} MiB, later p50 "
              f"{row['search_p50_ms']:.1f}, p95 {row['search_p95_ms']:.1f} ms",
              flush=True)  # fmt: skip
        return
    for name, arm in row["arms"].items():
        rate, added = arm["chunks_per_s"], arm["added_bytes"][0] / 2**20
        print(f"{row['cell']:>12}{name:>10}{arm['documents']:>7} files{arm['chunks']:>7} chunks "
              f"{rate[0]:>7.1f} chunks/s ({rate[1]:.1f}-{rate[2]:.1f}){added:>6.0f} MiB",
              flush=True)  # fmt: skip
    if "speedup" in row:
        print(f"{'':>12}{'speedup':>10} {row['speedup'][0]:.2f} "
              f"({row['speedup'][1]:.2f}-{row['speedup'][2]:.2f}), recall@{TOP_K} "
              f"{row['recall']:.4f}, scores within {row['score']:.1e}", flush=True)  # fmt: skip


def open_arm(
    name: str, checkout: Path, folder: Path, stack: ExitStack, mode: str = "vector"
) -> Arm:
    """An arm with a home of its own."""
    settings = {
        "home": str(folder / name / "home"), "cache": str(folder / name / "cache"),
        "model": {"name": str(resolve_model(EMBEDDED_MODEL, load_settings().cache))},
        "retrieval": {"mode": mode},
    }  # fmt: skip
    arm = Arm(name, "ingest", {"checkout": str(checkout), "open": settings}, folder)
    if arm.refused:
        arm.close()
        raise RuntimeError(f"arm {name}: {arm.refused}")
    stack.callback(arm.close)
    return arm


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=("ours", "baseline"),
                        default=["ours", "baseline"])  # fmt: skip
    parser.add_argument("--baseline", default="860e90b", help="commit of the arm of that name")
    parser.add_argument("--cells", nargs="*", choices=CELLS, default=list(CELLS))
    parser.add_argument("--paragraphs", type=int, default=600, help="of each cell")
    parser.add_argument("--large", type=int, default=20_000, help="paragraphs; 0 for none")
    parser.add_argument("--rounds", type=int, default=5, help="measured; one more warms up")
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, leave)
    os.environ.pop("OMP_NUM_THREADS", None)  # every arm may use all cores
    source, paragraphs = read_paragraphs()
    queries = [title for title, _ in paragraphs[: given.paragraphs]][
        :: max(1, given.paragraphs // QUERIES)
    ]
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkouts = {"ours": ROOT}
        if "baseline" in given.arms:
            made = stack.enter_context(checkout_of(given.baseline, folder / "checkout"))
            checkouts["baseline"] = made
        arms = [open_arm(name, checkouts[name], folder, stack) for name in given.arms]
        for cell in given.cells:
            write_cell(cell, paragraphs[: given.paragraphs], folder / cell)
            rows.append(measure(cell, arms, folder / cell, queries, given.rounds))
            show(rows[-1])
        if given.large and arms[0].name == "ours":
            many = folder / "many"  # not where the arm itself lives
            count = write_cell("paragraphs", numbered(paragraphs, given.large), many)
            arm = open_arm("large", ROOT, folder, stack, mode="hybrid")
            rows.append(measure_large(arm, many, count, queries))
            show(rows[-1])
    emit(
        {
            "benchmark": "ingest", "command": command_line(), "model": EMBEDDED_EMBEDDER,
            "baseline": commit_of(given.baseline), "rounds": given.rounds, "top_k": TOP_K,
            "seed": None,  # nothing is drawn
            "documents_from": source, **surroundings("transformers", "tokenizers", "chunkcache"),
            "rows": rows,
        },
        given.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
