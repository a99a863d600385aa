"""Uploads, chunk lines and texts into the catalog."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.errors import InvalidRequest
from chunkcache.protocol import GivenDocument
from chunkcache.retrieval.ingest import Ingestor

if TYPE_CHECKING:
    from pathlib import Path

    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.splitter import Splitter

# ---------------------------------------------------------------- uploads


def test_two_uploads_of_one_name_are_two_documents(
    ingestor: Ingestor, catalog: Catalog, texts: Any
) -> None:
    one = ingestor.ingest_bytes("notes.txt", b"A lazy dog.", upload_id="file-1")
    two = ingestor.ingest_bytes("notes.txt", b"A quick fox.", upload_id="file-2")
    same = ingestor.ingest_bytes("notes.txt", b"A lazy dog.", upload_id="file-3")
    assert len({one.document_id, two.document_id, same.document_id}) == 3
    assert [d.name for d in catalog.documents("public", "default")] == ["notes.txt"] * 3
    assert sorted(texts(catalog)) == ["A lazy dog.", "A lazy dog.", "A quick fox."]
    assert ingestor.ingest_bytes("notes.txt", b"A lazy dog.", upload_id="file-1") == one
    changed = ingestor.ingest_bytes("notes.txt", b"A new dog.", upload_id="file-1")
    assert changed.document_id == one.document_id
    assert sorted(texts(catalog)) == ["A lazy dog.", "A new dog.", "A quick fox."]


def test_without_an_id_an_upload_is_known_by_its_name(
    ingestor: Ingestor, catalog: Catalog, texts: Any
) -> None:
    data = b"A lazy dog."
    first = ingestor.ingest_bytes("notes.txt", data)
    assert (first.title, first.size_bytes) == ("notes.txt", 11)
    assert first.sha256 == hashlib.sha256(data).hexdigest()
    second = ingestor.ingest_bytes("notes.txt", b"A quick fox.")
    assert second.document_id == first.document_id
    assert ingestor.ingest_bytes("other.txt", data).document_id != first.document_id
    assert sorted(texts(catalog)) == ["A lazy dog.", "A quick fox."]
    assert ingestor.ingest_bytes("notes.txt", b"A quick fox.") == second


def test_an_upload_keeps_its_attributes_up_to_date(ingestor: Ingestor, catalog: Catalog) -> None:
    def attributes() -> Any:
        stored = catalog.document("public", "default", info.document_id)
        assert stored is not None
        return stored.document.attributes

    info = ingestor.ingest_bytes("a.txt", b"A dog.", attributes={"year": 1999.0})
    assert attributes() == {"year": 1999.0}
    ingestor.ingest_bytes("a.txt", b"A dog.", attributes={"year": 2000.0})
    assert attributes() == {"year": 2000.0}
    ingestor.ingest_bytes("a.txt", b"A dog.")
    assert attributes() == {"year": 2000.0}


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"\0", "a.txt: a binary file"),
        ("a.exe", b"MZ", "a.exe: unknown type .exe"),
        ("a.jsonl", b"{}\n5", "a.jsonl: line 1 has no text"),
    ],
)
def test_an_unreadable_upload_is_an_error_and_changes_nothing(
    ingestor: Ingestor, catalog: Catalog, name: str, data: bytes, says: str, texts: Any
) -> None:
    ingestor.ingest_bytes("a.txt", b"A lazy dog.")
    with pytest.raises(InvalidRequest, match=says) as caught:
        ingestor.ingest_bytes(name, data)
    assert caught.value.param == "file"
    assert texts(catalog) == ["A lazy dog."]


def test_chunk_lines_stay_chunks_with_their_own_titles_and_ids(
    ingestor: Ingestor, catalog: Catalog, splitter: Splitter
) -> None:
    lines = [
        {"text": "A lazy dog.\n\nTwo paragraphs.", "title": "Dog", "id": "d1", "url": "https://e"},
        {"text": "A quick fox."},
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    info = ingestor.ingest_bytes("corpus.jsonl", data)
    first, second = catalog.chunks("public", "default")
    assert (first.text, first.title, first.url) == (lines[0]["text"], "Dog", "https://e")
    assert first.chunk_id == f"{info.document_id}-d1"
    assert (second.text, second.title) == ("A quick fox.", "corpus.jsonl")
    assert second.token_ids == splitter.encode("A quick fox.")
    stored = catalog.document("public", "default", info.document_id)
    assert stored is not None
    for chunk in (first, second):
        assert stored.document.text[chunk.start_char : chunk.end_char] == chunk.text


def test_wrong_chunk_lines_are_named_and_the_others_taken(
    ingestor: Ingestor, catalog: Catalog, texts: Any, tmp_path: Path
) -> None:
    lines = ['{"text": "short"}', "rubbish", json.dumps({"text": "1 2 3 4 5 6 7 8 9 " * 20}),
             '{"text": "and the end"}']  # fmt: skip
    data = "\n".join(lines).encode()
    info = ingestor.ingest_bytes("c.jsonl", data)
    assert info.problems[0].startswith("line 2 is not JSON")
    assert re.match(r"line 3 has \d+ tokens, must have 1 to 24", info.problems[1])
    assert len(info.problems) == 2
    assert texts(catalog) == ["short", "and the end"]
    stored = catalog.document("public", "default", info.document_id)
    assert stored is not None and stored.info.problems == info.problems
    for chunk in catalog.chunks("public", "default"):
        assert stored.document.text[chunk.start_char : chunk.end_char] == chunk.text
    (tmp_path / "c.jsonl").write_bytes(data)
    report = ingestor.ingest_paths([tmp_path / "c.jsonl"])
    assert (report.added, report.skipped) == (1, 0)
    assert report.problems == [f"{tmp_path}/c.jsonl: {problem}" for problem in info.problems]
    assert ingestor.ingest_paths([tmp_path / "c.jsonl"]).problems == []  # told once


def test_of_very_many_wrong_lines_the_first_are_kept(ingestor: Ingestor) -> None:
    info = ingestor.ingest_bytes("c.jsonl", b'{"text": "short"}' + b"\n{}" * 1000)
    assert len(info.problems) == 51 and info.problems[-1] == "and 950 more"


def test_a_file_whose_lines_are_all_too_long_is_refused(ingestor: Ingestor) -> None:
    with pytest.raises(InvalidRequest, match=r"line 1 has \d+ tokens"):
        ingestor.ingest_bytes("c.jsonl", json.dumps({"text": "1 2 3 4 5 6 7 " * 20}).encode())


# ---------------------------------------------------------------- texts


def test_texts_are_documents_by_id_or_by_content(ingestor: Ingestor, catalog: Catalog) -> None:
    given = [
        GivenDocument(id="x", title=" A \n title", text="A lazy dog.", url="https://e.org"),
        GivenDocument(text="A quick fox."),
        GivenDocument(id="y", text="  "),
        GivenDocument(id="z", text="half \ud83d"),
        GivenDocument(text=""),
    ]
    report = ingestor.ingest_texts(given)
    assert (report.added, report.skipped, report.chunks) == (2, 3, 2)
    assert [problem.split(":")[0] for problem in report.problems] == ["y", "z", "4"]
    first, second = catalog.chunks("public", "default")
    assert (first.title, first.url, first.text) == ("A title", "https://e.org", "A lazy dog.")
    assert (second.title, second.text) == ("", "A quick fox.")
    assert ingestor.ingest_texts(given).unchanged == 2
    changed = given[0].model_copy(update={"title": "Another"})
    assert ingestor.ingest_texts([changed]).updated == 1
    assert {d.title for d in catalog.documents("public", "default")} == {"Another", ""}


def test_threads_may_ingest_at_once(
    ingestor: Ingestor, catalog: Catalog, long_text: Any, texts: Any
) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for n in range(5):
                ingestor.ingest_bytes("shared.txt", long_text(n).encode())
                ingestor.ingest_bytes(f"{name}.txt", long_text(n, n + 1).encode())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    documents = catalog.documents("public", "default")
    assert sorted(d.title for d in documents) == ["a.txt", "b.txt", "c.txt", "d.txt", "shared.txt"]
    assert sum(d.num_chunks for d in documents) == len(texts(catalog))
    assert all("number 4" in t or "number 5" in t for t in texts(catalog))
