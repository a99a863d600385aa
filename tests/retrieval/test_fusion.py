"""Several collections are ranked as one would be that holds all their documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from chunkcache.errors import NotFound
from chunkcache.ranking import Ranking

if TYPE_CHECKING:
    from chunkcache.chunk import Chunk
    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.ingest import Ingestor

QUERY = "the path of the lazy dog"


@pytest.fixture
def shelves(ingestor: Ingestor, catalog: Catalog, topics: Any) -> list[str]:
    """All topics in `default`, and the same ones, one and the others, in two collections."""
    own = [catalog.create_collection("public", name).id for name in ("one", "rest")]
    for place, (name, text) in enumerate(topics.items()):
        for collection in ("default", own[place > 0]):
            ingestor.ingest_bytes(name, text.encode(), collection=collection)
    return own


def ranked(chunks: list[Chunk]) -> dict[str, float]:
    return {chunk.title: chunk.score for chunk in chunks}


@pytest.mark.parametrize("mode", ["hybrid", "vector", "lexical"])
def test_collections_rank_as_one(make_retriever: Any, shelves: list[str], mode: str) -> None:
    retriever = make_retriever(mode=mode)
    weights = Ranking(weights=(2, 1)) if mode == "hybrid" else None  # or two are as good
    one = retriever.search(QUERY, top_k=3, ranking=weights)
    several = retriever.search(
        QUERY, top_k=3, collection=shelves[0], also=shelves[1:], ranking=weights
    )
    assert ranked(several) == pytest.approx(ranked(one))
    assert list(ranked(several)) == list(ranked(one))
    assert {chunk.collection for chunk in several} <= {"", shelves[1]}
    assert [chunk.collection for chunk in one] == [""] * len(one)


def test_a_collection_named_twice_is_searched_once(make_retriever: Any, shelves: list[str]) -> None:
    retriever = make_retriever()
    twice = retriever.search(QUERY, top_k=9, also=["default", "default"])
    assert twice == retriever.search(QUERY, top_k=9)
    with pytest.raises(NotFound, match="vs_none"):
        retriever.search(QUERY, top_k=9, also=["vs_none"])


def test_a_threshold_is_a_cosine_whatever_the_mode(make_retriever: Any, shelves: list[str]) -> None:
    cosines = ranked(make_retriever(mode="vector").search(QUERY, top_k=9))
    least = sorted(cosines.values())[-2]
    for mode in ("hybrid", "vector", "lexical"):
        found = make_retriever(mode=mode).search(QUERY, top_k=9, ranking=Ranking(least_score=least))
        assert ranked(found) == {t: s for t, s in cosines.items() if s >= least}
    none = make_retriever().search(QUERY, top_k=9, ranking=Ranking(least_score=1.0))
    assert none == []


def test_weights_choose_between_vectors_and_words(make_retriever: Any, shelves: list[str]) -> None:
    for mode, weights in {"vector": (1.0, 0.0), "lexical": (0.0, 1.0)}.items():
        alone = make_retriever(mode=mode).search(QUERY, top_k=9)
        weighted = make_retriever(mode="hybrid").search(
            QUERY, top_k=9, ranking=Ranking(weights=weights)
        )
        assert list(ranked(weighted)) == list(ranked(alone))
        assert weighted[0].score == pytest.approx(1 / 61)


@pytest.mark.parametrize(
    "wish",
    [{"least_score": 0.5, "weights": (1, 1)}, {"weights": (0, 0)}, {"weights": (-1, 1)},
     {"least_score": 0}, {"least_score": 2}],
)  # fmt: skip
def test_rankings_that_mean_nothing_are_refused(wish: Any) -> None:
    with pytest.raises(ValidationError):
        Ranking(**wish)
