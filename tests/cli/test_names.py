"""Names that are wrong are refused by name, before any work, and nothing is made for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from chunkcache.cli.app import app
from chunkcache.errors import ConfigError, InvalidRequest, NotFound
from chunkcache.server.run import can_listen

LATIN_1 = os.fsdecode("gr\xf6\xdfer".encode("latin-1"))
LONG = "n" * 5000
HELD = "doc-a"  # stands for a document that is there
ZIPF = ["hitrate", "zipf:chunks=10,requests=10"]

NAMES = [
    ["ls", "--collection", "WRONG"],
    ["rm", "WRONG"],
    ["rm", HELD, "--collection", "WRONG"],
    ["rm", HELD, "--tenant", "WRONG"],
    ["quota", "--set", "WRONG"],
    ["stats", "--metrics", "WRONG"],
    [*ZIPF, "--policy", "WRONG"],
    [*ZIPF, "--memory", "WRONG"],
    [*ZIPF, "--disk", "WRONG"],
    [*ZIPF, "--form", "WRONG"],
    ["hitrate", "WRONG"],
    ["--set", "store.codec=WRONG", "ls"],
    ["--set", "repair.policy=WRONG", "ls"],
    ["--log-level", "WRONG", "ls"],
]
TEXTS = [
    ["ls", "--tenant", "WRONG"],
    ["purge", "--tenant", "WRONG", "--documents", "--yes"],
    ["quota", "--tenant", "WRONG", "--set", "5"],
    ["export", "new", "--tenant", "WRONG"],
    ["ingest", "FILE", "--collection", "WRONG"],
    ["search", "WRONG"],
    ["ask", "WRONG"],
    ["keep", "WRONG"],
    ["warm", "--collection", "WRONG"],
    ["fit-basis", "--tenant", "WRONG"],
]
NEW_FILES = [
    ["export", "PLACE"],
    ["backup", "PLACE"],
    [*ZIPF, "--export", "PLACE"],
    [*ZIPF, "--picture", "PLACE"],
]
HOMES = [["ls"], ["check"], ["stats"], ["gc"], ["rm", HELD], ["quota", "--set", "5"], ["warm"]]
PLACES = ["folder", "binary", "broken", "loop", "binary/below", LONG]


@pytest.fixture
def place(tmp_path: Path, warm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where one is: beside a home with two documents, and with what may stand there by mistake."""
    shutil.copytree(warm_home, tmp_path / "home")
    here = tmp_path / "here"
    (here / "folder").mkdir(parents=True)
    (here / "binary").write_bytes(bytes(range(256)))
    (here / "broken").symlink_to("nowhere")
    (here / "loop").symlink_to("loop")
    monkeypatch.chdir(here)
    return here


def kept(folder: Path) -> dict[str, bytes]:
    """All that must not change: what LMDB and SQLite keep beside their files may."""
    beside = ("-wal", "-shm", "lock.mdb", "occupied")
    paths = [path for path in folder.rglob("*") if not path.name.endswith(beside)]
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in paths}


def refused(options: list[str], *arguments: str) -> str:
    """What is said to a mistake of the caller: what `main` ends with 2 for."""
    result = CliRunner().invoke(app, [*options, *arguments])
    error = result.exception
    if isinstance(error, SystemExit):
        assert error.code == 2, result.output
        return str(result.stderr)
    assert isinstance(error, InvalidRequest | ConfigError | NotFound), repr(error)
    return error.message


@pytest.mark.parametrize("wrong", ["nope", "", LONG, "x\x1b[2J", "../x", " ", "a\nb", LATIN_1])
@pytest.mark.parametrize("arguments", NAMES, ids=" ".join)
def test_a_wrong_name_is_refused(
    arguments: list[str], wrong: str, options: list[str], place: Path, held: str
) -> None:
    before = kept(place.parent)
    words = [held if word == HELD else word.replace("WRONG", wrong) for word in arguments]
    assert refused(options, *words)
    assert kept(place.parent) == before


@pytest.mark.parametrize("arguments", TEXTS, ids=" ".join)
def test_bytes_that_are_no_letters_are_refused(
    arguments: list[str], options: list[str], place: Path
) -> None:
    before = kept(place.parent)
    words = [{"WRONG": LATIN_1, "FILE": "binary"}.get(word, word) for word in arguments]
    assert "must be in UTF-8. Hint: " in refused(options, *words)
    assert kept(place.parent) == before


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("arguments", NEW_FILES, ids=" ".join)
def test_what_is_to_be_written_takes_no_other_things_place(
    arguments: list[str], where: str, options: list[str], place: Path
) -> None:
    before = kept(place.parent)
    words = [where if word == "PLACE" else word for word in arguments]
    assert ": got " in refused(options, *words)
    assert kept(place.parent) == before


@pytest.mark.parametrize("where", PLACES[1:])
@pytest.mark.parametrize("arguments", HOMES, ids=" ".join)
def test_a_home_that_is_no_folder_is_refused(
    arguments: list[str], where: str, options: list[str], place: Path
) -> None:
    before = kept(place.parent)
    said = refused([*options, "--home", where], *arguments)
    assert said.startswith("home: got ") and "must be a folder: " in said
    assert kept(place.parent) == before


@pytest.mark.parametrize("where", ["nowhere/below", "folder"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["ls"], 0), (["check"], 0), (["stats"], 0), (["gc"], 0), (["gc", "--yes"], 0),
     (["purge", "--tenant", "public", "--documents", "--yes"], 0), (["quota"], 0)],
)  # fmt: skip
def test_who_only_looks_makes_nothing_of_a_home_that_was_misspelt(
    arguments: list[str], code: int, where: str, options: list[str], place: Path
) -> None:
    before = kept(place.parent)
    result = CliRunner().invoke(app, [*options, "--home", where, *arguments])
    assert result.exit_code == code, result.output
    assert kept(place.parent) == before


def test_a_server_listens_nowhere_for_a_host_that_is_none(options: list[str]) -> None:
    assert "--host: got ''" in refused(options, "serve", "--host", "", "--port", "0")
    for wrong in (LONG, "../x"):  # neither is asked for anywhere
        with structlog.testing.capture_logs() as said:
            assert not can_listen(wrong, 0)
        assert [line["event"] for line in said] == ["not_listening"]


def test_a_home_and_a_backup_may_have_names_in_any_bytes(
    run: Callable[..., Any], place: Path
) -> None:
    shutil.copytree(place.parent / "home", place / LATIN_1)
    assert "2 ok, 0 corrupt" in run("--home", LATIN_1, "check").stdout
    assert "2 ok, 0 corrupt" in run("--home", LATIN_1, "backup", f"{LATIN_1} 2").stdout
    assert "2 documents" in run("--home", LATIN_1, "ls").stdout


@pytest.fixture
def held(options: list[str], place: Path) -> str:
    """The id of a document that is there."""
    shown = CliRunner().invoke(app, [*options, "ls"]).stdout
    return next(word for word in shown.split() if word.startswith("doc-"))
