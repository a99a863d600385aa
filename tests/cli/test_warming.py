"""`warm`, `fit-basis`: KV ahead of the questions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chunkcache.errors import ConfigError, NotFound


def test_warm_in_two_processes_does_the_same_work_once(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"Fact number {number} is that {number} is a number.")
    run("ingest", str(folder))
    shown = run("warm", "--workers", "2").stdout
    assert "12 chunks: 0 were warm, 12 computed" in shown
    found = re.search(r"12 records of 1 models, (\d+) bytes", run("check").stdout)
    assert found is not None
    capacity = f"store.disk_capacity_bytes={found[1]}"
    shown = run("--set", capacity, "warm", "--workers", "2", "--retention", "pinned").stdout
    assert "12 were warm, 0 computed" in shown and "6 of them are kept as warmed" in shown
    shown = run("--set", capacity, "warm", "--retention", "pinned").stdout
    assert "6 of them are kept as warmed" in shown


def test_workers_say_what_one_process_would(run: Callable[..., Any]) -> None:
    for workers in ("1", "2"):
        with pytest.raises(NotFound, match=r"^No such vector store: 'owls'\."):
            run("warm", "--workers", workers, "--collection", "owls")


def reported(run: Callable[..., Any], *options: str, code: int = 0) -> dict[str, Any]:
    """What `warm --json` says, and nothing beside it."""
    found: dict[str, Any] = json.loads(run(*options, "warm", "--json", code=code).stdout)
    assert found["computed"] == (
        found["kept"] + found["refused"] + found["failed"] + found["evicted"]
    ), "nothing was warm before: each that was computed is in one of these"
    return found


def test_a_store_that_is_full_is_told_before_anything_is_computed(
    run: Callable[..., Any], pages: Path
) -> None:
    run("ingest", str(pages))
    full = ("--set", "store.disk_capacity_bytes=1000")
    shown = run(*full, "warm", code=1).stdout
    assert "0 computed" in shown and "2 were not computed" in shown
    assert "not kept: the store is full. Hint: raise store.disk_capacity_bytes" in shown
    found = reported(run, *full, code=1)
    assert (found["warm"], found["computed"], found["left_out"]) == (0, 0, 2)


def test_chunks_larger_than_their_tenants_quota_are_not_computed(
    run: Callable[..., Any], pages: Path
) -> None:
    run("ingest", str(pages))
    run("quota", "--set", "1000")
    found = reported(run, code=1)
    assert found["computed"] == 0 and found["left_out"] == found["chunks"] == 2
    assert "the quota of tenant 'public', 1000 bytes, has no room" in found["not_kept_reason"]
    shown = run("warm", code=1).stdout
    assert "not kept: the quota" in shown and "chunkcache quota --set" in shown


@pytest.mark.parametrize("workers", [1, 2])
def test_chunks_do_not_push_one_another_out_of_a_quota(
    run: Callable[..., Any], tmp_path: Path, workers: int
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"Fact number {number} is that {number} is a number.")
    run("ingest", str(folder))
    run("warm")
    found = json.loads(run("stats", "--json").stdout)
    size_bytes = found["size_bytes"] // found["records"]
    run("purge", "--tenant", "public", "--yes")
    run("quota", "--set", str(2 * size_bytes))
    report = json.loads(run("warm", "--json", "--workers", str(workers), code=1).stdout)
    stored = json.loads(run("stats", "--json").stdout)["records"]
    assert report["kept"] == report["warm"] == stored == 2 and report["evicted"] == 0
    assert report["computed"] == 2 + report["refused"] == 6 - report["left_out"]
    assert f"{2 * size_bytes} bytes, has no room for more" in report["not_kept_reason"]
    if workers == 1:
        assert report["refused"] == 0, "nothing is computed in vain"
        shown = run("warm", code=1).stdout
        assert "2 were warm, 0 computed" in shown and "4 were not computed" in shown


def test_nothing_to_warm_or_to_find_is_said(run: Callable[..., Any]) -> None:
    assert "0 chunks: " in (shown := run("warm").stdout) and "Hint: chunkcache ingest" in shown
    assert "0 documents. Hint: chunkcache ingest" in run("ls").stdout
    searched = run("search", "owls", "--json")
    assert searched.stdout == "" and "no passage was found in default" in searched.stderr


def test_what_would_go_with_the_command_is_not_computed(
    run: Callable[..., Any], pages: Path
) -> None:
    run("ingest", str(pages))
    with pytest.raises(ConfigError, match=r"store\.disk_capacity_bytes: it is 0 .*Hint"):
        run("--set", "store.disk_capacity_bytes=0", "warm")


def test_a_basis_is_fitted_to_the_corpus_and_named_as_a_setting(
    run: Callable[..., Any], pages: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="no chunks to fit"):
        run("fit-basis")
    run("ingest", str(pages))
    setting, _, value = run("fit-basis", "--chunks", "1").stdout.strip().partition(" = ")
    assert setting == "store.codec" and value.startswith('"basis(file=')
    codec = value.strip('"')
    assert [file.name for file in (tmp_path / "home" / "bases").iterdir()] == [
        f"{codec.removeprefix('basis(file=').removesuffix(')')}.basis"
    ]
    assert "0 failed" in run("--set", f"store.codec={codec}", "warm").stdout
    shown = run("--set", f"store.codec={codec}", "ask", "owls?", "--max-tokens", "2").stdout
    assert "disk, basis(" in shown
    value = run("fit-basis", "--chunks", "1", "--layers", "2").stdout.partition(" = ")[2]
    assert value.startswith('"joint(file=')
    codec = f"store.codec={value.strip().strip(chr(34))}"
    assert "0 failed" in run("--set", codec, "warm").stdout
    shown = run("--set", codec, "ask", "owls?", "--max-tokens", "2").stdout
    assert "disk, joint(" in shown
