"""Writes in a thread of their own: in order, bounded, none lost, none waited for in vain."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from chunkcache.errors import StoreError
from chunkcache.store.write_behind import WriteBehind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from chunkcache.chunk import ChunkKV


class Gate:
    """A `write` that waits to be let through, and notes what came."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.written: list[ChunkKV] = []

    def write(self, record: ChunkKV) -> bool:
        self.entered.set()
        assert self.open.wait(20)
        if len(record.key.token_ids) == 13:
            raise KeyError("thirteen")
        self.written.append(record)
        return True


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def behind(gate: Gate) -> Iterator[WriteBehind]:
    behind = WriteBehind(gate.write, limit=2, limit_bytes=10**6)
    yield behind
    gate.open.set()
    behind.close()


def test_records_are_written_in_the_order_offered(
    gate: Gate, behind: WriteBehind, records: ModuleType
) -> None:
    gate.open.set()
    made = [records.make_record(n) for n in range(9)]
    for record in made:
        assert behind.offer(record, wait_for_place=True) is not None
    behind.flush()
    assert gate.written == made


def test_a_full_queue_takes_nothing_unless_told_to_wait(
    gate: Gate, behind: WriteBehind, records: ModuleType
) -> None:
    one = records.make_record(1)
    behind.offer(one, wait_for_place=False)
    assert gate.entered.wait(20)  # it is being written and no longer waits
    assert behind.offer(one, wait_for_place=False) is not None
    assert behind.offer(one, wait_for_place=False) is not None
    assert behind.offer(one, wait_for_place=False) is None
    gate.open.set()
    done = behind.offer(one, wait_for_place=True)
    assert done is not None and done.result(20)
    assert len(gate.written) == 4


def test_a_failed_write_is_handed_to_its_waiter_and_the_thread_goes_on(
    gate: Gate, behind: WriteBehind, records: ModuleType
) -> None:
    gate.open.set()
    bad = behind.offer(records.make_record(1, num_tokens=13), wait_for_place=True)
    good = behind.offer(records.make_record(2), wait_for_place=True)
    assert bad is not None and good is not None
    with pytest.raises(KeyError, match="thirteen"):
        bad.result(20)
    assert good.result(20)


def test_closing_writes_what_is_queued_and_takes_nothing_more(
    gate: Gate, behind: WriteBehind, records: ModuleType
) -> None:
    for number in range(2):
        behind.offer(records.make_record(number), wait_for_place=True)
    closer = threading.Thread(target=behind.close)
    closer.start()
    gate.open.set()
    closer.join(20)
    assert len(gate.written) == 2
    with pytest.raises(StoreError, match="closed"):
        behind.offer(records.make_record(3), wait_for_place=True)
    behind.flush()
    behind.close()


def test_who_waits_for_a_place_is_told_when_the_queue_closes(
    gate: Gate, behind: WriteBehind, records: ModuleType
) -> None:
    refused = threading.Event()

    def wait_for_place() -> None:
        try:
            behind.offer(records.make_record(9), wait_for_place=True)
        except StoreError:
            refused.set()

    behind.offer(records.make_record(0), wait_for_place=False)
    assert gate.entered.wait(20)
    for number in (1, 2):
        behind.offer(records.make_record(number), wait_for_place=False)
    waiter = threading.Thread(target=wait_for_place)
    waiter.start()
    closer = threading.Thread(target=behind.close)
    closer.start()
    assert refused.wait(10)
    gate.open.set()
    waiter.join(20)
    closer.join(20)
    assert refused.is_set()


def test_flush_waits_for_what_was_offered_before_it(
    gate: Gate, behind: WriteBehind, records: ModuleType
) -> None:
    behind.offer(records.make_record(1), wait_for_place=False)
    flushed = threading.Event()
    flusher = threading.Thread(target=lambda: (behind.flush(), flushed.set()))
    flusher.start()
    assert gate.entered.wait(20)
    assert not flushed.is_set()
    gate.open.set()
    flusher.join(20)
    assert flushed.is_set() and len(gate.written) == 1
