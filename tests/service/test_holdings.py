"""What a tenant's records are, and that all of them, and no others, are forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from chunkcache import ChunkCache
from chunkcache.errors import InvalidRequest

ONE_TOKEN = {"max_tokens": 1}


def test_records_are_listed_in_order_and_cleared_by_tenant(cache: ChunkCache, pages: Path) -> None:
    cache.ingest([pages], tenant="one")
    warmed = cache.warm(tenant="one")
    cache.ask("when do owls hunt?", tenant="one", **ONE_TOKEN)
    cache.ask("why?", documents=["Owls hunt at night."], tenant="two", **ONE_TOKEN)
    cache.runtime.store.flush()
    listed = cache.holdings.records("one", after=None, limit=1000)
    assert len(listed) == warmed.chunks
    assert [record.id for record in listed] == sorted({record.id for record in listed})
    assert {record.retention for record in listed} == {"warmed"}
    assert cache.holdings.disk_bytes("one") == sum(record.size_bytes for record in listed) > 0
    assert cache.holdings.disk_bytes("nobody") == 0
    first = cache.holdings.records("one", after=None, limit=2)
    rest = cache.holdings.records("one", after=first[-1].id, limit=1000)
    assert first + rest == listed
    with pytest.raises(InvalidRequest, match="after"):
        cache.holdings.records("one", after="not an id", limit=2)
    chunks = cache.runtime.engine.chunks
    held = chunks.usage().records
    cleared = cache.holdings.clear("one").removed
    assert cleared["disk"] == warmed.chunks
    on_device = cleared[cache.runtime.engine.chunk_tier]
    assert 0 < on_device == held - chunks.usage().records
    assert cache.holdings.records("one", after=None, limit=10) == []
    assert set(cache.holdings.clear("one").removed.values()) == {0}
    assert len(cache.holdings.records("two", after=None, limit=10)) == 1
    again = cache.ask("why?", documents=["Owls hunt at night."], tenant="two", **ONE_TOKEN)
    assert [span.miss for span in again.report.spans if span.kind == "chunk"] == [None]
    assert cache.warm(tenant="one").computed == warmed.chunks


def test_only_the_documents_that_are_named_are_warmed(cache: ChunkCache, pages: Path) -> None:
    cache.ingest([pages])
    owls = next(d for d in cache.documents() if d.title == "Owls")
    report = cache.warm(document_ids=[owls.document_id, "doc-none"])
    assert 0 < report.computed == report.chunks <= owls.num_chunks, "some of them are equal"
    assert len(cache.holdings.records("public", after=None, limit=100)) == report.chunks
    rest = cache.warm()
    assert rest.already_warm == report.chunks < rest.chunks
