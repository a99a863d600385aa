"""kill -9 at random points of ingest and warm: what is on disk is whole, and right.

`CHUNKCACHE_TEST_KILLS` sets how many kills each test does (50 is what releases are held to),
`CHUNKCACHE_TEST_SEED` where they fall.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.engine.prefill import ChunkPrefill
from chunkcache.service.diagnosis import check_records

CHILD = Path(__file__).with_name("child.py")
KILLS = int(os.environ.get("CHUNKCACHE_TEST_KILLS", "3"))
SEED = int(os.environ.get("CHUNKCACHE_TEST_SEED", "1"))
DOCUMENTS = 40


@pytest.fixture
def settings(tiny_settings: Callable[..., Any]) -> Any:
    return tiny_settings()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pages = tmp_path / "pages"
    pages.mkdir()
    write_pages(pages, edition=0)
    return pages


def write_pages(pages: Path, *, edition: int) -> None:
    for number in range(DOCUMENTS):
        lines = [f"Fact {i} of page {number}, edition {edition}: {i * number}." for i in range(12)]
        (pages / f"{number:03}.txt").write_text("\n\n".join(lines))


@contextmanager
def running(settings: Any, *task: str) -> Iterator[subprocess.Popen[str]]:
    """The child, past its `ready`."""
    given = settings.model_dump(mode="json", exclude_unset=True)
    process = subprocess.Popen(
        [sys.executable, str(CHILD), json.dumps(given), *task],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("ready"):
                break
        else:
            raise AssertionError("the child ended before it was ready")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def kill_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kill -9 after a while; False if the work was over before."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def assert_store_is_sound(settings: Any) -> int:
    report = check_records(settings, fix=False, drop_stale=False)
    assert report.problems == [] and report.orphans == 0 and report.models <= 1
    return report.records


def assert_records_hold_what_would_be_computed(cache: ChunkCache) -> None:
    """No wrong byte: every record that is found equals one made afresh."""
    runtime, salt = cache.runtime, cache._salt("public")
    for chunk in list(cache.catalog.chunks("public", "default"))[:: DOCUMENTS // 8]:
        key = runtime.key(runtime.prompts.chunk_ids(chunk), salt)
        found = runtime.store.fetch(key).record
        if found is None:
            continue
        fresh = ChunkPrefill(
            key,
            head=runtime.prompts.canonical_head,
            prior=runtime.prompts.born_passages,
            salt=salt,
        )
        runtime.engine.submit(fresh)
        assert (found.kv - fresh.future.result().kv).abs().max() < 1e-4


def test_killed_ingests_leave_whole_documents(settings: Any, folder: Path) -> None:
    chance = random.Random(SEED)
    killed = 0
    for edition in range(KILLS):
        write_pages(folder, edition=edition)
        with running(settings, "ingest", str(folder)) as process:
            killed += kill_after(process, chance.uniform(0.0, 0.8))
        with sqlite3.connect(settings.home / "catalog.sqlite") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        connection.close()
        with ChunkCache(settings) as cache:
            for document in cache.documents():
                info, text = cache.document_text(document.document_id)
                editions = {line.split("edition ")[1].split(":")[0] for line in text.split("\n\n")}
                assert len(editions) == 1  # one version, never a mixture
                assert info.num_chunks > 0
    with ChunkCache(settings) as cache:
        report = cache.ingest([folder])
        assert report.added + report.updated + report.unchanged == DOCUMENTS
        assert len(cache.documents()) == DOCUMENTS
        last = KILLS - 1
        for passage in cache.search("fact of page 7", top_k=20):
            assert f"edition {last}:" in passage.text
    assert killed > 0, "no kill fell into the work: lengthen it"


def test_killed_ingests_keep_every_document_that_was_acknowledged(
    settings: Any, folder: Path
) -> None:
    chance = random.Random(SEED + 3)
    for edition in range(KILLS):
        write_pages(folder, edition=edition)
        told = []
        with running(settings, "ingest", str(folder)) as process:
            last = chance.randrange(1, DOCUMENTS)
            assert process.stdout is not None
            for line in process.stdout:
                told.append(line.split()[-1])
                if len(told) == last:
                    process.kill()
        acknowledged = {Path(name).name for name in told if name != "done"}
        assert len(acknowledged) >= last
        with ChunkCache(settings) as cache:
            for document in cache.documents():
                if document.title in acknowledged:
                    acknowledged.remove(document.title)
                    assert f"edition {edition}:" in cache.document_text(document.document_id)[1]
        assert not acknowledged


def test_killed_warm_ups_leave_whole_records_and_resume(settings: Any, folder: Path) -> None:
    chance = random.Random(SEED + 1)
    with ChunkCache(settings) as cache:
        cache.ingest([folder])
        cache.load()
    killed, before = 0, 0
    for _ in range(KILLS):
        with running(settings, "warm") as process:
            killed += kill_after(process, chance.uniform(0.0, 0.15))
        records = assert_store_is_sound(settings)
        assert records >= before
        before = records
    with ChunkCache(settings) as cache:
        report = cache.warm()
        assert report.already_warm == before
        assert report.already_warm + report.computed == report.chunks
        cache.runtime.store.flush()
        assert_records_hold_what_would_be_computed(cache)
    assert assert_store_is_sound(settings) == report.chunks
    assert killed > 0, "no kill fell into the work: lengthen it"
