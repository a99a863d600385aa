"""A home that can be read and not written: what only reads works, the rest is refused in words."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chunkcache.errors import StoreError
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.unwritable import UnwritableFile
from chunkcache.store.layout import map_bytes_for
from chunkcache.store.lmdb_env import RecordEnv

# root is let write anywhere by one capability, which a program begun without it does not get
_DROP_BOUND, _WRITE_ANYWHERE = 24, 1
UNPRIVILEGED = f"""
import ctypes, os, sys
if os.geteuid() == 0:
    assert ctypes.CDLL(None).prctl({_DROP_BOUND}, {_WRITE_ANYWHERE}, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
RUN_ALL = """
import json, sys
from typer.testing import CliRunner
from chunkcache.cli.app import app
results = []
for command in json.load(sys.stdin):
    done = CliRunner().invoke(app, command)
    said = str(done.exception) if done.exception is not None else ""
    results.append([done.exit_code, done.stdout, done.stderr + said])
print(json.dumps(results))
"""


def without_rights(commands: list[list[str]]) -> list[Any]:
    """Exit code, stdout and stderr of each, run by somebody who may write nothing of the home."""
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, RUN_ALL], input=json.dumps(commands),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and "AssertionError" in done.stderr:
        pytest.skip("root may not give a capability up here")
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lock(home: Path) -> None:
    for path in [home, *home.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture
def home(warm_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(warm_home, tmp_path / "home"))


def test_readers_read_and_writers_are_refused_by_name(
    home: Path, options: list[str], tmp_path: Path
) -> None:
    lock(home)
    before = {path: path.stat().st_mtime_ns for path in [home, *home.rglob("*")]}
    archive = str(tmp_path / "a.ccar")
    (tmp_path / "a.md").write_text("# A\n\ntext")
    reads = {
        "ls": '"title": "Owls"', "stats": '"records": 2', "check": "2 ok, 0 corrupt",
        "backup": "2 ok", "quota": "no limit", "purge": "2 records", "gc": "0 records found",
        "export": "",
    }  # fmt: skip
    arguments = {
        "ls": ["--json"], "stats": ["--json"], "backup": [str(tmp_path / "copy")],
        "purge": ["--tenant", "public"], "export": [archive],
    }  # fmt: skip
    writes = [
        ["rm", "doc-x"], ["purge", "--tenant", "public", "--yes"], ["quota", "--set", "5"],
        ["ingest", str(tmp_path / "a.md")], ["warm"], ["warm", "--workers", "2"], ["keep"],
        ["fit-basis"], ["serve", "--port", "0"],
    ]  # fmt: skip
    told = without_rights(
        [[*options, name, *arguments.get(name, [])] for name in reads]
        + [[*options, *command] for command in writes]
    )
    for (name, said), (code, out, err) in zip(reads.items(), told, strict=False):
        assert code == 0 and said in out, (name, out, err)
    assert Path(archive).stat().st_size > 1000
    for command, (code, out, err) in zip(writes, told[len(reads) :], strict=True):
        assert code == 1, (command, out, err)
        assert str(home) in err and "cannot" in err, (command, err)
        assert "written" in err or "write" in err, (command, err)
        assert "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in [home, *home.rglob("*")]} == before


def ask_and_search(home: Path, options: list[str], tmp_path: Path) -> list[Any]:
    """What `search`, `ask` and `eval` say of a home that is as it was afterwards."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"id": "a", "question": "What do owls do?"}) + "\n")
    lock(home)
    before = {path: path.stat().st_mtime_ns for path in [home, *home.rglob("*")]}
    told = without_rights(
        [
            [*options, "search", "owls", "--json"],
            [*options, "ask", "What do owls do?", "--max-tokens", "2", "--json"],
            [
                *options, "eval", str(questions), "--policy", "none", "--max-tokens", "2",
                "--out", str(tmp_path / "out.jsonl"),
            ],
        ]
    )  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in [home, *home.rglob("*")]} == before
    for code, _, err in told:
        assert code == 0, err
        assert f"note: {home} cannot be written: it is read, and nothing is kept" in err
        for word in ("Traceback", "failed", "given_up", "not_saved", "not_remembered"):
            assert word not in err
    return told


def test_questions_are_answered_from_what_is_there(
    home: Path, options: list[str], tmp_path: Path
) -> None:
    (_, found, _), (_, answer, _), (_, lines, _) = ask_and_search(home, options, tmp_path)
    assert json.loads(found.splitlines()[0])["title"] == "Owls"
    spans = json.loads(answer.splitlines()[-1])["report"]["spans"]
    chunks = [span for span in spans if span["kind"] == "chunk"]
    assert chunks and all(span["tier"] == "disk" or span["miss"] == "slower" for span in chunks)
    assert json.loads(lines.splitlines()[-1])["questions"] == 1


def test_where_no_store_was_begun_what_an_answer_needs_is_computed(
    home: Path, options: list[str], tmp_path: Path
) -> None:
    shutil.rmtree(home / "kv")
    _, (_, answer, _), _ = ask_and_search(home, options, tmp_path)
    spans = json.loads(answer.splitlines()[-1])["report"]["spans"]
    assert all(span["miss"] == "absent" for span in spans if span["kind"] == "chunk")


def test_what_only_a_writer_can_bring_level_is_named(home: Path, options: list[str]) -> None:
    lock(home)
    others = [*options, "--set", "retrieval.chunk_tokens=32", "search", "owls"]
    ((code, _, err),) = without_rights([others])
    assert code == 1 and str(home / "catalog.sqlite") in err and "cannot be written here" in err


def test_beside_a_writer_the_catalog_is_read_and_the_store_is_not(
    home: Path, options: list[str]
) -> None:
    with (
        closing(Catalog(home / "catalog.sqlite")) as catalog,
        closing(RecordEnv(home / "kv", map_bytes_for(1 << 26))),
    ):
        catalog.create_collection("public", "new")  # so that there is something in its log
        lock(home)
        commands = [[*options, "ls"], [*options, "stats"]]
        (code, out, err), (refused, _, why) = without_rights(commands)
    assert code == 0 and "2 documents" in out, err
    assert refused == 1 and "is in use" in why and "Hint" in why


def test_changes_that_only_a_writer_can_take_over_are_not_left_out(
    home: Path, options: list[str], tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    with closing(Catalog(home / "catalog.sqlite")) as catalog:
        catalog.create_collection("public", "new")
        shutil.copytree(home, killed)
    (killed / "catalog.sqlite-shm").unlink()
    lock(killed)
    ((code, out, err),) = without_rights([[*options, "--home", str(killed), "ls"]])
    if code == 0:  # a SQLite that reads the log without the file beside it
        assert "2 documents" in out
    else:
        assert "holds changes that are not in it yet" in err and "Hint" in err


def test_a_file_that_is_written_while_it_is_read_is_said_to_be(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "catalog.sqlite"
    file, opened = UnwritableFile(path), UnwritableFile._opened

    def no_shared_memory(self: UnwritableFile, how: str, timeout_s: float) -> Any:
        if how == "mode=ro":
            raise sqlite3.OperationalError("unable to open database file")
        return opened(self, how, timeout_s)

    monkeypatch.setattr(UnwritableFile, "_opened", no_shared_memory)
    with closing(file.connect(1.0)) as connection:
        connection.execute("SELECT count(*) FROM documents").fetchone()
        file.check()
        with closing(Catalog(path)) as writer:
            writer.create_collection("public", "new")
        with pytest.raises(StoreError, match="was written while it was read"):
            file.check()


def test_a_catalog_of_an_earlier_version_is_refused(home: Path, options: list[str]) -> None:
    with closing(sqlite3.connect(home / "catalog.sqlite")) as connection, connection:
        connection.execute("PRAGMA user_version = 1")
    lock(home)
    ((code, _, err),) = without_rights([[*options, "ls"]])
    assert code == 1 and "has schema version 1" in err and "cannot be written here" in err
