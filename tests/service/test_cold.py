"""Passages that no tier has: what holds a place in the queue, what is kept, what is given up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.engine.model import DecoderModel
from chunkcache.engine.prefill import ChunkPrefill
from chunkcache.errors import Cancelled, ChunkCacheError, Overloaded
from chunkcache.protocol import AnswerFinished
from chunkcache.service.wishes import answer_request

TEXTS = [f"Passage {i}: " + "the quick brown fox jumps over the lazy dog. " * 2 for i in range(7)]


def misses(answer: AnswerFinished) -> list[bool]:
    return [s.miss is not None for s in answer.report.spans if s.kind == "chunk"]


class Caller(threading.Thread):
    """Asks in a thread; `result` is the answer's handle or the error."""

    def __init__(self, cache: ChunkCache, texts: list[str]) -> None:
        super().__init__()
        self.gone = threading.Event()
        self.result: Any = None
        self._cache = cache
        self._request = answer_request("why?", {"documents": texts, "max_tokens": 2})
        self.start()

    def run(self) -> None:
        try:
            self.result = self._cache.start(self._request, gone=self.gone)
        except ChunkCacheError as error:
            self.result = error

    def outcome(self) -> Any:
        self.join(30)
        assert not self.is_alive()
        return self.result


class Held:
    """Forward passes are counted, and wait until told to go on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.passes = 0
        true = DecoderModel.forward

        def forward(model: DecoderModel, *args: Any) -> Any:
            self.passes += 1
            self.entered.set()
            assert self.go_on.wait(30)
            return true(model, *args)

        patch.setattr(DecoderModel, "forward", forward)


@contextmanager
def watched_waits(patch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """Released for every prefill that a caller begins to wait for."""
    waits, true = threading.Semaphore(0), ChunkPrefill.wait_for

    def wait_for(prefill: ChunkPrefill, gone: threading.Event) -> bool:
        joined = true(prefill, gone)
        waits.release()
        return joined

    with patch.context() as context:
        context.setattr(ChunkPrefill, "wait_for", wait_for)
        yield waits


def test_a_request_is_not_refused_for_its_own_passages(
    open_cache: Callable[..., ChunkCache],
) -> None:
    cache = open_cache(engine={"queue_limit": 1, "max_running": 1})
    answer = cache.ask("why?", documents=TEXTS, max_tokens=2)
    assert misses(answer) == [True] * len(TEXTS)
    cache.runtime.drain(30)  # an answer may be read a moment before its place is given back
    assert cache.runtime.engine.unfinished == 0


def test_a_request_holds_one_place_from_the_beginning(
    open_cache: Callable[..., ChunkCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(engine={"queue_limit": 1, "max_running": 1})
    cache.load()
    held = Held(monkeypatch)
    with watched_waits(monkeypatch) as waits:
        callers = [Caller(cache, TEXTS[:2]), Caller(cache, TEXTS[2:4])]
        for _ in range(4):
            assert waits.acquire(timeout=30)
    third = Caller(cache, TEXTS[4:])
    assert isinstance(third.outcome(), Overloaded)
    held.go_on.set()
    for caller in callers:
        assert isinstance(list(caller.outcome().events())[-1], AnswerFinished)
    assert isinstance(cache.ask("why?", documents=TEXTS[4:], max_tokens=2), AnswerFinished)


def test_a_request_that_is_wrong_gives_its_place_back(
    open_cache: Callable[..., ChunkCache],
) -> None:
    cache = open_cache(engine={"queue_limit": 1, "max_running": 1})
    for _ in range(5):
        with pytest.raises(ChunkCacheError, match="messages: got"):
            cache.ask("why?", documents=TEXTS, max_tokens=1 << 20)
    assert cache.runtime.engine.unfinished == 0


def test_what_was_computed_before_another_passage_failed_is_kept(
    cache: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.load()
    true, ended = ChunkPrefill.advance, []

    def advance(prefill: ChunkPrefill, *args: Any) -> None:
        ended.append(1)
        if len(ended) == 2:
            raise RuntimeError("a cosmic ray")
        true(prefill, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkPrefill, "advance", advance)
        with pytest.raises(ChunkCacheError, match="cosmic ray"):
            cache.ask("why?", documents=TEXTS, max_tokens=2)
    # the failed one aside, and those that were not begun any more
    assert 4 <= len(ended) < len(TEXTS)
    kept = [True] + [False] + [True] * (len(ended) - 2) + [False] * (len(TEXTS) - len(ended))
    again = cache.ask("why?", documents=TEXTS, max_tokens=2)
    assert misses(again) == [not hit for hit in kept]


def test_passages_nobody_waits_for_any_more_are_not_computed(
    open_cache: Callable[..., ChunkCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(engine={"step_tokens": 16})  # no passage is done after one pass
    cache.load()
    held = Held(monkeypatch)
    with watched_waits(monkeypatch) as waits:
        caller = Caller(cache, TEXTS)
        for _ in range(4):
            assert waits.acquire(timeout=30)
    assert held.entered.wait(30)
    caller.gone.set()
    held.go_on.set()
    assert isinstance(caller.outcome(), Cancelled)
    assert held.passes == 1
    assert cache.runtime.engine.unfinished == 0
    assert misses(cache.ask("why?", documents=TEXTS, max_tokens=2)) == [True] * len(TEXTS)


def test_passages_somebody_else_waits_for_are_computed_all_the_same(
    cache: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.load()
    held = Held(monkeypatch)
    with watched_waits(monkeypatch) as waits:
        leaving, staying = Caller(cache, TEXTS[:3]), Caller(cache, TEXTS[:3])
        for _ in range(6):
            assert waits.acquire(timeout=30)
    leaving.gone.set()
    held.go_on.set()
    assert isinstance(list(staying.outcome().events())[-1], AnswerFinished)
    assert isinstance(leaving.outcome(), Cancelled)
