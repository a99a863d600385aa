"""What the page reads from the real service: where chunks' KV is, and the journal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.console.warming import WarmWish
from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.service.asking import Measure
from chunkcache.service.wishes import answer_request


def states(cache: ChunkCache, document_id: str, **wishes: Any) -> list[Any]:
    asked = {"tenant": "public", "collection": "default", "offset": 0, "limit": 50, **wishes}
    return cache.kv_states.of_chunks(document_id, **asked)[1]


def test_a_chunk_goes_from_no_tier_to_disk_to_memory(cache: ChunkCache, pages: Path) -> None:
    cache.ingest([pages])
    owls = next(d for d in cache.documents() if d.title == "Owls")
    cold = states(cache, owls.document_id)
    assert [c.tier for c in cold] == [None] * owls.num_chunks
    assert [c.ordinal for c in cold] == list(range(owls.num_chunks))
    _, text = cache.document_text(owls.document_id)
    assert all(text[c.start_char : c.end_char] == c.text for c in cold)
    cache.warm()
    assert {c.tier for c in states(cache, owls.document_id)} == {"disk"}
    cited = {c.chunk_id for c in cache.ask("where do owls hunt?", top_k=1).citations}
    found = {c.chunk_id: c.tier for c in states(cache, owls.document_id)}
    assert {found[chunk_id] for chunk_id in cited} == {"host"}


def counted(cache: ChunkCache) -> list[bytes]:
    lines = cache.metrics.render().splitlines()
    return [line for line in lines if line.startswith((b"chunkcache_chunk", b"chunkcache_tier"))]


def test_looking_is_no_use_and_counts_as_none(cache: ChunkCache, pages: Path) -> None:
    cache.ingest([pages])
    cache.warm()
    ids = [d.document_id for d in cache.documents()]
    before = counted(cache)
    found = cache.kv_states.of_documents(ids, tenant="public", collection="default")
    assert counted(cache) == before
    assert [(s.chunks, s.counted) for s in found] == [
        (d.num_chunks, d.num_chunks) for d in cache.documents()
    ]
    assert {tier for state in found for tier in state.tiers} == {"disk"}


def test_chunks_come_in_pages_and_only_from_documents_there_are(
    cache: ChunkCache, pages: Path
) -> None:
    cache.ingest([pages])
    dogs = next(d for d in cache.documents() if d.title == "Dogs")
    assert dogs.num_chunks > 1
    one_by_one = [
        states(cache, dogs.document_id, offset=n, limit=1) for n in range(dogs.num_chunks)
    ]
    assert [c for part in one_by_one for c in part] == states(cache, dogs.document_id)
    assert states(cache, dogs.document_id, offset=dogs.num_chunks) == []
    for wrong in ({"tenant": "other"}, {"collection": "vs_none"}):
        with pytest.raises(NotFound):
            states(cache, dogs.document_id, **wrong)
    with pytest.raises(NotFound):
        states(cache, "none")


def test_a_chunk_says_under_which_headings_it_stands(cache: ChunkCache, pages: Path) -> None:
    owls = "They hunt at night and hear well. " * 12
    text = f"# Birds\n\nOf all kinds.\n\n## Owls\n\n### Hunting\n\n{owls}"
    (pages / "birds.md").write_text(text)
    cache.ingest([pages])
    birds = next(d for d in cache.documents() if d.title == "Birds")
    last = states(cache, birds.document_id)[-1]
    assert (last.title, last.headings) == ("Birds", ["Owls", "Hunting"])


def test_a_tenants_kv_is_nobody_elses(cache: ChunkCache, pages: Path) -> None:
    for tenant in ("one", "two"):
        cache.ingest([pages], tenant=tenant)
    cache.warm(tenant="one")
    ids = [d.document_id for d in cache.documents(tenant="two")]
    found = cache.kv_states.of_documents(ids, tenant="two", collection="default")
    assert [state.tiers for state in found] == [{}] * len(ids)


def test_answers_are_journalled_with_reasons_and_measurements_are_not(cache: ChunkCache) -> None:
    texts = ["The quick brown fox. " * 4]
    cache.ask("why?", documents=texts)
    cache.ask("why?", documents=texts)
    list(cache.start(answer_request("measured?", {}), measure=Measure()).events())
    first, second = cache.console.journal.of("public")
    assert [s.miss for s in first.report.spans if s.kind == "chunk"] == ["absent"]
    assert [s.tier for s in second.report.spans if s.kind == "chunk"] == ["host"]
    handle = cache.start(answer_request("left?", {}))
    events = handle.events()
    next(events)
    events.close()
    assert cache.console.journal.of("public")[-1].outcome == "cancelled"
    assert cache.console.history.samples("hour")[0].queries["host"] == 1


def test_a_warm_up_can_be_paused_and_goes_on(cache: ChunkCache, pages: Path) -> None:
    cache.ingest([pages])
    cache.load()
    warm_ups = cache.console.warm_ups
    warm_ups.start("public", WarmWish("default"))
    try:
        warm_ups.pause("public")
    except InvalidRequest:  # it was faster than this test
        pass
    else:
        assert warm_ups.state("public").state == "paused"
        warm_ups.resume("public")
    warm_ups._jobs["public"].join(30)
    state = warm_ups.state("public")
    assert state.state == "done"
    assert state.done == state.total == cache.warm().already_warm > 0


def test_closing_ends_a_paused_warm_up(open_cache: Callable[..., ChunkCache], pages: Path) -> None:
    cache = open_cache()
    cache.ingest([pages])
    cache.load()
    cache.console.warm_ups.start("public", WarmWish("default"))
    job = cache.console.warm_ups._jobs["public"]
    cache.close()
    assert job.is_over
