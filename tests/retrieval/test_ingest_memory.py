"""What is in memory while a corpus is ingested and indexed does not grow with the corpus."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from chunkcache.chunk import Chunk
from chunkcache.protocol import DocumentInfo, GivenDocument
from chunkcache.retrieval import collection_index, pipeline
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.documents import Document, vector_space
from chunkcache.retrieval.embedder import HashingEmbedder
from chunkcache.retrieval.identity import document_of_file
from chunkcache.retrieval.ingest import Ingestor
from chunkcache.retrieval.prepared import Prepared
from chunkcache.retrieval.refresh import refresh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chunkcache.retrieval.retriever import Retriever

WHERE = ("public", "default")
KINDS = (Chunk, Document, DocumentInfo, Prepared)


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """`gc.get_objects` leaves out what there was before."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test's corpus is large beside."""
    monkeypatch.setattr(pipeline, "_BATCH_TEXTS", 16)
    monkeypatch.setattr(pipeline, "_AHEAD_ITEMS", 8)
    monkeypatch.setattr(collection_index, "_BATCH_ENTRIES", 16)


class Watched(HashingEmbedder):
    """Looks at what is in memory whenever it embeds."""

    def __init__(self, look: Callable[[], Any]) -> None:
        super().__init__(32)
        self._look = look

    def embed(self, texts: Any) -> Any:
        self._look()
        return super().embed(texts)


def numbered(count: int, first: int = 0) -> list[GivenDocument]:
    return [GivenDocument(id=f"{n}", text=f"The dog {n} is lazy.") for n in range(first, count)]


@pytest.mark.usefixtures("only_new_objects")
def test_documents_and_chunks_in_memory_are_those_of_three_batches(
    catalog: Catalog, splitter: Any, retrieval: Any
) -> None:
    most: Counter[type] = Counter()

    def look() -> None:
        nonlocal most
        most |= Counter(type(one) for one in gc.get_objects() if type(one) in KINDS)

    ingestor = Ingestor(catalog, splitter, Watched(look), retrieval())
    assert ingestor.ingest_texts(numbered(300)).added == 300
    assert all(0 < most[kind] <= 3 * 16 + 8 + 4 for kind in (Chunk, Document, Prepared))
    assert ingestor.ingest_texts(numbered(400, first=300)).added == 100  # beside those there are
    assert max(most.values()) <= 3 * 16 + 8 + 4


def test_the_bytes_of_files_are_let_go_once_they_are_read(
    catalog: Catalog, splitter: Any, retrieval: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A page may be a thousand times as long as its text."""
    monkeypatch.setattr(pipeline, "_AHEAD_BYTES", 1 << 18)
    for number in range(16):
        page = f"<p>Dog {number}.</p><!--{' ' * (1 << 18)}-->"
        (tmp_path / f"{number}.html").write_text(page)
    held: list[int] = []
    ingestor = Ingestor(
        catalog, splitter, Watched(lambda: held.append(tracemalloc.get_traced_memory()[0])),
        retrieval(),
    )  # fmt: skip
    ingestor.ingest_bytes("a.html", b"<p>Fox.</p>")  # what is loaded once
    tracemalloc.start()
    try:
        assert ingestor.ingest_paths([tmp_path]).added == 16
    finally:
        tracemalloc.stop()
    assert held[-1] < 4 << 18


@pytest.mark.usefixtures("small")
def test_an_index_takes_in_texts_and_vectors_in_batches(
    catalog: Catalog, ingestor: Ingestor, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingestor.ingest_texts(numbered(120))
    asked: list[int] = []
    for name in ("read", "searched_texts"):
        ask = getattr(catalog.entries, name)

        def noting(*args: Any, ask: Any = ask) -> Any:
            found = ask(*args)
            asked.append(len(found if isinstance(found, dict) else found[0]))
            return found

        monkeypatch.setattr(catalog.entries, name, noting)
    assert retriever.search("dog 77", top_k=1)[0].text == "The dog 77 is lazy."
    assert max(asked) == 16 and sum(asked) == 2 * 120


@pytest.mark.parametrize("documents", [10, 300])
def test_a_new_file_is_looked_for_without_reading_all_others(
    catalog: Catalog, ingestor: Ingestor, tmp_path: Path, documents: int
) -> None:
    """Counted in steps of SQLite's machine: else a folder costs the square of its files."""
    for number in range(documents):
        (tmp_path / f"{number}.txt").write_text(f"The dog {number} is lazy.")
    ingestor.ingest_paths([tmp_path])
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    connection = catalog._database._idle[-1]
    connection.set_progress_handler(step, 1)
    assert document_of_file(catalog, *WHERE, tmp_path / "new.txt", "0" * 64)[1] is False
    connection.set_progress_handler(None, 1)
    assert 0 < steps < 400


@pytest.mark.parametrize("documents", [10, 300])
def test_asking_whether_all_is_up_to_date_costs_the_same_however_much_there_is(
    catalog: Catalog, ingestor: Ingestor, splitter: Any, embedder: Any, documents: int
) -> None:
    """Counted in steps of SQLite's machine."""
    ingestor.ingest_texts(numbered(documents))
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    connection = catalog._database._idle[-1]
    connection.set_progress_handler(step, 1)
    refresh(catalog, splitter, embedder, *WHERE)
    connection.set_progress_handler(None, 1)
    assert 0 < steps < 200


def test_what_is_up_to_date_is_told_from_what_is_not(
    catalog: Catalog, ingestor: Ingestor, embedder: Any, splitter: Any
) -> None:
    """Names of splitters and embedders that come before and after those in use."""
    ingestor.ingest_texts(numbered(3))
    entries = set(catalog.entries.all(*WHERE)[1].tolist())
    space = vector_space(embedder)
    assert len(catalog.entries.without_vector(*WHERE, space)) == 0
    assert catalog.split_otherwise(*WHERE, splitter.fingerprint) == []
    for other in ("", space[:-1], f"{space}+", "~"):
        assert set(catalog.entries.without_vector(*WHERE, other).tolist()) == entries
    for other in ("", splitter.fingerprint[:-1], f"{splitter.fingerprint}+", "~"):
        assert len(catalog.split_otherwise(*WHERE, other)) == 3
    assert np.array_equal(np.sort(catalog.entries.without_vector(*WHERE, "")), sorted(entries))


@pytest.mark.parametrize("documents", [10, 300])
def test_a_few_chunks_are_read_without_reading_all_others(
    catalog: Catalog, ingestor: Ingestor, documents: int
) -> None:
    ingestor.ingest_texts(numbered(documents))
    entries = catalog.entries.all(*WHERE)[1][:3].tolist()
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    connection = catalog._database._idle[-1]
    connection.set_progress_handler(step, 1)
    assert len(catalog.entries.chunks(*WHERE, entries)) == 3
    assert len(catalog.entries.searched_texts(*WHERE, entries)) == 3
    assert len(catalog.entries.in_any_collection("public", entries)) == 3
    connection.set_progress_handler(None, 1)
    assert 0 < steps < 900
