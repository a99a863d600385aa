"""Search: what comes back is what the catalog holds now."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.ingest import Ingestor
from chunkcache.retrieval.retriever import Retriever
from chunkcache.retrieval.splitter import Splitter
from chunkcache_indexes.hybrid import reciprocal_rank_fusion

if TYPE_CHECKING:
    from pathlib import Path


def found(retriever: Retriever, query: str, top_k: int = 3, **where: str) -> list[str]:
    return [chunk.title for chunk in retriever.search(query, top_k=top_k, **where)]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "lexical"])
@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_the_passage_that_answers_comes_first(
    ingestor: Ingestor, make_retriever: Any, mode: str, index: str, fill: Any
) -> None:
    fill(ingestor)
    retriever = make_retriever(mode=mode, index=index)
    for query, title in {
        "How do I use os.path.join?": "paths.txt", "json.dumps": "json.txt",
        "a fox that jumps": "fox.txt", "lazy dog": "dog.txt",
    }.items():  # fmt: skip
        chunks = retriever.search(query, top_k=3)
        assert chunks[0].title == title
        scores = [chunk.score for chunk in chunks]
        assert scores == sorted(scores, reverse=True) and scores[0] > 0


def test_hybrid_fuses_both_rankings(
    ingestor: Ingestor, make_retriever: Any, fill: Any, topics: Any
) -> None:
    fill(ingestor)
    query = "the computed path of the dog"
    order = {title: place for place, title in enumerate(topics)}
    rankings = [
        [order[title] for title in found(make_retriever(mode=mode), query, 10)]
        for mode in ("vector", "lexical")
    ]
    expected = dict(reciprocal_rank_fusion(rankings))
    chunks = make_retriever(mode="hybrid").search(query, top_k=10)
    assert {order[c.title]: c.score for c in chunks} == pytest.approx(expected)


def test_top_k_bounds_the_result_and_few_chunks_are_all_returned(
    ingestor: Ingestor, retriever: Retriever, fill: Any
) -> None:
    fill(ingestor)
    assert len(found(retriever, "the dog", 2)) == 2
    assert len(found(retriever, "the dog", 64)) == 5


def test_an_empty_collection_has_no_passages_and_no_files(
    retriever: Retriever, catalog: Catalog, tmp_path: Path, index_files: Any
) -> None:
    own = catalog.create_collection("public", "own").id
    assert retriever.search("anything", top_k=3) == []
    assert retriever.search("anything", top_k=3, collection=own) == []
    assert index_files(tmp_path) == []


def test_bad_questions_are_refused(retriever: Retriever) -> None:
    with pytest.raises(InvalidRequest, match="top_k: got 0"):
        retriever.search("dog", top_k=0)
    for query in ("", " \n"):
        with pytest.raises(InvalidRequest, match="query"):
            retriever.search(query, top_k=1)
    with pytest.raises(InvalidRequest, match="valid Unicode"):
        retriever.search("half \ud83d", top_k=1)


def test_an_unknown_collection_is_not_found_and_makes_no_folder(
    retriever: Retriever, tmp_path: Path
) -> None:
    for name in ("vs_none", "../escape"):
        with pytest.raises(NotFound):
            retriever.search("dog", top_k=1, collection=name)
    assert not (tmp_path / "home" / "indexes").exists()


def test_changes_show_in_the_next_search(
    ingestor: Ingestor, retriever: Retriever, catalog: Catalog, fill: Any
) -> None:
    fill(ingestor)
    assert found(retriever, "lazy dog", 1) == ["dog.txt"]
    ingestor.ingest_bytes("new.txt", b"lazy dog lazy dog")
    assert found(retriever, "lazy dog", 1) == ["new.txt"]
    ingestor.ingest_bytes("new.txt", b"nothing of that")
    assert found(retriever, "lazy dog", 1) == ["dog.txt"]
    (dog,) = (d for d in catalog.documents("public", "default") if d.title == "dog.txt")
    catalog.remove_document(dog.document_id, "public", "default")
    assert "dog.txt" not in found(retriever, "lazy dog", 64)


def test_tenants_and_collections_do_not_see_each_other(
    ingestor: Ingestor, retriever: Retriever, catalog: Catalog, fill: Any
) -> None:
    own = catalog.create_collection("t", "own").id
    fill(ingestor, tenant="t", collection=own)
    ingestor.ingest_bytes("x.txt", b"their lazy dog", tenant="other")
    assert found(retriever, "lazy dog", 9, tenant="other") == ["x.txt"]
    assert found(retriever, "lazy dog", 9, tenant="t") == []
    assert len(found(retriever, "lazy dog", 9, tenant="t", collection=own)) == 5
    with pytest.raises(NotFound):
        retriever.search("dog", top_k=1, tenant="other", collection=own)


def test_the_same_text_twice_is_found_twice(ingestor: Ingestor, retriever: Retriever) -> None:
    for name in ("a.txt", "b.txt"):
        ingestor.ingest_bytes(name, b"The lazy dog.")
    assert sorted(found(retriever, "lazy dog")) == ["a.txt", "b.txt"]


# ---------------------------------------------------------------- concurrency


@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_searches_and_ingests_side_by_side_never_show_removed_text(
    ingestor: Ingestor, make_retriever: Any, index: str, fill: Any
) -> None:
    """A version that was replaced before a search began must not be in its result."""
    retriever = make_retriever(index=index)
    fill(ingestor)
    failures: list[BaseException] = []
    committed = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal committed
        try:
            for version in range(1, 25):
                ingestor.ingest_bytes("moving.txt", f"zebra version {version}".encode())
                committed = version
        except BaseException as error:
            failures.append(error)
        finally:
            stop.set()

    def search() -> None:
        try:
            while not stop.is_set():
                at_least = committed
                for chunk in retriever.search("zebra version", top_k=3):
                    if chunk.title == "moving.txt":
                        assert int(chunk.text.split()[-1]) >= at_least
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write), *(threading.Thread(target=search) for _ in range(3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert retriever.search("zebra version", top_k=1)[0].text == "zebra version 24"


def test_a_document_replaced_between_index_and_catalog_is_searched_again(
    ingestor: Ingestor,
    retriever: Retriever,
    catalog: Catalog,
    monkeypatch: pytest.MonkeyPatch,
    fill: Any,
) -> None:
    fill(ingestor)
    retriever.search("lazy dog", top_k=1)
    real = type(catalog.entries).chunks
    raced = []

    def replaced_first(self: Any, tenant: str, collection: str, entries: Any) -> Any:
        if not raced:
            raced.append(True)
            ingestor.ingest_bytes("dog.txt", b"The lazy dog, edited.")
        return real(self, tenant, collection, entries)

    monkeypatch.setattr("chunkcache.retrieval.entries.EntryTable.chunks", replaced_first)
    (chunk,) = retriever.search("lazy dog", top_k=1)
    assert chunk.text == "The lazy dog, edited."


@pytest.mark.parametrize("mode", ["hybrid", "vector", "lexical"])
def test_only_documents_that_pass_are_found(
    catalog: Catalog,
    splitter: Any,
    embedder: Any,
    retrieval: Any,
    ingestor: Ingestor,
    tmp_path: Path,
    mode: str,
) -> None:
    """However far down the ranking they stand: here behind two hundred better ones."""
    for number in range(200):
        ingestor.ingest_bytes(f"{number}.txt", f"cats and cats {number}".encode())
    wanted = ingestor.ingest_bytes("far.txt", b"dogs, and one of the cats", attributes={"n": 1})
    settings = retrieval(mode=mode)
    retriever = Retriever(catalog, embedder, tmp_path / "indexes", settings, splitter)

    def titles(passes: Any) -> list[str]:
        return [c.document_id for c in retriever.search("cats and cats", top_k=3, passes=passes)]

    assert titles(lambda a: a.get("n") == 1) == [wanted.document_id]
    assert titles(lambda a: a.get("n") == 2) == []
    assert len(titles(lambda a: True)) == 3


QUEUES = """# Queues

The service has three, and none of them is the last of the three.

## Orders queue

The orders of the day wait here until they are packed.

### Limit

At most 500 of the messages; then senders are told to wait.

## Audit queue

The deeds of the day wait here until they are written.

### Limit

At most 50 of the messages; then senders are told to wait.

## Mail queue

The letters of the day wait here until they are sent.

### Limit

At most 5000 of the messages; then senders are told to wait.
"""


@pytest.mark.parametrize("mode", ["lexical", "vector", "hybrid"])
@pytest.mark.parametrize(
    ("queue", "limit"), [("audit", "50 "), ("orders", "500 "), ("mail", "5000 ")]
)
def test_a_passage_is_found_by_the_headings_it_stands_under(
    catalog: Catalog, tokenizer: Any, embedder: Any, retrieval: Any, tmp_path: Path,
    mode: str, queue: str, limit: str,
) -> None:  # fmt: skip
    """Passages that differ in nothing but a number: only their sections tell them apart."""
    splitter = Splitter(tokenizer, 56)
    Ingestor(catalog, splitter, embedder, retrieval()).ingest_bytes("queues.md", QUEUES.encode())
    retriever = Retriever(catalog, embedder, tmp_path / "indexes", retrieval(mode=mode), splitter)
    (best,) = retriever.search(f"limit of the {queue} queue?", top_k=1)
    assert f"At most {limit}" in best.text
    assert best.headings[0].lower().startswith(queue)
