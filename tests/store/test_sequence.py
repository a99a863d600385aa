"""More than two tiers: what is asked next, what goes up, what goes down, and who is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from chunkcache.chunk import ChunkKey, ChunkKV, Retention, Terms
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.metrics import Metrics
from chunkcache.service.headroom import foreseeing
from chunkcache.store.base import TierAtRest
from chunkcache.store.host import HostTier
from chunkcache.store.tiered import TieredStore

MIB = 1024 * 1024


class Shelf(HostTier):
    """A durable tier that is a dictionary; `fault` is raised by every verb while it is set."""

    durable = True

    def __init__(self, name: str, capacity_bytes: int = MIB) -> None:
        super().__init__(capacity_bytes)
        self.name = name
        self.fault: Exception | None = None
        self.puts: list[ChunkKey] = []
        self.let_through = threading.Event()
        self.let_through.set()

    def _check(self) -> None:
        if self.fault is not None:
            raise self.fault

    def open(self, key: ChunkKey) -> Any:
        self._check()
        return super().open(key)

    def open_many(self, keys: Any) -> Any:
        self._check()
        return super().open_many(keys)

    def contains_many(self, keys: Any) -> list[bool]:
        self._check()
        return super().contains_many(keys)

    def put(self, record: ChunkKV) -> bool:
        assert self.let_through.wait(20)
        self._check()
        self.puts.append(record.key)
        return super().put(record)

    def contains(self, key: ChunkKey) -> bool:
        self._check()
        return super().contains(key)

    def has_room(self, size_bytes: int) -> bool:
        self._check()
        return super().has_room(size_bytes)


@pytest.fixture
def near() -> Shelf:
    return Shelf("near")


@pytest.fixture
def far() -> Shelf:
    return Shelf("far")


@pytest.fixture
def store(near: Shelf, far: Shelf, metrics: Metrics) -> Iterator[TieredStore]:
    store = TieredStore([HostTier(MIB), near, far], metrics)
    yield store
    near.let_through.set()
    far.let_through.set()
    store.close()


def test_a_hit_at_the_bottom_is_promoted_to_every_tier_above_and_stays(
    store: TieredStore, near: Shelf, far: Shelf, records: ModuleType, counted: Callable[..., float]
) -> None:
    record = records.make_record(1)
    far.put(record)
    found = store.fetch(record.key)
    assert found.tier == "far" and records.contents(found.record) == records.contents(record)
    store.flush()
    assert store.fetch(record.key).tier == "host"
    assert near.contains(record.key) and far.contains(record.key)
    assert [counted("chunk_queries_total", tier=t) for t in ("host", "near", "far")] == [2, 1, 1]
    assert [counted("chunk_hits_total", tier=t) for t in ("host", "near", "far")] == [1, 0, 1]
    assert far.puts == [record.key], "what is promoted is not written where it was"


def test_a_new_record_is_written_once_to_every_durable_tier(
    store: TieredStore, near: Shelf, far: Shelf, records: ModuleType
) -> None:
    record = records.make_record(1)
    assert store.offer(record, wait=True)
    assert store.fetch(record.key).tier == "host"
    store.flush()
    assert near.puts == far.puts == [record.key]


def test_an_opened_record_that_is_in_memory_is_promoted_too(
    store: TieredStore, near: Shelf, far: Shelf, records: ModuleType
) -> None:
    record = records.make_record(1)
    far.put(record)
    opened = store.open(record.key)
    assert opened.tier == "far" and opened.reader is not None
    with opened.reader as reader:
        assert reader.num_tokens == record.num_tokens
    store.flush()
    assert store.open(record.key).tier == "host" and near.contains(record.key)
    absent = store.open(records.make_record(2).key)
    assert (absent.reader, absent.tier, absent.miss) == (None, None, "absent")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (StoreError("gone"), "error"),
        (CorruptRecord("flipped"), "corrupt"),
        (TierAtRest("later"), "error"),
    ],
)
def test_a_tier_that_fails_is_passed_over_and_named_as_the_reason_where_no_other_has_it(
    fault: StoreError, reason: str, store: TieredStore, near: Shelf, far: Shelf,
    records: ModuleType, counted: Callable[..., float],
) -> None:  # fmt: skip
    near.fault = fault
    here, nowhere = records.make_record(1), records.make_record(2)
    far.put(here)
    assert store.fetch(here.key).tier == "far"
    assert store.fetch(nowhere.key).miss == store.open(nowhere.key).miss == reason
    assert counted("chunk_misses_total", reason=reason) == 2
    kind = "corrupt" if reason == "corrupt" else "read"
    assert counted("store_errors_total", tier="near", kind=kind) == 3


def test_one_durable_tier_is_enough_for_a_record_to_be_kept(
    store: TieredStore, near: Shelf, far: Shelf, records: ModuleType, counted: Callable[..., float]
) -> None:
    far.fault = StoreError("gone")
    assert store.offer(records.make_record(1), wait=True)
    assert store.is_durable(records.make_record(1).key)
    assert counted("store_errors_total", tier="far", kind="write") == 1
    near.fault = StoreError("full")
    with pytest.raises(StoreError, match="full"):
        store.offer(records.make_record(2), wait=True)
    assert store.offer(records.make_record(2)), "it will be tried"


def test_a_slow_tier_has_a_queue_of_its_own(
    store: TieredStore, near: Shelf, far: Shelf, records: ModuleType, eventually: Any
) -> None:
    far.let_through.clear()
    for number in range(5):
        assert store.offer(records.make_record(number))
    eventually(lambda: len(near.puts) == 5)
    assert far.puts == []
    far.let_through.set()
    store.flush()
    assert far.puts == near.puts


def test_waiting_records_are_bounded_in_bytes(
    near: Shelf, records: ModuleType, metrics: Metrics, counted: Callable[..., float],
    eventually: Any,
) -> None:  # fmt: skip
    size = records.make_record(0).size_bytes
    store = TieredStore([near], metrics, write_queue_bytes=2 * size)
    near.let_through.clear()
    assert store.offer(records.make_record(0))
    eventually(lambda: not store._behind["near"]._waiting)  # it is being written, nothing waits
    offered = [store.offer(records.make_record(n)) for n in (1, 2, 3)]
    assert offered == [True, True, False]
    assert counted("store_errors_total", tier="near", kind="queue_full") == 1
    near.let_through.set()
    store.flush()
    big = records.make_record(9, num_tokens=100)
    assert big.size_bytes > 2 * size and store.offer(big), "alone, it may wait all the same"
    store.close()
    assert big.key in near.puts


def test_spreading_copies_to_the_tiers_that_lack_a_record_and_computes_nothing(
    store: TieredStore, near: Shelf, far: Shelf, records: ModuleType
) -> None:
    down, up, nowhere = (records.make_record(n) for n in range(3))
    near.put(down)
    far.put(up)
    assert store.spread([down.key, up.key, nowhere.key]) == [True, True, False]
    assert near.contains(up.key) and far.contains(down.key)
    assert store.spread([up.key]) == [True] and near.puts == [down.key, up.key], "once"
    assert store.spread([up.key, nowhere.key, down.key]) == [True, False, True]
    assert store.spread([]) == []


def test_spreading_evicts_nothing_and_needs_no_tier_that_fails(
    near: Shelf, metrics: Metrics, records: ModuleType
) -> None:
    far = Shelf("far", capacity_bytes=records.make_record(0).size_bytes)
    store = TieredStore([near, far], metrics)
    far.put(records.make_record(0))
    near.put(records.make_record(1))
    assert store.spread([records.make_record(1).key]) == [True], "it is warm"
    assert set(far.scan()) == {records.make_record(0).key.digest}
    near.fault = StoreError("gone")
    assert store.spread([records.make_record(0).key]) == [True]
    far.fault = StoreError("gone")
    assert store.spread([records.make_record(0).key]) == [False]
    store.close()


def test_room_is_that_of_the_lowest_tier_that_is_not_at_rest(
    store: TieredStore, near: Shelf, far: Shelf
) -> None:
    assert foreseeing(store.tiers) is far
    far.fault = TierAtRest("later")
    assert foreseeing(store.tiers) is near
    near.fault = TierAtRest("later")
    assert foreseeing(store.tiers) is store.tiers[0], "memory's"


def test_two_tiers_of_one_name_or_memory_below_disk_are_our_own_mistakes(
    near: Shelf, metrics: Metrics
) -> None:
    with pytest.raises(AssertionError, match="one name"):
        TieredStore([near, Shelf("near")], metrics)
    with pytest.raises(AssertionError, match="in memory"):
        TieredStore([near, HostTier(1)], metrics)


class NoTerms:
    """A tier on another machine: it has the verbs of `Tier` alone."""

    name, durable, remote = "far", True, True

    def __init__(self, capacity_bytes: int) -> None:
        held = HostTier(capacity_bytes)
        for verb in ("open", "get", "put", "contains", "delete", "scan", "usage", "has_room"):
            setattr(self, verb, getattr(held, verb))
        self.close = held.close


class Keeper(HostTier):
    """A durable tier whose terms cannot be written while `is_full`."""

    name, durable, is_full = "keeper", True, False

    def retain(self, key: ChunkKey, terms: Terms, *, exactly: bool = False) -> Retention | None:
        if self.is_full:
            raise StoreError("store: the disk is full")
        return super().retain(key, terms, exactly=exactly)


def test_terms_are_said_to_be_kept_only_where_they_are(
    metrics: Metrics, records: ModuleType
) -> None:
    host, keeper, far = HostTier(MIB), Keeper(MIB), NoTerms(MIB)
    store = TieredStore([host, keeper, far], metrics)
    both, above, remote = (records.make_record(number) for number in range(3))
    pinned = Terms(retention=Retention.PINNED)
    for tier, record in ((host, both), (keeper, both), (host, above), (far, remote)):
        tier.put(record)
    kept = [store.retain(one.key, pinned, exactly=True) for one in (both, above, remote)]
    assert kept == [pinned.retention, pinned.retention, None], "a remote tier keeps none"
    keeper.is_full = True
    with pytest.raises(StoreError, match="disk is full"):
        store.retain(both.key, Terms(), exactly=True)
    found = host.get(both.key)
    assert found is not None and found.terms == Terms(), "those that can go by them"
    assert store.retain(above.key, pinned), "on what is there by the way, a failure is a counter"
    store.close()


def test_who_flushes_this_machine_does_not_wait_for_others(
    metrics: Metrics, records: ModuleType
) -> None:
    near, far = Shelf("near"), Shelf("far")
    far.remote = True
    store = TieredStore([near, far], metrics)
    far.let_through.clear()
    store.offer(records.make_record(0))
    store.flush(remote=False)
    assert near.contains(records.make_record(0).key) and far.puts == []
    far.let_through.set()
    store.close()
