"""A catalog with a damaged passage serves all that is sound, and says what is not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.errors import CorruptRecord


def change(cache: ChunkCache, statement: str) -> None:
    path = cache.settings.home / "catalog.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(statement).rowcount == 1


def counted(cache: ChunkCache) -> tuple[float, float]:
    """Damaged passages and texts, as `/metrics` has them."""
    lines = cache.metrics.render().decode().splitlines()
    name = "chunkcache_catalog_damaged_total"
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith(name))
    passages, texts = (float(values[f'{name}{{kind="{kind}"}}']) for kind in ("passage", "text"))
    return passages, texts


def test_answers_and_warm_ups_go_without_it(
    open_cache: Callable[..., ChunkCache], pages: Path
) -> None:
    cache = open_cache()
    cache.ingest([pages])
    cache.warm()
    asked = cache.ask("when do owls hunt?", top_k=2)
    damaged = asked.citations[0]
    no_utf8 = "CAST(x'e5' || text AS TEXT)"
    change(cache, f"UPDATE chunks SET text = {no_utf8} WHERE chunk_id = '{damaged.chunk_id}'")
    assert counted(cache) == (0, 0)
    again = cache.ask("when do owls hunt?", top_k=2)
    in_answer, _ = counted(cache)
    assert in_answer > 0
    assert again.text and damaged.chunk_id not in [c.chunk_id for c in again.citations]
    after = cache.warm()
    assert after.already_warm == after.chunks > 0
    passages, texts = counted(cache)
    assert passages > in_answer and texts == 0


def test_a_damaged_text_is_shown_to_nobody(
    open_cache: Callable[..., ChunkCache], pages: Path
) -> None:
    cache: Any = open_cache()
    cache.ingest([pages])
    (document, *_) = cache.documents()
    assert cache.document_text(document.document_id)
    change(
        cache,
        f"UPDATE documents SET text = text || '!' WHERE document_id = '{document.document_id}'",
    )
    with pytest.raises(CorruptRecord, match="is damaged"):
        cache.document_text(document.document_id)
    assert counted(cache) == (0, 1)
