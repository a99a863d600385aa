"""A warm-up says ahead what the store will keep, computes that, and pushes out none of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.keep import Keep
from chunkcache.protocol import GivenDocument
from chunkcache.service.warm import WarmProgress

Open = Callable[..., ChunkCache]


def texts(name: str, count: int) -> list[GivenDocument]:
    return [GivenDocument(text=f"{name} {number}: owls hunt.") for number in range(count)]


@pytest.fixture
def size_bytes(open_cache: Open) -> Iterator[int]:
    """Of one record of such a text on disk."""
    cache = open_cache()
    cache.warm(texts=texts("one", 3))
    size_bytes, rest = divmod(disk_bytes(cache), 3)
    assert not rest
    cache.holdings.clear("public")
    cache.close()
    yield size_bytes


def disk_bytes(cache: ChunkCache) -> int:
    return cache.runtime.store.tiers[-1].usage().size_bytes


def warmed(cache: ChunkCache, given: list[GivenDocument], **wish: Any) -> tuple[Any, Any]:
    told: list[WarmProgress] = []
    report = cache.warm(texts=given, on_progress=told.append, **wish)
    assert report.chunks == report.warm + report.left_out + report.refused + report.evicted
    return report, told


@pytest.mark.parametrize("bound", ["quota", "capacity", "memory"])
def test_what_fits_is_told_first_and_the_rest_is_not_computed(
    open_cache: Open, size_bytes: int, bound: str
) -> None:
    room = 3 * size_bytes + size_bytes // 2
    store: dict[str, Any] = {
        "quota": {"quota_bytes": [f"public={room}"]},
        "capacity": {"disk_capacity_bytes": room},
        "memory": {"disk_capacity_bytes": 0, "quota_bytes": []},
    }[bound]
    cache = open_cache(store=store)
    if bound == "memory":
        page_bytes = cache.runtime.engine.chunks.size_for(1)
        cache.set_quota("public", 3 * page_bytes + 1)
    report, told = warmed(cache, texts("one", 7))
    assert (told[0].done, told[0].left_out, told[0].tokens) == (0, 4, 0), "before any is computed"
    assert (
        told[0].left_out_reason == report.not_kept_reason
        and "Hint: raise" in told[0].left_out_reason
    )
    assert [one.done for one in told[1:]] == [1, 2, 3] and told[-1].eta_s == 0
    assert (report.computed, report.kept, report.left_out) == (3, 3, 4)
    assert report.refused == report.evicted == 0 and not report.is_complete
    again, _ = warmed(cache, texts("one", 7))
    assert (again.already_warm, again.computed, again.left_out) == (3, 0, 4)


def test_what_fits_needs_no_word_ahead(open_cache: Open, size_bytes: int) -> None:
    cache = open_cache(store={"quota_bytes": [f"public={3 * size_bytes}"]})
    report, told = warmed(cache, texts("one", 3))
    assert [one.done for one in told] == [1, 2, 3] and not any(one.left_out for one in told)
    assert report.is_complete and report.kept == 3 and report.not_kept_reason is None


def test_a_tenants_other_chunks_go_for_it_but_none_of_its_own_no_pins_and_no_neighbours(
    open_cache: Open, size_bytes: int
) -> None:
    cache = open_cache()
    warmed(cache, texts("neighbour", 2), tenant="other")
    warmed(cache, texts("pinned", 1), keep=Keep(retention="pinned"))
    warmed(cache, texts("former", 3))
    cache.set_quota("public", 4 * size_bytes)  # it is full
    report, told = warmed(cache, texts("new", 5))
    assert (told[0].left_out, report.computed, report.kept) == (2, 3, 3), "beside the pinned one"
    assert (report.left_out, report.evicted) == (2, 0)
    assert warmed(cache, texts("new", 3))[0].already_warm == 3
    assert warmed(cache, texts("pinned", 1))[0].already_warm == 1
    assert warmed(cache, texts("neighbour", 2), tenant="other")[0].already_warm == 2
    report, _ = warmed(cache, texts("former", 3), keep=Keep(retention="warmed", priority=-8))
    assert (report.already_warm, report.kept) == (0, 3), "it was the one that went"


def test_what_is_warm_already_stays_when_its_collection_grows_over_the_quota(
    open_cache: Open, size_bytes: int
) -> None:
    cache = open_cache(store={"quota_bytes": [f"public={3 * size_bytes}"]})
    warmed(cache, texts("one", 2))
    report, _ = warmed(cache, texts("one", 6)[::-1])  # those that are warm come last
    assert (report.already_warm, report.computed, report.kept, report.evicted) == (2, 1, 1, 0)


def test_a_quota_beside_a_full_disk_makes_its_own_room(open_cache: Open, size_bytes: int) -> None:
    cache = open_cache()
    warmed(cache, texts("former", 3))
    cache.close()
    limits = {"disk_capacity_bytes": 3 * size_bytes, "quota_bytes": [f"public={2 * size_bytes}"]}
    cache = open_cache(store=limits)
    report, _ = warmed(cache, texts("new", 3))
    assert (report.kept, report.left_out, disk_bytes(cache)) == (2, 1, 2 * size_bytes)


@pytest.mark.parametrize("codec", ["int4", "int8", "zstd(over=int8)", "gear(bits=4)"])
def test_room_is_told_by_what_the_codec_makes_of_chunks(open_cache: Open, codec: str) -> None:
    cache = open_cache(store={"codec": codec})
    warmed(cache, texts("one", 3))
    size_bytes = -(-disk_bytes(cache) // 3)
    cache.holdings.clear("public")
    cache.set_quota("public", 2 * size_bytes)
    report, told = warmed(cache, texts("one", 6))
    assert (report.computed, report.kept, report.left_out) == (2, 2, 4)
    assert told[0].left_out == 4
