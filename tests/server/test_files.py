"""Uploads through the OpenAI client, and the shelf they are kept on."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from chunkcache import durable
from chunkcache.errors import NotFound, StoreError
from chunkcache.server.files import Attachment, FileShelf

if TYPE_CHECKING:
    from collections.abc import Callable


def upload(served: Any, name: str, content: bytes = b"the cat", **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{served.url}/v1/files", files={"file": (name, content)},
        data={"purpose": "assistants", **fields},
    )  # fmt: skip


def test_a_file_is_kept_listed_and_deleted(served: Any) -> None:
    client = served.client()
    made = client.files.create(file=("notes é.md", b"the cat"), purpose="assistants")
    assert (made.filename, made.bytes, made.purpose) == ("notes é.md", 7, "assistants")
    assert made.status == "processed" and made.id.startswith("file-")
    assert made.chunkcache == {
        "sha256": hashlib.sha256(b"the cat").hexdigest(), "vector_store_ids": [],
    }  # fmt: skip
    assert client.files.retrieve(made.id) == made
    assert [file.id for file in client.files.list()] == [made.id]
    assert client.files.delete(made.id).deleted
    assert list(client.files.list()) == []
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(made.id)
    assert caught.value.param == "file_id"


def test_empty_and_binary_files_are_kept_too(served: Any) -> None:
    client = served.client()
    for content in (b"", bytes(range(256)) * 5000):
        assert client.files.create(file=("x", content), purpose="user_data").bytes == len(content)


def test_lists_are_newest_first_in_pages_and_by_purpose(served: Any) -> None:
    client = served.client()
    made = [
        client.files.create(file=(f"{i}.txt", b"x"), purpose=purpose).id
        for i, purpose in enumerate(["assistants", "user_data", "assistants"])
    ]
    assert [file.id for file in client.files.list()] == made[::-1]
    assert [file.id for file in client.files.list(limit=1)] == made[::-1]  # the client turns pages
    assert [file.id for file in client.files.list(order="asc", after=made[0])] == made[1:]
    assert [file.id for file in client.files.list(purpose="user_data")] == [made[1]]
    page = client.files.list(limit=2)
    assert (page.first_id, page.last_id, page.has_more) == (made[2], made[1], True)


@pytest.mark.parametrize(
    ("query", "param"),
    [("after=none", "after"), ("limit=0", "limit"), ("limit=10001", "limit"), ("order=up", "order"),
     ("before=x", "before")],
)  # fmt: skip
def test_a_wrong_page_is_refused_by_name(http: httpx.Client, query: str, param: str) -> None:
    response = http.get(f"/v1/files?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a.txt", "a.txt"),
        ("docs/a/README.md", "docs/a/README.md"),
        ("docs\\a\\README.md", "docs/a/README.md"),
        ("./../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\fakepath\\a.txt", "a.txt"),
        ("a//b.txt", "a/b.txt"),
        ("猫 the cat.txt", "猫 the cat.txt"),
    ],
)
def test_relative_paths_are_names_and_absolute_ones_are_not(
    served: Any, sent: str, kept: str
) -> None:
    assert upload(served, sent).json()["filename"] == kept


@pytest.mark.parametrize("name", ["/", "..", "x" * 513])
def test_a_name_that_is_none_is_refused(served: Any, name: str) -> None:
    response = upload(served, name)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "file")


def test_a_name_with_a_control_character_is_refused(http: httpx.Client) -> None:
    parts = (
        b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="a\x1bb"\r\n\r\nhi\r\n'
        b"--x--\r\n"
    )
    kind = {"content-type": "multipart/form-data; boundary=x"}
    response = http.post("/v1/files", content=parts, headers=kind)
    assert response.status_code == 400
    assert "control character" in response.json()["error"]["message"]
    assert http.post("/v1/files", content=parts.replace(b"\x1b", b"-"), headers=kind).is_success


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpose": "assistants", "expires_after": "1"}, "expires_after"),
        ({}, "purpose"),
    ],
)
def test_wrong_form_fields_are_refused_by_name(
    http: httpx.Client, fields: dict[str, str], param: str
) -> None:
    response = http.post("/v1/files", files={"file": ("a.txt", b"x")}, data=fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert http.get("/v1/files").json()["data"] == []


def test_an_upload_without_a_file_or_without_a_form_is_refused(http: httpx.Client) -> None:
    response = http.post("/v1/files", data={"purpose": "assistants", "file": "text"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "file")
    response = http.post("/v1/files", json={"purpose": "assistants"})
    assert response.status_code == 400
    response = http.post(
        "/v1/files", content=b"--x\r\nbroken", headers={"content-type": "multipart/form-data"}
    )
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


# ---------------------------------------------------------------- the shelf itself


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "files"


def files_on_disk(root: Path) -> list[str]:
    return sorted(path.suffix for path in root.rglob("*") if path.is_file())


def test_a_new_shelf_finds_what_the_old_one_kept(root: Path) -> None:
    shelf = FileShelf(root)
    kept = shelf.add("acme", "a.txt", b"one", purpose="assistants")
    gone = shelf.add("acme", "b.txt", b"two", purpose="assistants")
    shelf.attach("acme", kept.id, "vs_1", Attachment(created_at=1.0, error="why"))
    shelf.delete("acme", gone.id)
    again = FileShelf(root)
    assert again.list("acme") == shelf.list("acme") == [shelf.get("acme", kept.id)]
    assert again.read("acme", kept.id) == b"one"
    assert again.attached("acme", "vs_1") == {kept.id: Attachment(created_at=1.0, error="why")}
    assert again.list("other") == []


def test_what_a_crash_left_half_written_is_swept(root: Path) -> None:
    kept = FileShelf(root).add("acme", "a.txt", b"one", purpose="assistants")
    (folder,) = root.iterdir()
    (folder / "file-orphan.data").write_bytes(b"no sidecar")
    (folder / "file-torn.json.partial").write_bytes(b"{")
    again = FileShelf(root)
    assert [file.id for file in again.list("acme")] == [kept.id]
    assert files_on_disk(root) == [".data", ".json"]


def test_an_unreadable_sidecar_is_logged_and_its_data_left_alone(
    root: Path, logged: list[Any]
) -> None:
    shelf = FileShelf(root)
    broken = shelf.add("acme", "a.txt", b"one", purpose="assistants")
    kept = shelf.add("acme", "b.txt", b"two", purpose="assistants")
    (sidecar,) = root.rglob(f"{broken.id}.json")
    sidecar.write_text(json.dumps({"id": broken.id}))
    again = FileShelf(root)
    assert [file.id for file in again.list("acme")] == [kept.id]
    assert [entry["event"] for entry in logged] == ["file_sidecar_unreadable"]
    assert files_on_disk(root) == [".data", ".data", ".json", ".json"]


@pytest.mark.parametrize("tenant", ["../../etc", "", "a/b", "\x00", "ü" * 300])
def test_no_tenant_name_leads_out_of_the_shelf(root: Path, tenant: str) -> None:
    shelf = FileShelf(root)
    file = shelf.add(tenant, "a.txt", b"x", purpose="assistants")
    assert FileShelf(root).read(tenant, file.id) == b"x"
    assert {path.parent.parent for path in root.rglob("*.data")} == {root}


@pytest.mark.parametrize("file_id", ["", "..", "../secret", "file-none"])
def test_only_ids_that_were_given_out_are_files(root: Path, file_id: str) -> None:
    shelf = FileShelf(root)
    (root.parent / "secret.data").write_bytes(b"secret")
    shelf.add("acme", "a.txt", b"x", purpose="assistants")
    for action in (shelf.get, shelf.read, shelf.delete):
        with pytest.raises(NotFound):
            action("acme", file_id)


def test_files_added_by_many_threads_are_all_there(root: Path) -> None:
    shelf = FileShelf(root)

    def add(number: int) -> None:
        for index in range(5):
            shelf.add("acme", f"{number}-{index}", b"x", purpose="assistants")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({file.filename for file in FileShelf(root).list("acme")}) == 20


def test_a_full_disk_leaves_no_file_behind(
    root: Path, monkeypatch: pytest.MonkeyPatch, serve_with: Callable[..., Any]
) -> None:
    shelf = FileShelf(root)
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    assert shelf.list("acme") == []  # sweeps, once
    for _ in range(2):
        with pytest.raises(StoreError, match=r"No space left on device\. Hint: check free space"):
            shelf.add("acme", "a.txt", b"x", purpose="assistants")
    assert files_on_disk(root) == []  # each try would have filled it more
    monkeypatch.undo()
    assert FileShelf(root).list("acme") == []


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:3] + b"X" + data[4:]]
)
def test_bytes_that_were_not_uploaded_are_never_given_out_or_ingested(
    served: Any, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    made = upload(served, "a.txt", b"the cat sat").json()["id"]
    (path,) = (tmp_path / "home" / "files").glob("*/*.data")
    path.write_bytes(damage(path.read_bytes()))
    for answer in (
        httpx.get(f"{served.url}/v1/files/{made}/content"),
        httpx.post(f"{served.url}/v1/vector_stores/default/files", json={"file_id": made}),
    ):
        assert answer.status_code == 500
        assert "other bytes on disk than were uploaded" in answer.json()["error"]["message"]
    assert served.service.documents(tenant="public", collection="default") == []
    assert httpx.delete(f"{served.url}/v1/files/{made}").status_code == 200


def test_what_cannot_be_put_on_disk_is_not_called_the_clients_fault(
    served: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # as good as full
        answer = upload(served, "a.txt", b"x" * (1 << 21))  # put aside while it comes
    assert answer.status_code == 500
    assert "upload: no room for it in" in answer.json()["error"]["message"]
    assert upload(served, "a.txt", b"x" * (1 << 21)).status_code == 200
    shutil.rmtree(tmp_path / "home" / "files")
    (tmp_path / "home" / "files").write_text("in the way")
    answer = upload(served, "a.txt")
    assert answer.status_code == 500
    assert "files: cannot write below" in answer.json()["error"]["message"]


def test_an_upload_that_may_not_last_is_not_kept_under_an_id_that_nobody_knows(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, synced = FileShelf(root), list[Path]()

    def fail(folder: Path) -> None:
        synced.append(folder)
        if len(synced) == 2:  # of the data's name, and of the sidecar's
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "sync_folder", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        shelf.add("acme", "a.txt", b"x", purpose="assistants")
    assert len(synced) == 2 and shelf.list("acme") == []
    assert files_on_disk(root) == []
