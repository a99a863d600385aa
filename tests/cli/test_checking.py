"""`check`, `doctor`: is it sound?"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chunkcache.engine.chunk_pages import ChunkPages


def test_doctor_prints_the_figures(run: Callable[..., Any]) -> None:
    shown = run("doctor").stdout
    assert "repair_all" in shown and "the gate is passed" in shown and "float32" in shown
    assert "own_reference" in shown and "must be" in shown


def test_doctor_prints_the_cause(
    run: Callable[..., Any], tmp_path: Path, native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: ChunkPages, *_: Any) -> None:
        """Nothing is put anywhere."""

    monkeypatch.setattr(ChunkPages, "_write", write)
    own = tmp_path / "own"  # the verdict is remembered, and is nobody else's
    own.mkdir()
    (own / "native").symlink_to(native)
    shown = run("--set", f"cache={own}", "doctor", code=1).stdout
    assert "moved: chunks of one layer's KV" in shown and "likely: " in shown
    assert "full prefill is right, reuse is not" in shown


def test_check_finds_a_flipped_byte_and_fix_removes_the_record(
    run: Callable[..., Any], pages: Path, tmp_path: Path
) -> None:
    run("ingest", str(pages))
    run("warm")
    data = tmp_path / "home" / "kv" / "data.mdb"
    content = bytearray(data.read_bytes())
    at = max(range(0, len(content) - 4096, 4096), key=lambda i: len(set(content[i : i + 4096])))
    content[at + 2000] ^= 0x40
    data.write_bytes(content)
    broken = run("check", code=1).stdout
    assert "1 corrupt" in broken and "--fix" in broken
    assert "1 removed" in run("check", "--fix").stdout
    assert "0 corrupt" in run("check").stdout
    assert "1 computed" in run("warm").stdout


def test_check_names_the_document_whose_passage_is_damaged(
    run: Callable[..., Any], pages: Path, tmp_path: Path
) -> None:
    assert "documents" not in run("check").stdout, "nothing was ingested, and no catalog is made"
    run("ingest", str(pages))
    assert "0 passages or texts damaged" in run("check").stdout
    with closing(sqlite3.connect(tmp_path / "home" / "catalog.sqlite")) as connection, connection:
        connection.execute("UPDATE chunks SET text = text || '!' WHERE ordinal = 0")
        connection.execute("UPDATE documents SET text = text || '!'")
    for arguments in (["check"], ["check", "--fix"]):
        said = " ".join(run(*arguments, code=1).stdout.split())
        assert re.search(r"[1-9]\d* passages or texts damaged", said)
        assert "a passage of document 'doc-" in said and "the text of document 'doc-" in said


def test_rows_of_an_earlier_version_are_counted_and_filled_in(
    run: Callable[..., Any], pages: Path, tmp_path: Path
) -> None:
    run("ingest", str(pages))
    assert "no checksum" not in run("check").stdout
    with closing(sqlite3.connect(tmp_path / "home" / "catalog.sqlite")) as connection, connection:
        connection.execute("UPDATE chunks SET checksum = NULL WHERE ordinal = 0")
        connection.execute("UPDATE documents SET text_checksum = NULL")
    shown = run("check").stdout
    assert "4 passages or texts are from an earlier version and have no checksum; chunk" in shown
    assert "check --fix gives them one" in shown
    assert "no checksum; 4 of them have one now" in run("check", "--fix").stdout
    assert "no checksum" not in run("check").stdout


def test_stale_records_are_told_from_others_only_when_they_are_to_go(
    run: Callable[..., Any], pages: Path
) -> None:
    run("ingest", str(pages))
    run("warm")
    assert "0 were of another model" in run("check", "--drop-stale").stdout
    assert "other model" not in run("check").stdout
