"""Passages of equal score: by document and place in it, whatever numbers their entries got."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.ranking import Ranking
from chunkcache.retrieval.collection_index import _first
from chunkcache.retrieval.documents import vector_space
from chunkcache.retrieval.ties import StableOrder
from chunkcache_indexes.hybrid import reciprocal_rank_fusion
from chunkcache_indexes.lexical import LexicalIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.chunk import Chunk
    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.ingest import Ingestor

QUERY = "the lazy dog"
LINES = ["The lazy dog sleeps.", "A quick fox.", "The lazy dog sleeps."]
DOCUMENTS = 30  # 60 chunks tie, more than a search looks at at first


def ingest(ingestor: Ingestor, collection: str, seed: int) -> None:
    """The same documents in another order: other entries, another order in the indexes."""
    numbers = list(range(DOCUMENTS))
    random.Random(seed).shuffle(numbers)
    data = "\n".join(json.dumps({"text": line, "title": "Title"}) for line in LINES).encode()
    for n in numbers:
        ingestor.ingest_bytes(
            f"{n}.jsonl", data, collection=collection, attributes={"even": n % 2 == 0}
        )


@pytest.fixture
def shelves(ingestor: Ingestor, catalog: Catalog) -> list[str]:
    made = ["default", *(catalog.create_collection("public", name).id for name in "ab")]
    for seed, collection in enumerate(made):
        ingest(ingestor, collection, seed)
    return made


LINE_OF = {0: 0, len(LINES[0]) + 2: 1, len(LINES[0]) + len(LINES[1]) + 4: 2}


def ordinal_of(chunk: Chunk) -> int:
    return LINE_OF[chunk.start_char]


class Twin:
    """All chunks of collections, each scored by itself, in double precision, and sorted."""

    def __init__(self, catalog: Catalog, embedder: Any, collections: list[str]) -> None:
        self._query = embedder.embed_query(QUERY).astype("float64")
        self._of: dict[int, tuple[str, int, int]] = {}
        self._texts: dict[int, str] = {}
        self._vectors: dict[int, Any] = {}
        for number, name in enumerate(collections):
            _, entries = catalog.entries.all("public", name)
            found = catalog.entries.places(entries.tolist())
            self._of |= {entry: (*place, number) for entry, place in found.items()}
            self._texts |= catalog.entries.searched_texts("public", name, entries)
            present, vectors = catalog.entries.read(entries, vector_space(embedder))
            self._vectors |= dict(zip(present.tolist(), vectors.astype("float64"), strict=True))

    def ranked(self, mode: str, among: Any, depth: int) -> list[tuple[str, int, int]]:
        rankings = {"vector": self._cosines(), "lexical": self._words()}
        ordered = {
            name: sorted(
                (entry for entry in scores if among(self._of[entry])),
                key=lambda entry, scores=scores: (-round(scores[entry], 5), self._of[entry]),
            )[:depth]
            for name, scores in rankings.items()
        }
        if mode != "hybrid":
            return [self._of[entry] for entry in ordered[mode]]
        fused = reciprocal_rank_fusion(ordered.values())
        return [self._of[e] for e, _ in sorted(fused, key=lambda hit: (-hit[1], self._of[hit[0]]))]

    def _cosines(self) -> dict[int, float]:
        return {entry: float(vector @ self._query) for entry, vector in self._vectors.items()}

    def _words(self) -> dict[int, float]:
        index = LexicalIndex()
        index.add(list(self._texts), list(self._texts.values()))
        found = index.search(QUERY, len(self._texts))
        return dict(zip(found.ids.tolist(), found.scores.tolist(), strict=True))


def asked(place: tuple[str, int, int]) -> bool:
    return True


@pytest.mark.parametrize("top_k", [5, 40])
@pytest.mark.parametrize("mode", ["hybrid", "vector", "lexical"])
@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_equal_passages_come_by_document_and_place(
    make_retriever: Any, catalog: Catalog, embedder: Any, shelves: list[str],
    index: str, mode: str, top_k: int,
) -> None:  # fmt: skip
    retriever = make_retriever(mode=mode, index=index)
    depth = max(50, 2 * top_k)
    for name in shelves:
        chunks = retriever.search(QUERY, top_k=top_k, collection=name)
        twin = Twin(catalog, embedder, [name]).ranked(mode, asked, depth)[:top_k]
        assert [(c.document_id, ordinal_of(c)) for c in chunks] == [place[:2] for place in twin]
        scores = [chunk.score for chunk in chunks]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("mode", ["hybrid", "vector", "lexical"])
def test_equal_passages_of_several_collections_come_by_document_place_and_name(
    make_retriever: Any, catalog: Catalog, embedder: Any, shelves: list[str], mode: str
) -> None:
    retriever = make_retriever(mode=mode)
    for names in (shelves, shelves[::-1]):
        twin = Twin(catalog, embedder, names).ranked(mode, asked, 50)[:9]
        chunks = retriever.search(QUERY, top_k=9, collection=names[0], also=names[1:])
        found = [(c.document_id, ordinal_of(c), c.collection or names[0]) for c in chunks]
        assert found == [(document, ordinal, names[n]) for document, ordinal, n in twin]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "lexical"])
def test_equal_passages_that_pass_a_filter_come_by_document_and_place(
    make_retriever: Any, catalog: Catalog, embedder: Any, shelves: list[str], mode: str
) -> None:
    documents = catalog.documents("public", shelves[0])
    even = {one.document_id for one in documents if one.attributes["even"]}
    retriever = make_retriever(mode=mode)
    for name in shelves:
        twin = Twin(catalog, embedder, [name]).ranked(mode, lambda place: place[0] in even, 50)[:9]
        chunks = retriever.search(
            QUERY, top_k=9, collection=name, passes=lambda attributes: bool(attributes["even"])
        )
        assert [(c.document_id, ordinal_of(c)) for c in chunks] == [place[:2] for place in twin]


def test_a_threshold_and_weights_keep_the_order(make_retriever: Any, shelves: list[str]) -> None:
    retriever = make_retriever()
    for ranking in (Ranking(least_score=0.1), Ranking(weights=(3, 1)), Ranking(weights=(0, 1))):
        found = [
            [(c.document_id, c.start_char) for c in
             retriever.search(QUERY, top_k=9, collection=name, ranking=ranking)]
            for name in shelves
        ]  # fmt: skip
        assert found[0] == found[1] == found[2] == sorted(found[0])


def test_sorting_equals_the_twin_with_rounding_in_the_scores() -> None:
    rng = random.Random(0)
    for _ in range(200):
        entries = rng.sample(range(1000), rng.randrange(1, 30))
        exact = {entry: rng.choice([0.1, 0.2, 0.3, 7.0]) for entry in entries}
        hits = [(e, s * (1 + rng.choice([-1, 0, 1]) * 1e-7)) for e, s in exact.items()]
        place = {entry: (f"doc {entry % 7}", entry // 7, 0) for entry in entries}
        read: list[int] = []
        order = StableOrder(lambda some, place=place, read=read: read.extend(some) or place)
        depth = rng.randrange(1, 35)
        best = order.best(hits, depth)
        twin = sorted(entries, key=lambda entry: (-exact[entry], place[entry]))[:depth]
        assert [entry for entry, _ in best] == twin
        assert [score for _, score in best] == sorted((s for _, s in best), reverse=True)
        assert len(read) == len(set(read))


def test_places_of_all_ties_are_read_at_once() -> None:
    """Of two rankings that are fused, each place in the one ties with that in the other."""
    reads: list[list[int]] = []

    def read(some: Sequence[int]) -> dict[int, tuple[str, int, int]]:
        reads.append(list(some))
        return {entry: (f"doc {entry}", 0, 0) for entry in some}

    order = StableOrder(read)
    fused = reciprocal_rank_fusion([range(50), range(100, 150)])
    best = order.best(fused, 50, slack=0.0)
    assert [entry for entry, _ in best[:4]] == [0, 100, 1, 101]
    assert len(reads) == 1 and len(reads[0]) == 50, "no place beyond the cut is read"
    assert order.best(fused, 50, slack=0.0) == best and len(reads) == 1
    order.best([(7, 3.0), (8, 2.0), (9, 1.0)], 50)
    assert len(reads) == 1, "nothing ties"


def test_an_entry_that_is_gone_comes_last_among_its_equals() -> None:
    order = StableOrder(lambda some: {1: ("b", 0, 0), 2: ("a", 0, 0)})
    assert order.best([(3, 1.0), (1, 1.0), (2, 1.0), (4, 2.0)], 9) == [
        (4, 2.0), (2, 1.0), (1, 1.0), (3, 1.0),
    ]  # fmt: skip


def test_a_ranking_is_followed_to_the_end_of_the_tie_at_its_cut() -> None:
    scores = [9.0] * 3 + [5.0] * 40 + [4.0] + [1.0] * 20
    ranking = list(enumerate(scores))
    asked_for: list[int] = []

    def search(deep: int) -> list[tuple[int, float]]:
        asked_for.append(deep)
        return ranking[:deep]

    total = len(ranking)
    assert _first(search, 3, total, None) == ranking[:3] and asked_for == [4]
    assert _first(search, 5, total, None) == ranking[:43]
    assert _first(search, 44, total, None) == ranking[:44]
    assert _first(search, 50, total, None) == ranking
    assert _first(search, 99, total, None) == ranking
    odd = frozenset(range(1, total, 2))
    assert _first(search, 2, total, odd) == [hit for hit in ranking[:43] if hit[0] in odd]
    assert _first(search, 2, total, frozenset({60})) == [ranking[60]]
    assert _first(search, 2, total, frozenset()) == []
