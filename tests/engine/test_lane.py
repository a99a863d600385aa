"""Chunks that come up beside the engine: nothing is read before it is there, or written too early.

Marks stand for events of a CUDA stream: copies are queued when a layer `came`, and done when the
engine's stream has been told to wait for their mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from chunkcache.engine import attention
from chunkcache.engine.arrival import Arrival
from chunkcache.engine.lane import HostLane, StagingRing, lane_for
from chunkcache.engine.loader import Batch
from chunkcache.store.reader import HeldRecord


class Mark:
    """An event that somebody may have waited for."""

    def __init__(self) -> None:
        self.followed = self.synchronized = False

    def wait(self) -> None:
        self.followed = True

    def synchronize(self) -> None:
        self.synchronized = True


class Lane:
    """A lane whose work is never known to be done."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.freed = 0
        self.inside = False
        self.freed_before: list[int] = []  # at the beginning of each piece of work

    @contextmanager
    def work(self) -> Iterator[None]:
        self.inside = True
        self.freed_before.append(self.freed)
        yield
        self.inside = False

    def mark(self) -> Mark:
        assert self.inside, "a mark of somebody else's work"
        self.marks.append(Mark())
        return self.marks[-1]

    def pages_freed(self) -> None:
        self.freed += 1


@pytest.fixture
def lane(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Lane:
    """Of the bench's chunks; no layer attends while a mark of what it reads is not followed."""
    made = Lane()
    monkeypatch.setattr(bench.engine.chunks, "lane", made)
    true = attention.StepRows.attend

    def attend(rows: Any, layer: int, *args: Any, **options: Any) -> Any:
        reads_chunks = any(s.arena == 1 for q in rows.sequences for s in q.segments)
        assert not reads_chunks or all(mark.followed for mark in made.marks[: layer + 1])
        return true(rows, layer, *args, **options)

    monkeypatch.setattr(attention.StepRows, "attend", attend)
    return made


def test_every_layer_is_followed_before_it_is_read(
    bench: Any, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = bench.tokens(40, 1)
    record = bench.record(ids)
    prompt = bench.prompt([ids])
    expected = bench.answer(prompt, {1: record}, "question", budget=0.3, salt=b"held")
    assert lane.marks and all(mark.followed for mark in lane.marks)
    lane.marks.clear()
    monkeypatch.setattr("chunkcache.engine.loader.TASK_BYTES", 1)  # a layer at a time
    true = bench.engine.chunks.hold

    def hold(record: Any, **_: Any) -> Any:
        resident, _ = bench.engine.chunks.expect(record.key, record.stats)
        bench.engine.loader.load(Batch("fake", 0.0), [(HeldRecord(record), resident)])
        return resident

    bench.engine.chunks.hold = hold
    came = bench.answer(prompt, {1: record}, "question", budget=0.3, salt=b"came")
    bench.engine.chunks.hold = true
    assert came.token_ids == expected.token_ids
    assert len(lane.marks) > 1 and all(mark.followed for mark in lane.marks)


def test_pages_are_free_from_when_they_are_given_back(bench: Any, lane: Lane) -> None:
    records = {1: bench.record(bench.tokens(40, 1))}
    prompt = bench.prompt([bench.tokens(40, 1)])
    bench.answer(prompt, records, "none", salt=b"a")
    bench.wait_until_idle()
    freed = lane.freed
    assert freed > 0
    bench.answer(prompt, records, "none", salt=b"b")
    assert lane.freed_before[-1] == freed, "a page was written before it was known to be free"


def test_what_came_is_followed_once_and_what_comes_later_again() -> None:
    arrival, marks = Arrival(3), [Mark(), Mark()]
    arrival.came(0, 1, marks[0])
    assert not arrival.follow() and marks[0].followed
    arrival.came(1, 3, marks[1])
    assert not marks[1].followed
    assert arrival.follow() and marks[1].followed
    assert arrival.follow()


def test_a_buffer_is_filled_again_when_the_device_has_read_it() -> None:
    ring = StagingRing(2, pinned=False)
    first = ring.take(100)
    ring.pass_on(one := Mark())
    second = ring.take(60)
    assert first.data_ptr() != second.data_ptr() and not one.synchronized
    ring.pass_on(other := Mark())
    third = ring.take(90)
    assert one.synchronized and not other.synchronized
    assert third.data_ptr() == first.data_ptr() and len(third) == 90
    ring.pass_on(None)
    assert len(ring.take(200)) == 200 and other.synchronized
    ring.pass_on(None)
    assert ring.take(1).data_ptr() == first.data_ptr()


def test_on_a_cpu_work_is_done_when_it_returns() -> None:
    lane = lane_for(torch.device("cpu"))
    assert isinstance(lane, HostLane)
    with lane.work():
        assert lane.mark() is None  # type: ignore[func-returns-value]
    lane.pages_freed()
