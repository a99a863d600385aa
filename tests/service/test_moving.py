"""Records that move: to another installation and tenant, under its keys, to answer with."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from chunkcache import ChunkCache
from chunkcache.errors import InvalidRequest, StoreError
from chunkcache.home import STORE_FILE
from chunkcache.keep import Keep
from chunkcache.service.upkeep import ImportReport, export_records, find_garbage, import_records
from chunkcache.store import check_store, store_path
from chunkcache.store.upkeep import remove_stored, take_inventory

Make = Callable[..., Any]
QUESTION = "when do owls hunt?"
ONE_TOKEN = {"max_tokens": 1}


@pytest.fixture
def source(tiny_settings: Make, pages: Path) -> Any:
    """Settings of a closed installation whose tenant `from` is warm."""
    settings = tiny_settings()
    with ChunkCache(settings) as cache:
        cache.ingest([pages], tenant="from")
        cache.warm(tenant="from")
        cache.ask(QUESTION, documents=["of another tenant"], tenant="other", **ONE_TOKEN)
        cache.runtime.store.flush()
    return settings


@pytest.fixture
def archive(source: Any) -> bytes:
    stream = io.BytesIO()
    report = export_records(source, stream, tenant="from")
    assert report.exported > 3
    assert report.corrupt == 0
    return stream.getvalue()


@pytest.fixture
def target(tiny_settings: Make, tmp_path: Path) -> Any:
    return tiny_settings(home=tmp_path / "second")


def taken(settings: Any, archive: bytes) -> ImportReport:
    return import_records(settings, io.BytesIO(archive), tenant="to")


def contents(settings: Any) -> dict[bytes, bytes]:
    found = take_inventory(store_path(settings), settings.store.disk_capacity_bytes)
    return {one.digest: one.packed for one in found.stored}


def record_bytes(settings: Any, tenant: str) -> Iterator[bytes]:
    """KV of the tenant's chunks, as its tier gives it, in order of the collection."""
    with ChunkCache(settings) as cache:
        runtime, salt = cache.runtime, cache._salt(tenant)
        for chunk in cache.catalog.chunks(tenant, "default"):
            key = runtime.key(runtime.prompts.chunk_ids(chunk), salt)
            record = runtime.store.tiers[-1].get(key)
            assert record is not None
            yield record.kv.numpy().tobytes()


def test_another_installation_answers_from_imported_records(
    source: Any, archive: bytes, target: Any, pages: Path
) -> None:
    report = taken(target, archive)
    assert (report.corrupt, report.unread, report.stopped_reason) == (0, 0, "")
    with ChunkCache(target) as cache:
        cache.ingest([pages], tenant="to")
        warmed = cache.warm(tenant="to")
        assert (warmed.already_warm, warmed.computed) == (report.imported, 0)
        answer = cache.ask(QUESTION, tenant="to", **ONE_TOKEN)
        chunks = [span for span in answer.report.spans if span.kind == "chunk"]
        assert chunks
        assert all(span.miss in (None, "slower") for span in chunks), "none was absent"
        assert sum(span.reused for span in chunks) > 0
    assert list(record_bytes(target, "to")) == list(record_bytes(source, "from"))
    assert not set(contents(target)) & set(contents(source)), "keys are this installation's own"
    assert check_store(store_path(target), 1 << 26).clean


def test_importing_twice_changes_nothing(archive: bytes, target: Any) -> None:
    first = taken(target, archive)
    before = contents(target)
    again = taken(target, archive)
    assert (again.imported, again.already_there) == (0, first.imported)
    assert contents(target) == before
    assert all(b"to" in packed for packed in before.values()), "on the terms of its tenant"


def test_an_interrupted_import_leaves_whole_records_and_goes_on(
    archive: bytes, target: Any
) -> None:
    with pytest.raises(StoreError, match=r"ends after \d+ records"):
        taken(target, archive[: len(archive) // 2])
    report = check_store(store_path(target), 1 << 26)
    assert report.clean
    assert report.ok > 0
    rest = taken(target, archive)
    assert rest.already_there == report.ok
    assert rest.imported > 0


def test_a_damaged_record_is_left_out_and_a_damaged_store_set_aside(
    archive: bytes, target: Any
) -> None:
    path = store_path(target)
    path.mkdir(parents=True)
    (path / STORE_FILE).write_bytes(b"no store" * 1024)
    changed = bytearray(archive)
    changed[-5000] ^= 1  # in the last record's last layer
    report = taken(target, bytes(changed))
    assert report.corrupt == 1
    assert report.imported > 2
    assert list(path.glob("*.damaged-*")), "an import begins a new store, as a service does"


def test_other_models_and_prompts_are_refused_in_words(
    archive: bytes, tiny_settings: Make, tmp_path: Path
) -> None:
    other = tiny_settings(home=tmp_path / "b", model={"dtype": "bfloat16"})
    with pytest.raises(InvalidRequest, match=r"fingerprint.*this installation has.*model\.dtype"):
        taken(other, archive)
    other = tiny_settings(home=tmp_path / "c", prompt={"system": "Answer in verse."})
    with pytest.raises(InvalidRequest, match=r"prompt\.system"):
        taken(other, archive)
    without = tiny_settings(home=tmp_path / "d", store={"disk_capacity_bytes": 0})
    with pytest.raises(InvalidRequest, match=r"store\.disk_capacity_bytes"):
        taken(without, archive)
    assert not (tmp_path / "b" / "kv").exists()


def test_a_full_store_stops_an_import_and_evicts_nothing(
    archive: bytes, tiny_settings: Make, tmp_path: Path
) -> None:
    full = tiny_settings(home=tmp_path / "small", store={"disk_capacity_bytes": len(archive) // 2})
    report = taken(full, archive)
    assert "the store is full" in report.stopped_reason
    assert len(contents(full)) == report.imported > 0


def test_an_exact_record_and_a_rounded_one_of_a_chunk_do_not_stay_side_by_side(
    archive: bytes, tiny_settings: Make, pages: Path, tmp_path: Path
) -> None:
    lossy, stream = tiny_settings(home=tmp_path / "lossy", store={"codec": "int8"}), io.BytesIO()
    with ChunkCache(lossy) as cache:
        cache.ingest([pages], tenant="from")
        cache.warm(tenant="from", keep=Keep(retention="pinned", priority=3))
    export_records(lossy, stream, tenant="from")
    target = tiny_settings(home=tmp_path / "second", store={"cold_codec": "int8"})
    count = taken(target, stream.getvalue()).imported
    assert count > 3
    assert taken(target, archive).imported == count
    path = store_path(target)
    found = take_inventory(path, target.store.disk_capacity_bytes).stored
    kept = {(one.entry.codec, one.entry.terms.retention.name, one.entry.terms.priority)
            for one in found}  # fmt: skip
    assert (len(found), kept) == (count, {("raw", "PINNED", 3)})
    before = contents(target)
    again = taken(target, stream.getvalue())
    assert (again.imported, again.already_there) == (0, count)
    assert contents(target) == before
    assert check_store(path, 1 << 26).clean


@pytest.mark.parametrize("retention", ["warmed", "pinned"])
def test_garbage_is_what_nobody_can_ask_for(
    source: Any, tiny_settings: Make, retention: Literal["warmed", "pinned"]
) -> None:
    with ChunkCache(source) as cache:
        cache.keeping.keep(Keep(retention=retention), tenant="from", collection="default")
    everything = set(contents(source))
    assert find_garbage(source) == {}, "what is warm or came in a request's body is none"
    with ChunkCache(source) as cache:
        gone = next(d for d in cache.documents(tenant="from") if "Owls" in d.title)
        cache.remove(gone.document_id, tenant="from")
    found = find_garbage(source)
    assert list(found) == ["of no document"]
    path = store_path(source)
    removed = remove_stored(path, 1 << 26, found["of no document"])
    assert removed == len(found["of no document"]) > 0
    with ChunkCache(source) as cache:
        assert cache.warm(tenant="from").computed == 0, "what is left is all that is asked for"
    changed = tiny_settings(model={"dtype": "bfloat16"})
    stale = find_garbage(changed)["other model"]
    assert {one.digest for one in stale} == everything - {
        one.digest for one in found["of no document"]
    }
