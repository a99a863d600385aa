"""Many documents at once: the same as one after the other, in order, and bounded."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from chunkcache.errors import InvalidRequest, StoreError
from chunkcache.protocol import GivenDocument
from chunkcache.retrieval import catalog_sql as sql
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.documents import vector_space
from chunkcache.retrieval.embedder import HashingEmbedder
from chunkcache.retrieval.ingest import Ingestor
from chunkcache.retrieval.pipeline import embed_beside, read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

WHERE = ("public", "default")


@dataclass
class Item:
    number: int
    texts: list[str] = field(default_factory=list)


def embedded(embedder: Any, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
    """One by one."""
    for some, vectors in embed_beside(embedder, items):
        assert 0 < len(some) <= 32
        yield from ((item, vectors) for item in some)


class Calls(HashingEmbedder):
    """Notes what each call is given."""

    def __init__(self) -> None:
        super().__init__(64)
        self.calls: list[list[str]] = []

    def embed(self, texts: Any) -> Any:
        self.calls.append(list(texts))
        return super().embed(texts)


# ---------------------------------------------------------------- reading


def test_what_is_read_ahead_comes_in_order() -> None:
    second_is_read = threading.Event()

    def read(number: int) -> int:
        if number == 0:
            assert second_is_read.wait(30)  # by another thread, while this one is held up
        if number == 1:
            second_is_read.set()
        return number * number

    found = list(read_ahead(read, ((1, number) for number in range(40))))
    assert found == [number * number for number in range(40)]


def test_no_more_is_read_ahead_than_there_is_room_for() -> None:
    given: list[int] = []

    def items() -> Iterator[tuple[int, int]]:
        for number in itertools.count():
            given.append(number)
            yield 3 << 20, number

    reading = read_ahead(lambda number: number, items())
    assert [next(reading) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(given) <= 5 + 3  # three of 3 MiB are more than 8 MiB
    reading.close()  # type: ignore[attr-defined]


def test_a_failure_comes_in_its_turn() -> None:
    def read(number: int) -> int:
        if number == 3:
            raise StoreError("the disk is gone")
        return number

    reading = read_ahead(read, ((1, number) for number in range(100)))
    assert [next(reading) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StoreError, match="the disk is gone"):
        next(reading)


# ---------------------------------------------------------------- embedding


def test_texts_of_many_items_are_embedded_together_and_each_once() -> None:
    embedder = Calls()
    items = [Item(n, [f"word {n} {part}" for part in range(n % 4)] + ["alike"]) for n in range(400)]
    found = list(embedded(embedder, items))
    assert [item.number for item, _ in found] == list(range(400))
    for item, vectors in found:
        for text in item.texts:
            assert vectors[text].tolist() == HashingEmbedder(64).embed([text])[0].tolist()
    assert max(map(len, embedder.calls)) > 100 and len(embedder.calls) < 12
    for call in embedder.calls:
        assert len(call) == len(set(call))


def test_items_without_texts_keep_their_place_and_cost_nothing() -> None:
    embedder = Calls()
    found = [item.number for item, _ in embedded(embedder, [Item(n) for n in range(50)])]
    assert found == list(range(50)) and embedder.calls == []


def test_an_endless_source_is_taken_in_bounded_parts() -> None:
    taken: list[int] = []

    def items() -> Iterator[Item]:
        for number in itertools.count():
            taken.append(number)
            yield Item(number, [f"word {number}"])

    embedding = embedded(Calls(), items())
    for _ in range(2000):
        next(embedding)
    assert len(taken) <= 2000 + 3 * 256
    embedding.close()  # type: ignore[attr-defined]


def test_what_was_embedded_before_a_failure_is_given_out() -> None:
    class Failing(Calls):
        def embed(self, texts: Any) -> Any:
            if any("word 40" in text for text in texts):
                raise RuntimeError("out of memory")
            return super().embed(texts)

    found = []
    with pytest.raises(RuntimeError, match="out of memory"):
        for item, _ in embedded(Failing(), [Item(n, [f"word {n}"]) for n in range(500)]):
            found.append(item.number)
    assert found == list(range(len(found))) and 0 < len(found) <= 40


# ---------------------------------------------------------------- documents


def write_folder(folder: Path, long_text: Any) -> list[Path]:
    folder.mkdir()
    for number in range(60):
        text = long_text(*range(number, number + number % 7))
        (folder / f"{number:02}.txt").write_text(text or "\0")  # each seventh cannot be read
    return sorted(folder.iterdir())


def stored(catalog: Catalog, embedder: Any) -> dict[str, list[tuple[str, list[float]]]]:
    """Texts and vectors of the chunks, in order, by title."""
    _, entries = catalog.entries.all(*WHERE)
    present, vectors = catalog.entries.read(entries, vector_space(embedder))
    by_entry = dict(zip(present.tolist(), vectors.tolist(), strict=True))
    found: dict[str, list[Any]] = {}
    for entry, chunk in catalog.entries.chunks(*WHERE, entries).items():
        found.setdefault(chunk.title, []).append((chunk.start_char, chunk.text, by_entry[entry]))
    return {title: sorted(chunks) for title, chunks in found.items()}


def test_a_folder_is_stored_as_its_files_one_by_one_are(
    ingestor: Ingestor, catalog: Catalog, embedder: Any, splitter: Any, retrieval: Any,
    tmp_path: Path, long_text: Any,
) -> None:  # fmt: skip
    paths = write_folder(tmp_path / "docs", long_text)
    report = ingestor.ingest_paths([tmp_path / "docs"])
    twin = Catalog(tmp_path / "twin.sqlite")
    slow = Ingestor(twin, splitter, embedder, retrieval())
    added = [slow.ingest_paths([path]) for path in paths]
    together = stored(catalog, embedder)
    assert together == stored(twin, embedder)
    assert len(together) == report.added == sum(one.added for one in added) == 51
    assert report.problems == [problem for one in added for problem in one.problems]
    assert (report.skipped, report.chunks) == (9, sum(one.chunks for one in added))
    assert [d.document_id for d in catalog.documents(*WHERE)] == [
        d.document_id for d in twin.documents(*WHERE)
    ]
    twin.close()


def test_progress_is_told_of_what_is_written(
    ingestor: Ingestor, catalog: Catalog, tmp_path: Path, long_text: Any
) -> None:
    write_folder(tmp_path / "docs", long_text)
    readable = 0

    def told(done: int, total: int, name: str) -> None:
        nonlocal readable
        readable += int(name[-6:-4]) % 7 > 0
        assert len(catalog.documents(*WHERE)) >= readable and total == 60

    ingestor.ingest_paths([tmp_path / "docs"], on_progress=told)
    assert readable == 51


def test_documents_are_synced_together_and_never_so_many_that_others_wait_long(
    ingestor: Ingestor, catalog: Catalog, tmp_path: Path, long_text: Any,
) -> None:  # fmt: skip
    write_folder(tmp_path / "docs", long_text)
    seen: list[int] = []
    ingestor.ingest_paths(
        [tmp_path / "docs"],
        on_progress=lambda *_: seen.append(len(catalog.documents(*WHERE))),
    )
    steps = np.diff([0, *dict.fromkeys(seen)])
    assert len(steps) <= 6 and steps.max() <= 32 and sum(steps) == 51


def test_a_document_that_fails_leaves_those_beside_it_whole(
    ingestor: Ingestor, catalog: Catalog, tmp_path: Path, long_text: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It may have written something by then."""
    write_folder(tmp_path / "docs", long_text)
    put = sql.put_chunks

    def failing(connection: Any, key: Any, document_id: str, chunks: Any, *more: Any) -> None:
        put(connection, key, document_id, chunks, *more)
        if chunks[0].title == "10.txt":
            raise InvalidRequest("it is too strange")

    monkeypatch.setattr(sql, "put_chunks", failing)
    report = ingestor.ingest_paths([tmp_path / "docs"])
    assert (report.added, report.skipped) == (50, 10)
    titles = {chunk.title for chunk in catalog.chunks(*WHERE)}
    assert len(titles) == 50 and "10.txt" not in titles
    assert titles == {d.title for d in catalog.documents(*WHERE)}


def test_when_the_catalog_fails_what_was_acknowledged_stays(
    ingestor: Ingestor,
    catalog: Catalog,
    tmp_path: Path,
    long_text: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_folder(tmp_path / "docs", long_text)
    put, told = catalog.put_document, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        if len(told) >= 20:
            raise StoreError("the disk is full")
        return put(*args, **kwargs)

    monkeypatch.setattr(catalog, "put_document", failing)
    with pytest.raises(StoreError, match="the disk is full"):
        ingestor.ingest_paths([tmp_path / "docs"], on_progress=lambda *call: told.append(call))
    assert len(catalog.documents(*WHERE)) == sum(int(n[-6:-4]) % 7 > 0 for _, _, n in told) > 0


@pytest.mark.parametrize("known", [False, True])
def test_of_different_texts_with_one_id_the_first_is_taken_and_the_others_are_named(
    ingestor: Ingestor, catalog: Catalog, texts: Any, known: bool
) -> None:
    first, second = (GivenDocument(id="a", text=f"A {word} dog.") for word in ("lazy", "quick"))
    if known:
        ingestor.ingest_texts([second])
    fox = GivenDocument(id="b", text="A fox.")
    report = ingestor.ingest_texts([first, fox, second, first, first])
    assert sorted(texts(catalog)) == ["A fox.", "A lazy dog."]
    counts = (report.added, report.updated, report.unchanged, report.skipped)
    assert counts == ((1, 1, 2, 1) if known else (2, 0, 2, 1))
    (problem,) = report.problems
    assert problem.startswith("a: text 2 has the id of text 0 and is another.")
    assert ingestor.ingest_texts([second]).updated == 1  # one call after the other
    assert sorted(texts(catalog)) == ["A fox.", "A quick dog."]


def test_texts_without_ids_are_as_many_as_they_are(ingestor: Ingestor, catalog: Catalog) -> None:
    given = [GivenDocument(text=text) for text in ("A dog.", "A fox.", "A dog.")]
    report = ingestor.ingest_texts(given)
    assert (report.added, report.unchanged, report.problems) == (2, 1, [])


def test_documents_added_meanwhile_by_another_are_not_counted_twice(
    ingestor: Ingestor, catalog: Catalog, embedder: Any, tmp_path: Path, splitter: Any,
    retrieval: Any,
) -> None:  # fmt: skip
    (tmp_path / "a.txt").write_text("A lazy dog.")
    other = Ingestor(catalog, splitter, HashingEmbedder(256), retrieval())

    class Slow(HashingEmbedder):
        def embed(self, texts: Any) -> Any:
            other.ingest_paths([tmp_path / "a.txt"])
            return super().embed(texts)

    slow = Ingestor(catalog, splitter, Slow(256), retrieval())
    assert slow.ingest_paths([tmp_path / "a.txt"]).unchanged == 1
    assert len(catalog.documents(*WHERE)) == 1
    assert np.isfinite(next(iter(stored(catalog, embedder).values()))[0][2]).all()
