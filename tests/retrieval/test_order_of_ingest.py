"""The same corpus gives the same answers whatever way it came into the catalog."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.ingest import Ingestor

WORDS = ["fox", "dog", "cache", "key", "value", "path", "join", "quick", "lazy", "token", "page"]
QUERIES = ["lazy dog", "cache of pages", "join a path", "quick brown fox", "value and token"]
WAYS = ["in one go", "shuffled", "in pieces", "reopened", "edited"]
MODES = ["vector", "lexical", "hybrid"]


def corpus() -> dict[str, bytes]:
    """Texts of few words, so that many score alike; enough of them that indexes are saved."""
    draw = random.Random(0)
    return {
        f"{number}.jsonl": "\n".join(
            json.dumps({"text": " ".join(draw.choices(WORDS, k=draw.randrange(3, 9)))})
            for _ in range(10)
        ).encode()
        for number in range(16)
    }


def come_by(ingestor: Ingestor, catalog: Catalog, way: str, open_retriever: Any) -> str:
    """A collection that was filled in one of the ways."""
    collection = catalog.create_collection("public", way.replace(" ", "-")).id
    texts = corpus()
    names = list(texts)
    if way != "in one go":
        random.Random(way).shuffle(names)
    retriever = open_retriever()
    for count, name in enumerate(names):
        if way == "edited" and count % 3 == 0:
            ingestor.ingest_bytes(name, b'{"text": "another fox before"}', collection=collection)
        ingestor.ingest_bytes(name, texts[name], collection=collection)
        if way in ("in pieces", "reopened") and count % 5 == 4:
            retriever = open_retriever() if way == "reopened" else retriever
            retriever.search("fox", top_k=1, collection=collection)  # takes in what there is by now
    return str(collection)


def test_exact_indexes_answer_alike_whatever_the_order(
    make_retriever: Any, ingestor: Ingestor, catalog: Catalog
) -> None:
    shelves = {way: come_by(ingestor, catalog, way, make_retriever) for way in WAYS}
    for mode in MODES:
        found: dict[str, list[Any]] = {}
        for way in WAYS:
            for name in (way, f"{way}, opened again"):
                retriever = make_retriever(mode=mode)
                found[name] = [
                    [(c.document_id, c.start_char, c.text) for c in
                     retriever.search(query, top_k=12, collection=shelves[way])]
                    for query in QUERIES
                ]  # fmt: skip
        expected = found[WAYS[0]]
        assert all(len(hits) == 12 for hits in expected)
        assert {name for name, hits in found.items() if hits != expected} == set(), mode
