"""Clients that bring their own passages: TTFT with and without recognising them, and the search.

    python benchmarks/bench_match.py [--rounds 5] [--out benchmarks/results/bench_match.jsonl]

TTFT: a user turn of ten known, warm passages and a question, as a pipeline writes it. Each round
draws passages and asks in three ways, in an order of its own: recognised (15 % repaired),
recognised without repair, and not looked for. Nobody takes or leaves a prefix.

Search: `--chunks` chunks of 256 tokens in a catalog on disk; token ids are drawn as words are
(Zipf). Milliseconds to find what a message holds: nothing (100, 4,000 and 30,000 tokens), and
30,000 tokens that are passages for the most part. Building the index is timed once.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from passages import Passages
from reporting import command_line, emit, surroundings

from chunkcache import ChunkCache
from chunkcache.chunk import Chunk
from chunkcache.config import Settings, load_settings
from chunkcache.protocol import AnswerFinished, AnswerRequest, ChunkCacheOptions, Message, Sampling
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.documents import Document, DocumentKind
from chunkcache.retrieval.passage_matcher import PassageMatcher
from chunkcache.service.asking import Measure

WAYS: dict[str, dict[str, Any]] = {
    "recognised": {"budget": 0.15},
    "without repair": {"policy": "none"},
    "off": {"match_messages": False},
}
QUESTION = "What is said about it in the passages above? Answer in one sentence."
CHUNK_TOKENS = 256
DOCUMENT_CHUNKS = 100
VOCABULARY = 49_152


def turn(texts: list[str], number: int) -> str:
    """A user turn as a pipeline that stuffs documents into its prompt writes it."""
    body = "\n\n".join(texts)
    return f"Request {number}. Use the context.\n\n{body}\n\nQuestion: {QUESTION}\nAnswer:"


def ask(cache: ChunkCache, content: str, options: dict[str, Any]) -> AnswerFinished:
    """One answer of one token, no passages beside those in the message."""
    request = AnswerRequest(
        messages=[Message(role="user", content=content)],
        top_k=0,
        sampling=Sampling(max_tokens=1),
        options=ChunkCacheOptions(**options),
    )
    measure = Measure(takes_no_prefix=True, leaves_no_prefix=True)
    (*_, last) = cache.start(request, measure=measure).events()
    assert isinstance(last, AnswerFinished)
    return last


def measure_ttft(settings: Settings, given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds to the first token by way, and what was served from the cache."""
    pool = Passages(settings, given.set, given.tokens, 4 * given.passages)
    draw = random.Random(given.seed)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    told: dict[str, Any] = {}
    with ChunkCache(settings) as cache:
        cache.ingest_texts(pool.documents)
        cache.warm()
        for number in range(given.rounds + 1):
            texts = [d.text for d in draw.sample(pool.documents, given.passages)]
            ways = list(WAYS)
            draw.shuffle(ways)
            for way in ways:
                report = ask(cache, turn(texts, number), WAYS[way]).report
                if number:  # the first round warms up
                    times[way].append(report.timings.ttft_ms)
                told[way] = {
                    "prompt_tokens": report.prompt_tokens,
                    "reused_tokens": report.reused_tokens,
                    "recomputed_tokens": report.recomputed_tokens,
                    "spans": sum(span.matched for span in report.spans),
                    "layout_ms": round(report.timings.layout_ms, 2),
                }
    return {
        way: {"ttft_ms": [round(ms, 1) for ms in spread(times[way])], **told[way]} for way in WAYS
    }


def spread(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [statistics.median(values), min(values), max(values)]


def words(draw: np.random.Generator, count: int) -> np.ndarray:
    """Token ids, few of them often and many seldom."""
    return np.minimum(draw.zipf(1.2, count), VOCABULARY).astype(np.uint32)


def fill(catalog: Catalog, chunks: int, seed: int) -> None:
    """Documents of `DOCUMENT_CHUNKS` chunks each."""
    draw = np.random.default_rng(seed)
    vectors = np.zeros((DOCUMENT_CHUNKS, 1), np.float32)
    for number in range(chunks // DOCUMENT_CHUNKS):
        name = f"doc-{number}"
        made = [
            Chunk(f"{name}-{i}", tuple(words(draw, CHUNK_TOKENS).tolist()), "", document_id=name)
            for i in range(DOCUMENT_CHUNKS)
        ]
        document = Document(name, name, "", name, 0, DocumentKind.PLAIN, "")
        catalog.put_document("t", "default", document, made, vectors, splitter="s", space="none")


def measure_search(given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a search by message, and what the index costs."""
    draw = np.random.default_rng(given.seed + 1)
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog(Path(folder) / "catalog.sqlite")
        fill(catalog, given.chunks, given.seed)
        matcher = PassageMatcher(catalog, 2**30)
        began = time.perf_counter()
        matcher.find("t", words(draw, 100).tolist())
        build_s = time.perf_counter() - began
        known = [c.token_ids for c in itertools.islice(catalog.chunks("t", "default"), 200)]
        passages = random.Random(given.seed).sample(known, 110)
        messages = {f"{n:,} tokens of nothing known": words(draw, n).tolist()
                    for n in (100, 4000, 30_000)}  # fmt: skip
        messages["110 passages in 30,000 tokens"] = [
            token for ids in passages for token in (*ids, *words(draw, 17).tolist())
        ]
        found = {name: len(matcher.find("t", ids)) for name, ids in messages.items()}
        assert list(found.values()) == [0, 0, 0, 110], found
        search_ms = {
            name: [round(ms, 3) for ms in spread([timed(matcher, ids) for _ in range(21)])]
            for name, ids in messages.items()
        }
        size = matcher._tenants["t"].size_bytes
        catalog.close()
    return {"chunks": given.chunks, "build_s": round(build_s, 2), "index_mib": size // 2**20,
            "search_ms": search_ms}  # fmt: skip


def timed(matcher: PassageMatcher, message: list[int]) -> float:
    """Milliseconds of one search."""
    began = time.perf_counter()
    matcher.find("t", message)
    return (time.perf_counter() - began) * 1e3


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passages", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=512, help="of a passage")
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--set", default="squad", help="question set the passages are from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    search = measure_search(given)
    print(f"{given.chunks:,} chunks: index in {search['build_s']} s, {search['index_mib']} MiB")
    for name, (median, least, most) in search["search_ms"].items():
        print(f"{name:>36}{median:>10.2f} ms ({least:.2f} to {most:.2f})")
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            home=Path(folder), retrieval={"chunk_tokens": given.tokens, "embedder": "hashing:64"}
        )
        ttft = measure_ttft(settings, given)
    for way, row in ttft.items():
        median, least, most = row["ttft_ms"]
        print(f"{way:>16}{median:>9.0f} ms ({least:.0f} to {most:.0f}), {row['spans']} spans, "
              f"{row['reused_tokens']} of {row['prompt_tokens']} tokens reused")  # fmt: skip
    emit(
        {
            "benchmark": "match", "command": command_line(), "passages": given.passages,
            "passage_tokens": given.tokens, "rounds": given.rounds, "seed": given.seed,
            "ttft": ttft, "search": search, **surroundings("transformers", "numpy"),
        },
        given.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
