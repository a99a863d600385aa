"""A collection that nobody used for its days: not searched any more, never lost, used again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.protocol import AnswerRequest, Message


def unused_since(cache: ChunkCache, collection: str, days: float) -> None:
    with cache.catalog._database.writing() as connection:
        connection.execute(
            "UPDATE collections SET last_active_at = ? WHERE id = ?",
            (time.time() - days * 86_400, collection),
        )


def test_an_expired_collection_is_refused_and_keeps_its_documents(
    cache: ChunkCache, pages: Path
) -> None:
    store = cache.create_collection("owls", expires_after_days=2).id
    cache.ingest([pages / "owls.md"], collection=store)
    assert cache.search("owls", collection=store)
    unused_since(cache, store, 2.01)
    for use in (lambda: cache.search("owls", collection=store),
                lambda: cache.ask("where do owls hunt?", collection=store)):  # fmt: skip
        with pytest.raises(InvalidRequest, match=r"vector_store_id: .* has expired.* are kept"):
            use()
    assert [d.title for d in cache.documents(collection=store)] == ["Owls"]
    cache.change_collection(store, name="owls", metadata={}, expires_after_days=2)
    assert cache.search("owls", collection=store)


def test_a_store_that_is_named_must_be_there_and_alive_though_it_is_not_searched(
    cache: ChunkCache,
) -> None:
    ways: list[dict[str, Any]] = [
        {"documents": [{"text": "Owls hunt at night."}]},
        {"top_k": 0},
        {"messages": [Message(role="user", content=" ")]},
    ]
    expired = cache.create_collection("old", expires_after_days=2).id
    unused_since(cache, expired, 2.01)
    for wishes in ways:
        asked = {"messages": [Message(role="user", content="where?")], **wishes}
        for named in ({"collection": "vs_none"}, {"also": ("vs_none",)}):
            with pytest.raises(NotFound, match="No such vector store: 'vs_none'"):
                cache.start(AnswerRequest(**asked, **named))
        with pytest.raises(InvalidRequest, match="has expired"):
            cache.start(AnswerRequest(**asked, collection=expired))


def test_a_search_begins_the_time_anew(cache: ChunkCache, pages: Path) -> None:
    store = cache.create_collection("owls", expires_after_days=2).id
    cache.ingest([pages / "owls.md"], collection=store)
    unused_since(cache, store, 1.9)
    cache.search("owls", collection=store)
    assert time.time() - (cache.collection(store).last_active_at or 0) < 3600


def test_a_search_begins_the_time_anew_though_the_clock_was_set_back(
    cache: ChunkCache, pages: Path
) -> None:
    store = cache.create_collection("owls", expires_after_days=2).id
    cache.ingest([pages / "owls.md"], collection=store)
    unused_since(cache, store, -365)  # a search while the clock was a year ahead
    cache.search("owls", collection=store)
    assert (cache.collection(store).last_active_at or 0) <= time.time()


def test_one_that_cannot_expire_is_not_written_to_by_searches(
    cache: ChunkCache, pages: Path
) -> None:
    store = cache.create_collection("owls").id
    cache.ingest([pages / "owls.md"], collection=store)
    unused_since(cache, store, 400)
    assert cache.search("owls", collection=store)
    assert time.time() - (cache.collection(store).last_active_at or 0) > 399 * 86_400
