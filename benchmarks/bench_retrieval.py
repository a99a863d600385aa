"""Recall and latency of the vector indexes: flat against HNSW, beside the lexical index.

    python benchmarks/bench_retrieval.py [--corpus passages.jsonl] [--out results.jsonl]

With a corpus (JSON lines with `text` and `title`, plain or .gz), passages are embedded with the
embedded embedder and their titles are the queries. Without one, vectors are random and clustered:
good for latency, but their recall says little of real ones. Prints a table, then one JSON line.
Recall is measured against the slow twin, the flat index, in the same run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from reporting import command_line, emit, surroundings

from chunkcache.config import EMBEDDED_EMBEDDER
from chunkcache.retrieval.embedder import open_embedder
from chunkcache_indexes.ann import HnswIndex
from chunkcache_indexes.flat import FlatIndex
from chunkcache_indexes.lexical import LexicalIndex
from chunkcache_indexes.recall import recall_at_k

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chunkcache_indexes.base import VectorIndex

K = 10
SEED = 1
QUERIES = 200
RANDOM_VECTORS = 20_000
DIM = 384


def read_corpus(path: Path, limit: int) -> list[dict[str, str]]:
    """The first `limit` passages."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        return [json.loads(line) for _, line in zip(range(limit), lines, strict=False)]


def random_vectors(count: int, seed: int) -> np.ndarray:
    """Unit vectors around 200 centres."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(200, DIM))
    vectors = centres[draw.integers(0, 200, count)] + 0.8 * draw.normal(size=(count, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors, np.float32)


def median_ms(search: Callable[[Any], object], queries: Iterable[Any]) -> float:
    """Milliseconds of one query, asked alone."""
    samples = []
    for query in queries:
        began = time.perf_counter()
        search(query)
        samples.append(time.perf_counter() - began)
    return 1e3 * statistics.median(samples)


def measure_vectors(vectors: np.ndarray, queries: np.ndarray) -> list[dict[str, Any]]:
    """One row for the flat index, and one for HNSW per `ef_search`."""
    dim = vectors.shape[1]
    flat = FlatIndex(dim)
    indexes: dict[str, VectorIndex] = {"flat": flat}
    indexes |= {f"hnsw ef={ef}": HnswIndex(dim, ef_search=ef) for ef in (32, 128, 512)}
    rows = []
    for name, index in indexes.items():
        began = time.perf_counter()
        index.add(range(len(vectors)), vectors)
        build_s = time.perf_counter() - began
        search = partial(index.search, k=K)
        search(queries[:1])
        rows.append(
            {
                "index": name,
                "build_s": round(build_s, 2),
                "query_ms": round(median_ms(search, (query[None] for query in queries)), 3),
                "recall": round(recall_at_k(index, flat, queries, K), 4),
            }
        )
    return rows


def measure_words(texts: list[str], queries: list[str]) -> dict[str, Any]:
    """The row of the lexical index; its building includes the score matrix."""
    index = LexicalIndex()
    began = time.perf_counter()
    index.add(range(len(texts)), texts)
    index.search(queries[0], K)
    build_s = time.perf_counter() - began
    query_ms = median_ms(lambda query: index.search(query, K), queries)
    return {"index": "lexical", "build_s": round(build_s, 2), "query_ms": round(query_ms, 3)}


def main() -> int:
    """Measure and print. Returns: the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="JSON lines with text and title")
    parser.add_argument("--limit", type=int, default=2000, help="passages of the corpus taken")
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    if given.corpus is None:
        vectors, queries = random_vectors(RANDOM_VECTORS, SEED), random_vectors(QUERIES, SEED + 1)
        rows = measure_vectors(vectors, queries)
    else:
        passages = read_corpus(given.corpus, given.limit)
        texts = [passage["text"] for passage in passages]
        titles = [passage["title"] for passage in passages[:: max(1, len(passages) // QUERIES)]]
        embedder = open_embedder(EMBEDDED_EMBEDDER)
        vectors, queries = embedder.embed(texts), embedder.embed(titles)
        rows = [*measure_vectors(vectors, queries), measure_words(texts, titles)]
    print(f"{len(vectors)} vectors of {vectors.shape[1]}, {len(queries)} queries, k = {K}")
    print(f"{'index':<12}{'build s':>9}{'query ms':>10}{'recall':>9}")
    for row in rows:
        recall = f"{row['recall']:.4f}" if "recall" in row else "-"
        print(f"{row['index']:<12}{row['build_s']:>9.2f}{row['query_ms']:>10.3f}{recall:>9}")
    emit(
        {
            "benchmark": "retrieval",
            "command": command_line(),
            "seed": SEED,
            "model": EMBEDDED_EMBEDDER if given.corpus else None,
            "vectors": len(vectors),
            "corpus": given.corpus.name if given.corpus else "random, clustered",
            "k": K,
            **surroundings("numpy", "faiss-cpu", "bm25s"),
            "rows": rows,
        },
        given.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
