"""What was warmed stays, whatever documents requests bring; a tenant has its quota."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.engine.observe import CaptureKV
from chunkcache.errors import ChunkCacheError
from chunkcache.protocol import AnswerFinished

Open = Callable[..., ChunkCache]


def novel(number: int) -> list[str]:
    return [f"Document {number} of a body, part {part}, never seen before." for part in range(3)]


def disk_bytes(cache: ChunkCache) -> int:
    return cache.runtime.store.tiers[-1].usage().size_bytes


def all_on_disk(answer: AnswerFinished) -> bool:
    """Whether the disk has every chunk of an answer, be it quick enough to be read or not."""
    spans = [span for span in answer.report.spans if span.kind == "chunk"]
    return all(span.tier == "disk" or span.miss == "slower" for span in spans)


def test_documents_of_bodies_never_push_out_a_warmed_corpus(open_cache: Open, pages: Path) -> None:
    cache = open_cache()
    cache.ingest([pages])
    cache.ask("when do owls hunt?")
    cache.runtime.store.flush()
    first = cache.warm()
    chunks = first.chunks
    assert 0 < first.already_warm < chunks, "what the question found is warm, on other terms so far"
    corpus = disk_bytes(cache)
    cache.close()
    room = corpus + 4 * corpus // chunks
    cache = open_cache(store={"disk_capacity_bytes": room})
    for number in range(6):
        cache.ask("why?", documents=novel(number))
    cache.runtime.store.flush()
    assert corpus < disk_bytes(cache) <= room, "they have the place that the corpus leaves"
    report = cache.warm()
    assert (report.already_warm, report.computed) == (chunks, 0)
    cache.close()
    cache = open_cache(store={"disk_capacity_bytes": room})  # terms outlive the process
    cache.ask("why?", documents=novel(99))
    assert cache.warm().already_warm == chunks


@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_what_never_leaves_memory_stays_on_disk_too(open_cache: Open, codec: str) -> None:
    """A disk of some ten records sees one use of each; the ones asked for again are hit above."""
    cache = open_cache(store={"codec": codec})
    cache.ask("why?", documents=novel(0))
    cache.runtime.store.flush()
    three = disk_bytes(cache)
    cache.close()
    cache = open_cache(store={"disk_capacity_bytes": 4 * three, "codec": codec})
    for number in range(1, 9):
        cache.ask("why?", documents=novel(number))
        cache.ask("why?", documents=novel(0))
    cache.close()
    cache = open_cache(store={"codec": codec})
    assert all_on_disk(cache.ask("why?", documents=novel(0)))


def test_a_tenant_holds_no_more_than_its_quota(open_cache: Open) -> None:
    cache = open_cache()
    cache.ask("why?", documents=novel(0), tenant="other")
    cache.runtime.store.flush()
    three = disk_bytes(cache)
    cache.close()
    cache = open_cache(store={"quota_bytes": [f"greedy={2 * three}"]})
    for number in range(1, 6):
        cache.ask("why?", documents=novel(number), tenant="greedy")
    cache.runtime.store.flush()
    assert disk_bytes(cache) == 3 * three, "two requests' documents beside the other tenant's"
    cache.close()
    cache = open_cache()
    assert all_on_disk(cache.ask("why?", documents=novel(0), tenant="other"))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_are_no_numbers_is_kept_nowhere(
    open_cache: Open, pages: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    cache, true = open_cache(), CaptureKV.look

    def look(capture: CaptureKV, view: Any) -> None:
        true(capture, view)
        capture._kv[0, 1, -1, 0, 0] = wrong

    cache.ingest([pages])
    assert cache.runtime.reuses, "judged before it is broken"
    with monkeypatch.context() as broken:
        broken.setattr(CaptureKV, "look", look)
        with pytest.raises(ChunkCacheError, match="not finite"):
            cache.ask("when do owls hunt?")
    cache.runtime.store.flush()
    assert all(tier.usage().records == 0 for tier in cache.runtime.store.tiers)
    assert cache.runtime.engine.chunks.usage().records == 0
    assert cache.ask("when do owls hunt?").text
