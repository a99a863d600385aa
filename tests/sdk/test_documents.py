"""Documents, search and embeddings against the real server, in each manner."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import chunkcache
from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.protocol import IngestReport
from chunkcache.sdk import ModelInfo

BINARY = b"\xff\xfe\x00"


def uploads(served: Any, tenant: str = "public") -> list[str]:
    return [file.filename for file in served.app.state.shelf.list(tenant)]


def titles(caller: Any, **where: Any) -> list[str]:
    return [document.title for document in caller("documents", **where)]


def test_bytes_are_ingested_searched_listed_and_removed(served: Any, caller: Any) -> None:
    report = caller("ingest", [("a.txt", b"the cat sat"), ("b.txt", b"the dog")])
    assert report == IngestReport(added=2, chunks=2, tokens=5)
    best, other = caller("search", "the cat", top_k=2)
    assert (best.text, best.title, best.score) == ("the cat sat", "a.txt", 2.0)
    assert (best.start_char, best.end_char, other.title) == (0, 11, "b.txt")
    assert titles(caller) == ["a.txt", "b.txt"]
    assert caller("remove", best.document_id)
    assert titles(caller) == ["b.txt"] and uploads(served) == ["b.txt"]
    assert not caller("remove", best.document_id)
    assert caller("search", "cat") == []


def test_ingesting_again_sends_only_what_has_changed(served: Any, caller: Any) -> None:
    caller("ingest", [("a.txt", b"the cat"), ("b.txt", b"the dog")])
    again = caller("ingest", [("a.txt", b"the cat"), ("b.txt", b"the dog ran"), ("c.txt", b"c")])
    assert again == IngestReport(added=1, updated=1, unchanged=1, chunks=2, tokens=4)
    assert sorted(uploads(served)) == ["a.txt", "b.txt", "c.txt"]  # no older versions left
    assert [hit.text for hit in caller("search", "dog")] == ["the dog ran"]
    third = caller("ingest", [("a.txt", b"the cat"), ("b.txt", b"the dog ran"), ("c.txt", b"c")])
    assert third == IngestReport(unchanged=3)
    assert [name for name, _ in served.service.ingested] == ["a.txt", "b.txt", "b.txt", "c.txt"]


def test_a_name_that_the_server_changes_is_known_again(served: Any, caller: Any) -> None:
    for content, outcome in ((b"one", "added"), (b"one", "unchanged"), (b"two", "updated")):
        report = caller("ingest", ("./x//a.txt", content))
        assert getattr(report, outcome) == 1, report
        assert uploads(served) == ["x/a.txt"]


def test_what_cannot_be_read_is_reported_and_left_nowhere(served: Any, caller: Any) -> None:
    report = caller("ingest", [("x.bin", BINARY), ("a.txt", b"cat"), ("empty.txt", b"")])
    assert (report.added, report.skipped) == (1, 2)
    assert report.problems == ["x.bin: not text", "empty.txt: the file is empty"]
    assert uploads(served) == ["a.txt"]


def test_a_file_too_large_for_the_server_is_a_problem_of_its_own(
    serve_with: Any, open_caller: Any
) -> None:
    served = serve_with(max_upload_bytes=2000)
    caller = open_caller("sync over a socket", base_url=served.url)
    report = caller("ingest", [("big.txt", b"x" * 2000), ("a.txt", b"cat")])
    assert (report.added, report.skipped) == (1, 1)
    assert "server.max_upload_bytes" in report.problems[0]


def test_a_folder_is_walked_and_its_paths_are_names(caller: Any, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    for name in ("b/README.md", "a/README.md", "a/.hidden/x.md", ".git/config", "top.md"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the text of {name}")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "dangling").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe")
    single = tmp_path / "single.txt"
    single.write_text("alone")
    report = caller("ingest", [folder, str(single)])
    assert (report.added, report.problems) == (4, [])
    assert sorted(titles(caller)) == [
        "docs/a/README.md", "docs/b/README.md", "docs/top.md", "single.txt",
    ]  # fmt: skip
    assert caller("ingest", folder).unchanged == 3


def test_a_file_that_vanishes_or_is_forbidden_is_a_problem(
    caller: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    opened = Path.open

    def refuse(self: Path, *args: Any, **named: Any) -> Any:
        if self.name == "a.txt":
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **named)

    monkeypatch.setattr(Path, "open", refuse)
    report = caller("ingest", [tmp_path / "a.txt", tmp_path / "b.txt"])
    assert (report.added, report.skipped) == (1, 1)
    assert report.problems == ["a.txt: Permission denied"]


def test_a_path_to_nowhere_and_a_name_twice_are_refused_before_anything_is_sent(
    served: Any, caller: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("one")
    for wrong in ([tmp_path / "a.txt", tmp_path / "none"], [tmp_path / "a.txt", ("a.txt", b"2")]):
        with pytest.raises(InvalidRequest) as caught:
            caller("ingest", wrong)
        assert caught.value.param == "paths"
    assert uploads(served) == []


def test_file_names_that_are_not_utf8_are_escaped(caller: Any, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    name = os.fsencode(folder) + b"/caf\xe9.txt"
    with open(name, "wb") as stream:
        stream.write(b"cat")
    assert caller("ingest", folder).added == 1
    assert titles(caller) == ["d/caf/xe9.txt"]  # the server takes a backslash for a slash


def test_vector_stores_are_apart(served: Any, caller: Any) -> None:
    store = served.service.create_collection("pets", tenant="public").id
    caller("ingest", ("a.txt", b"the cat"), vector_store_id=store)
    caller("ingest", ("a.txt", b"the cat of the default store"))
    assert titles(caller, vector_store_id=store) == titles(caller) == ["a.txt"]
    (hit,) = caller("search", "cat", vector_store_id=store)
    assert hit.text == "the cat"
    assert caller("remove", hit.document_id, vector_store_id=store)
    assert titles(caller, vector_store_id=store) == [] and titles(caller) == ["a.txt"]


def test_an_upload_in_two_stores_outlives_its_removal_from_one(served: Any, caller: Any) -> None:
    store = served.service.create_collection("pets", tenant="public").id
    caller("ingest", ("a.txt", b"the cat"))
    (file,) = served.app.state.shelf.list("public")
    client = served.client()
    client.vector_stores.files.create(store, file_id=file.id)
    (document,) = caller("documents")
    assert caller("remove", document.document_id)
    assert titles(caller) == [] and titles(caller, vector_store_id=store) == ["a.txt"]
    assert uploads(served) == ["a.txt"]


def test_documents_ingested_otherwise_are_listed_and_removed(served: Any, caller: Any) -> None:
    info = served.service.ingest_bytes("c.txt", b"a bat", tenant="public", collection="default")
    assert caller("documents") == [info]
    assert caller("remove", info.document_id)
    assert caller("documents") == []


def test_long_lists_are_read_to_their_end(served: Any, caller: Any) -> None:
    for number in range(205):
        served.service.ingest_bytes(
            f"{number}.txt", b"cat", tenant="public", collection="default"
        )  # fmt: skip
    assert len({document.document_id for document in caller("documents")}) == 205


@pytest.mark.parametrize("store", ["vs_none", "a/b", "ü?#"])
def test_unknown_stores_are_not_found(caller: Any, store: str) -> None:
    for call in (
        lambda: caller("documents", vector_store_id=store),
        lambda: caller("search", "x", vector_store_id=store),
        lambda: caller("ingest", ("a", b"x"), vector_store_id=store),
        lambda: caller("remove", "doc-1", vector_store_id=store),
    ):
        with pytest.raises(NotFound):
            call()


@pytest.mark.parametrize("store", ["", ".", ".."])
def test_ids_that_would_be_another_path_are_refused(caller: Any, store: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        caller("documents", vector_store_id=store)
    assert caught.value.param == "vector_store_id"


def test_embeddings_are_the_service_s_vectors_in_order(served: Any, caller: Any) -> None:
    texts = [f"text number {number}" for number in range(2050)]  # more than one request's worth
    wanted, _ = served.service.embed(texts)
    vectors = caller("embed", texts)
    assert len(vectors) == 2050
    for index in (0, 1, 2047, 2048, 2049):
        assert vectors[index] == pytest.approx(wanted[index], rel=1e-6)
    assert caller("embed", []) == []


def test_one_text_is_not_a_list_of_letters(caller: Any) -> None:
    with pytest.raises(InvalidRequest, match="texts"):
        caller("embed", "abc")


def test_models_health_and_version(served: Any, caller: Any) -> None:
    assert caller("models") == [
        ModelInfo("tiny-chat", "chat", 1_700_000_000, retrieves=True),
        ModelInfo("tiny-chat:plain", "chat", 1_700_000_000),
        ModelInfo("tiny-embed", "embedding", 1_700_000_000),
    ]
    assert caller("health") == {"status": "ok", "model": "tiny-chat"}
    assert caller("version") == chunkcache.__version__
    served.service.drain(0)
    assert caller("health")["status"] == "draining"
