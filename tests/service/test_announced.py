"""What a request that waits will want: spared while it waits, and never a moment longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.chunk import ChunkKey
from chunkcache.engine.generation import Generation
from chunkcache.engine.model import DecoderModel
from chunkcache.engine.prefill import ChunkPrefill
from chunkcache.errors import ChunkCacheError, InvalidRequest, ShuttingDown
from chunkcache.service import asking
from chunkcache.service.wishes import answer_request

TEXTS = [f"Passage {i}: " + "the quick brown fox jumps over the lazy dog. " for i in range(6)]
RECORD_PAGES = 24  # more than a record of these takes on disk


class Gate:
    """Forward passes wait here until it is open."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.fault: Exception | None = None
        true = DecoderModel.forward

        def forward(model: DecoderModel, *args: Any) -> Any:
            self.entered.set()
            assert self.open.wait(30)
            if self.fault is not None:
                raise self.fault
            return true(model, *args)

        patch.setattr(DecoderModel, "forward", forward)


@pytest.fixture
def one_runs(open_cache: Callable[..., ChunkCache]) -> ChunkCache:
    """A cache that runs one request at a time, with a small disk and `TEXTS[0]` warm."""
    cache = open_cache(
        engine={"max_running": 1, "queue_limit": 4},
        store={"disk_capacity_bytes": 4096 * RECORD_PAGES * 12},
    )
    cache.ask("why?", documents=TEXTS[:1], max_tokens=1)
    cache.runtime.store.flush()
    cache.runtime.drain(30)
    return cache


def policies(cache: ChunkCache) -> list[Any]:
    runtime = cache.runtime
    return [runtime.engine.chunks._policy, runtime.store.tiers[0]._mirror._policy]


def waits(cache: ChunkCache) -> list[Any]:
    """Who waits for what, as the device's policy knows it and the disk's."""
    return [dict(policy._waits) for policy in policies(cache)]


def start(cache: ChunkCache, texts: list[str], **wishes: Any) -> Any:
    return cache.start(answer_request("why?", {"documents": texts, "max_tokens": 2, **wishes}))


def run_out(handle: Any) -> None:
    for _ in handle.events():
        pass


@pytest.fixture
def queued(one_runs: ChunkCache, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The cache, its gate, a request that runs, and one behind it that waits for `TEXTS[0]`."""
    gate = Gate(monkeypatch)
    running = start(one_runs, [])
    assert gate.entered.wait(30)
    waiting = start(one_runs, TEXTS[:1])
    device, disk = waits(one_runs)
    assert len(device) == 1 and device.keys() <= disk.keys(), "the request is not announced"
    yield one_runs, gate, running, waiting
    gate.open.set()


def test_chunks_of_a_waiting_request_survive_an_eviction_that_would_have_taken_them(
    queued: Any,
) -> None:
    cache, gate, running, waiting = queued
    runtime = cache.runtime
    disk = runtime.store.tiers[0]
    (resident,) = runtime.engine.chunks._residents.values()
    wanted = resident.key
    record = disk.get(wanted)
    fresh = iter(range(1000))

    def bring_others() -> None:
        """Until twelve records have left for them, each asked for more often than the first."""
        evicted = cache.metrics.evictions.labels("disk")._value
        enough = evicted.get() + 12
        while evicted.get() < enough:
            key = ChunkKey(b"%032d" % next(fresh), wanted.token_ids)
            for _ in range(6):
                assert runtime.engine.chunks.lease(key) is None
            assert runtime.store.offer(replace(record, key=key), wait=True)

    bring_others()
    assert disk.contains(wanted)
    gate.open.set()
    run_out(running)
    run_out(waiting)
    assert waits(cache) == [{}, {}]
    bring_others()
    assert not disk.contains(wanted), "it was the wait alone that kept it"


def test_a_request_is_withdrawn_when_it_begins_to_run(queued: Any) -> None:
    cache, gate, running, waiting = queued
    seen: list[Any] = []
    true = Generation.begin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Generation, "begin", lambda self, model: (seen.append(waits(cache)), true(self, model))
        )
        gate.open.set()
        run_out(running)
        run_out(waiting)
    assert seen == [[{}, {}]]


@pytest.mark.parametrize("way", ["answered", "cancelled", "failed", "closed"])
def test_no_way_out_of_the_queue_leaves_an_announcement(queued: Any, way: str) -> None:
    cache, gate, running, waiting = queued
    known = policies(cache)
    if way == "cancelled":
        waiting.cancel()
    if way == "failed":
        gate.fault = RuntimeError("a cosmic ray")
    if way == "closed":
        door = cache.runtime.engine._door
        closing = threading.Thread(target=cache.close)
        closing.start()
        deadline_s = time.monotonic() + 30
        while not door.is_shut and time.monotonic() < deadline_s:
            time.sleep(0.001)
        assert door.is_shut
    gate.open.set()
    for handle in (running, waiting):
        try:
            run_out(handle)
        except ChunkCacheError as error:
            assert way != "answered", error
    if way == "closed":
        closing.join(30)
        with pytest.raises(ShuttingDown):
            start(cache, TEXTS[:1])
    assert [policy._waits for policy in known] == [{}, {}]


def test_no_way_to_come_to_nothing_leaves_an_announcement(
    one_runs: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = one_runs
    announced: list[Any] = []
    true = type(cache.runtime.store).on_wait

    def on_wait(store: Any, keys: Any) -> None:
        true(store, keys)
        announced.append(waits(cache))

    monkeypatch.setattr(type(cache.runtime.store), "on_wait", on_wait)

    def fails(patch: pytest.MonkeyPatch) -> None:
        def advance(*_: Any) -> None:
            raise RuntimeError("a cosmic ray")

        patch.setattr(ChunkPrefill, "advance", advance)

    def refuses(patch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise InvalidRequest("a grammar that is none")

        patch.setattr(asking, "Generation", refuse)

    def shuts(patch: pytest.MonkeyPatch) -> None:
        def shut(*_: Any) -> None:
            raise ShuttingDown("just now")

        patch.setattr(type(cache.runtime.engine._door), "let_in", shut)

    gone = threading.Event()
    gone.set()
    request = answer_request("why?", {"documents": TEXTS[1:3], "max_tokens": 2})
    with pytest.raises(ChunkCacheError):
        cache.start(request, gone=gone)  # nobody waits for what is computed
    with pytest.raises(ChunkCacheError):
        start(cache, TEXTS[:1], n=16, max_tokens=2500)  # too many for the pages
    for texts, breaks in ((TEXTS[3:5], fails), (TEXTS[:1], refuses), (TEXTS[:1], shuts)):
        with monkeypatch.context() as patch, pytest.raises(ChunkCacheError):
            breaks(patch)
            start(cache, texts)
        assert waits(cache) == [{}, {}]
    assert len(announced) >= 5 and all(device for device, _ in announced), "they were announced"
    assert waits(cache) == [{}, {}]


def test_a_request_that_reads_no_chunks_announces_none(
    one_runs: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_wait(*_: Any) -> None:
        raise AssertionError("announced")

    monkeypatch.setattr(type(one_runs.runtime.store), "on_wait", on_wait)
    run_out(start(one_runs, TEXTS[:1], mode="full"))
    run_out(start(one_runs, []))
