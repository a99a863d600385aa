"""A record of no finite numbers with a right checksum: one answer fails, the next one is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.errors import NotFinite

DOCUMENTS = ["Owls hunt at night.", "Cats sleep all day long."]


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_record_of_no_finite_numbers_is_dropped_and_computed_again(
    open_cache: Callable[..., ChunkCache], codec: str
) -> None:
    cache = open_cache(store={"codec": codec})

    def asked() -> str:
        wishes: Any = {"documents": DOCUMENTS, "max_tokens": 3, "budget": 0.0, "policy": "none"}
        answer: str = cache.ask("where?", **wishes).text
        cache.runtime.store.flush()
        return answer

    right, chunks = asked(), cache.runtime.engine.chunks
    (disk,) = cache.runtime.store.tiers
    odd, sound = [resident.key for resident in chunks._residents.values()]
    record, created_ns = disk.get(odd), dict(disk.entries())[sound.digest].created_ns
    assert record is not None and disk.delete(odd)
    damaged = record.kv.clone()
    damaged[-1, 1, 3, 0, 2] = float("nan")
    assert disk.put(replace(record, kv=damaged))
    chunks.clear()
    with pytest.raises(NotFinite):
        asked()
    assert not disk.contains(odd)
    assert dict(disk.entries())[sound.digest].created_ns == created_ns
    assert asked() == right
    again = disk.get(odd)
    assert again is not None and again.is_finite
