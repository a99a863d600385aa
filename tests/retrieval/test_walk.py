"""Which files a path means."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from chunkcache.retrieval.walk import find_files

if TYPE_CHECKING:
    from pathlib import Path


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def names(root: Path, files: list[Path]) -> list[str]:
    return [str(path.relative_to(root.resolve())) for path in files]


def test_a_folder_is_walked_in_order_of_names(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "a/z.md", "a/b/c.HTML", "c.pdf", "B.rst", "d.chunks.jsonl")
    found = find_files([tmp_path])
    assert names(tmp_path, found.files) == [
        "B.rst", "a/b/c.HTML", "a/z.md", "b.txt", "c.pdf", "d.chunks.jsonl",
    ]  # fmt: skip
    assert (found.skipped, found.problems) == (0, [])


def test_hidden_and_unknown_files_in_folders_are_counted_by_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", ".git/one.txt", ".git/two.txt", ".env", "x.png", "s/y.png", "Makefile")
    found = find_files([tmp_path])
    assert names(tmp_path, found.files) == ["a.txt"]
    assert found.skipped == 5
    assert found.problems == [
        f"{tmp_path}: 2 skipped: hidden",
        f"{tmp_path}: 1 skipped: unknown type (no suffix)",
        f"{tmp_path}: 2 skipped: unknown type .png",
    ]


def test_a_file_that_was_named_is_taken_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path, ".hidden.txt", "odd.png")
    found = find_files([tmp_path / ".hidden.txt", tmp_path / "odd.png"])
    assert names(tmp_path, found.files) == [".hidden.txt", "odd.png"]


def test_a_file_reached_twice_comes_once(tmp_path: Path) -> None:
    touch(tmp_path, "s/a.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "s" / "a.txt")
    (tmp_path / "t").symlink_to(tmp_path / "s")
    found = find_files([tmp_path / "s" / "a.txt", tmp_path, tmp_path / "s" / ".." / "s"])
    assert names(tmp_path, found.files) == ["s/a.txt"]


def test_loops_of_links_end(tmp_path: Path) -> None:
    touch(tmp_path, "s/a.txt")
    (tmp_path / "s" / "up").symlink_to(tmp_path)
    (tmp_path / "s" / "self").symlink_to(tmp_path / "s" / "self")
    found = find_files([tmp_path])
    assert names(tmp_path, found.files) == ["s/a.txt"]
    assert found.problems == [f"{tmp_path}/s/self: a link that leads nowhere"]


def test_what_is_not_there_or_no_file_is_a_problem(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    found = find_files([tmp_path / "none.txt", tmp_path / "pipe.txt", tmp_path])
    assert found.files == []
    assert found.skipped == 3
    assert found.problems == [
        f"{tmp_path}/none.txt: there is no such file or folder",
        f"{tmp_path}/pipe.txt: not a regular file",
        f"{tmp_path}/pipe.txt: not a regular file",
    ]


def test_names_that_are_not_unicode_do_not_break_the_report(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_text("x")
    (tmp_path / os.fsdecode(b"\xfe.txt")).write_text("x")
    (tmp_path / os.fsdecode(b"x.\xfd")).write_text("x")
    found = find_files([tmp_path])
    assert len(found.files) == 1
    "".join(found.problems).encode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "s/a.txt", "t/b.txt")
    (tmp_path / "s").chmod(0)
    found = find_files([tmp_path])
    (tmp_path / "s").chmod(0o700)
    assert names(tmp_path, found.files) == ["t/b.txt"]
    assert "cannot be listed" in found.problems[0]
