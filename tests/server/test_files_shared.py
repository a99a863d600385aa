"""Two servers on one folder of uploads: what one acknowledged, neither loses nor overlooks."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from chunkcache.errors import NotFound
from chunkcache.server.files import Attachment, FileShelf

if TYPE_CHECKING:
    from pathlib import Path

UPLOADS = 60
SERVER = """
import sys
from pathlib import Path
from chunkcache.server.files import FileShelf

shelf = FileShelf(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    name = f"{number}.txt"
    print(shelf.add("acme", name, name.encode() * 1000, purpose="assistants").id, flush=True)
"""


def test_uploads_to_one_server_survive_others_that_start_meanwhile(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVER, str(tmp_path), str(UPLOADS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        starts = 0
        while server.poll() is None:
            FileShelf(tmp_path).list("acme")  # as a server does at its first request
            starts += 1
        assert server.stdout is not None
        acknowledged = server.stdout.read().split()
    assert server.returncode == 0 and len(acknowledged) == UPLOADS and starts > 0
    shelf = FileShelf(tmp_path)
    for number, file_id in enumerate(acknowledged):
        assert shelf.read("acme", file_id) == f"{number}.txt".encode() * 1000


def test_a_server_sees_what_another_one_did_since_it_looked(tmp_path: Path) -> None:
    here, there = FileShelf(tmp_path), FileShelf(tmp_path)
    first = here.add("acme", "a.txt", b"one", purpose="assistants")
    assert [file.id for file in there.list("acme")] == [first.id]
    second = here.add("acme", "b.txt", b"two", purpose="assistants")
    assert there.read("acme", second.id) == b"two" and len(there.list("acme")) == 2
    here.attach("acme", second.id, "vs_1", Attachment(created_at=1.0))
    assert list(there.attached("acme", "vs_1")) == [second.id]
    here.delete("acme", first.id)
    assert there.name("acme", first.id) is None
    assert [file.id for file in there.list("acme")] == [second.id]


def test_attachments_made_on_two_servers_are_all_kept(tmp_path: Path) -> None:
    here, there = FileShelf(tmp_path), FileShelf(tmp_path)
    file = here.add("acme", "a.txt", b"one", purpose="assistants")
    there.list("acme")
    here.attach("acme", file.id, "vs_1", Attachment(created_at=1.0))
    there.attach("acme", file.id, "vs_2", Attachment(created_at=2.0))
    here.detach("acme", file.id, "vs_3")
    assert set(FileShelf(tmp_path).get("acme", file.id).attachments) == {"vs_1", "vs_2"}


def test_attaching_does_not_bring_a_file_back_that_another_server_deleted(tmp_path: Path) -> None:
    here, there = FileShelf(tmp_path), FileShelf(tmp_path)
    file = here.add("acme", "a.txt", b"one", purpose="assistants")
    there.list("acme")
    here.delete("acme", file.id)
    with pytest.raises(NotFound):
        there.attach("acme", file.id, "vs_1", Attachment(created_at=1.0))
    assert FileShelf(tmp_path).list("acme") == []
