"""Host over disk: promotion, write-behind, reasons of misses, and a disk that fails."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from chunkcache.errors import StoreError
from chunkcache.service.headroom import foreseeing
from chunkcache.store.host import HostTier
from chunkcache.store.layout import slab_key
from chunkcache.store.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from chunkcache.chunk import ChunkKV
    from chunkcache.metrics import Metrics
    from chunkcache.store.disk import DiskTier

MIB = 1024 * 1024


@pytest.fixture
def host() -> HostTier:
    return HostTier(MIB)


@pytest.fixture
def disk(open_tier: Callable[..., DiskTier]) -> DiskTier:
    return open_tier()


@pytest.fixture
def store(host: HostTier, disk: DiskTier, metrics: Metrics) -> Iterator[TieredStore]:
    store = TieredStore([host, disk], metrics, write_queue_limit=2)
    yield store
    store.close()


def test_an_offered_record_is_in_memory_at_once_and_durable_after_a_flush(
    store: TieredStore, records: ModuleType
) -> None:
    record = records.make_record(1)
    assert store.offer(record)
    assert store.contains(record.key) == "host"
    lookup = store.fetch(record.key)
    assert (lookup.record, lookup.tier, lookup.miss) == (record, "host", None)
    store.flush()
    assert store.is_durable(record.key)


def test_a_hit_on_disk_is_promoted_and_bit_equal(
    store: TieredStore, disk: DiskTier, records: ModuleType, counted: Callable[..., float]
) -> None:
    record = records.make_record(1, num_tokens=30)
    disk.put(record)
    assert store.contains(record.key) == "disk"
    first, second = store.fetch(record.key), store.fetch(record.key)
    assert (first.tier, second.tier) == ("disk", "host")
    assert first.record is not None
    assert records.contents(first.record) == records.contents(record)
    assert first.record is second.record
    assert counted("chunk_hits_total", tier="disk") == counted("chunk_hits_total", tier="host") == 1
    assert counted("tier_records", tier="host") == counted("tier_records", tier="disk") == 1
    assert counted("tier_bytes", tier="host") == record.size_bytes


def test_gauges_follow_what_others_do_to_a_tier(
    store: TieredStore, host: HostTier, disk: DiskTier, metrics: Metrics, records: ModuleType,
    counted: Callable[..., float],
) -> None:  # fmt: skip
    """As another process would; this store is told nothing."""
    record = records.make_record(1)
    disk.put(record)
    host.put(record)
    assert counted("tier_records", tier="disk") == counted("tier_records", tier="host") == 1
    assert counted("tier_bytes", tier="disk") == disk.usage().size_bytes > 0
    disk.delete(record.key)
    assert counted("tier_records", tier="disk") == counted("tier_bytes", tier="disk") == 0
    disk.close()
    assert b'chunkcache_tier_bytes{tier="disk"} NaN' in metrics.render(), "it is not known"


def test_what_no_tier_holds_is_absent(
    store: TieredStore, records: ModuleType, counted: Callable[..., float]
) -> None:
    key = records.make_record(1).key
    lookup = store.fetch(key)
    assert (lookup.record, lookup.tier, lookup.miss) == (None, None, "absent")
    assert store.contains(key) is None and not store.is_durable(key)
    assert counted("chunk_misses_total", reason="absent") == 1


def test_without_a_disk_the_host_tier_is_the_store(metrics: Metrics, records: ModuleType) -> None:
    store = TieredStore([HostTier(1000)], metrics)
    record = records.make_record(1)
    assert store.tiers[0].has_room(1000) and not store.tiers[0].has_room(1001)
    assert store.offer(record) and store.offer(record, wait=True)
    assert store.is_durable(record.key) and store.contains(record.key) == "host"
    assert store.fetch(records.make_record(2).key).miss == "absent"
    assert not store.offer(records.make_record(3, num_tokens=100))
    store.flush()
    store.close()
    store.close()


def test_room_on_disk_is_judged_with_what_a_record_costs_there(
    open_tier: Callable[..., DiskTier], metrics: Metrics, records: ModuleType
) -> None:
    evicted: list[int] = []
    store = TieredStore([HostTier(0), open_tier(2 * MIB, on_evict=evicted.append)], metrics)
    number = 0
    disk = store.tiers[-1]
    while disk.has_room((record := records.make_record(number, num_tokens=300)).size_bytes):
        assert store.offer(record, wait=True)
        number += 1
    assert number > 20 and not evicted
    store.close()


class FailingDisk:
    """A disk tier in which every verb fails, in a way of the caller's choice."""

    name = "disk"
    durable = True
    remote = False

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.closed = False

    def _fail(self, *args: object) -> Any:
        raise self.error

    open = get = put = contains = delete = scan = usage = has_room = _fail

    def close(self) -> None:
        self.closed = True


def test_a_disk_that_fails_is_a_miss_and_a_count_never_a_failed_request(
    metrics: Metrics, records: ModuleType, counted: Callable[..., float]
) -> None:
    disk = FailingDisk(StoreError("store: cannot read"))
    store = TieredStore([HostTier(MIB), disk], metrics)
    record = records.make_record(1)
    with structlog.testing.capture_logs() as logs:
        assert store.fetch(record.key).miss == "error"
        assert store.offer(record)
        store.flush()
        assert store.fetch(record.key).tier == "host"
        assert store.contains(record.key) == "host"
        assert store.contains(records.make_record(2).key) is None
        assert not store.is_durable(record.key)
        with pytest.raises(StoreError, match="cannot read"):
            store.offer(record, wait=True)
        with pytest.raises(StoreError, match="cannot read"):
            foreseeing(store.tiers)
    assert counted("chunk_misses_total", reason="error") == 1
    assert counted("store_errors_total", tier="disk", kind="write") == 2
    assert {line["event"] for line in logs} == {"store_read_failed", "store_write_failed"}
    store.close()
    assert disk.closed


def test_an_unforeseen_fault_of_the_disk_does_not_stop_later_writes(
    store: TieredStore, disk: DiskTier, records: ModuleType, counted: Callable[..., float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def broken(record: ChunkKV) -> bool:
        raise ZeroDivisionError

    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr(disk, "put", broken)
        with pytest.raises(StoreError, match="ZeroDivisionError"):
            store.offer(records.make_record(1), wait=True)
    assert [line["event"] for line in logs] == ["store_writer_fault"]
    assert counted("store_errors_total", tier="disk", kind="write") == 1
    assert store.offer(records.make_record(2), wait=True)


def test_a_full_queue_keeps_the_host_copy_and_says_which_knob(
    store: TieredStore, disk: DiskTier, records: ModuleType, counted: Callable[..., float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    busy, go_on = threading.Event(), threading.Event()
    put = disk.put

    def slow(record: ChunkKV) -> bool:
        busy.set()
        assert go_on.wait(20)
        return put(record)

    monkeypatch.setattr(disk, "put", slow)
    assert store.offer(records.make_record(0))
    assert busy.wait(20)
    assert store.offer(records.make_record(1)) and store.offer(records.make_record(2))
    with structlog.testing.capture_logs() as logs:
        assert not store.offer(records.make_record(3))
    assert [(line["event"], line["tier"], line["limit"]) for line in logs] == [
        ("store_queue_full", "disk", 2)
    ]
    assert counted("store_errors_total", tier="disk", kind="queue_full") == 1
    assert store.fetch(records.make_record(3).key).tier == "host"
    go_on.set()
    store.flush()
    assert [store.is_durable(records.make_record(n).key) for n in range(4)] == [True] * 3 + [False]


def test_closing_writes_what_was_offered_and_later_offers_fail_clearly(
    store: TieredStore, open_tier: Callable[..., DiskTier], records: ModuleType
) -> None:
    for number in range(6):
        store.offer(records.make_record(number), wait=number % 2 == 1)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.offer(records.make_record(9), wait=True)
    assert not store.offer(records.make_record(9))
    tier = open_tier()
    assert all(tier.contains(records.make_record(number).key) for number in (1, 3, 5))
    assert tier.contains(records.make_record(4).key)


def test_a_record_the_disk_does_not_admit_is_said_to_be_not_kept(
    open_tier: Callable[..., DiskTier], metrics: Metrics, records: ModuleType
) -> None:
    store = TieredStore([HostTier(MIB), open_tier(5 * 4096)], metrics)
    assert not store.offer(records.make_record(1, num_tokens=1000), wait=True)
    assert store.offer(records.make_record(2), wait=True)
    store.close()


def test_damage_found_while_looking_for_odd_numbers_is_counted_as_damage(
    store: TieredStore, disk: DiskTier, records: ModuleType, counted: Callable[..., float]
) -> None:
    """As whoever reads a record counts it; the others are looked at all the same."""
    damaged, odd, sound = records.make_finite(1), records.make_finite(2), records.make_finite(3)
    odd.kv[-1, 1, 3, 0, 2] = float("inf")
    for record in (damaged, odd, sound):
        disk.put(record)
    with disk._env.writing() as txn:
        txn.put(slab_key(damaged.key.digest, 1), bytes(4080), db=disk._env._slabs)
    keys = [record.key for record in (damaged, odd, sound)]
    with structlog.testing.capture_logs() as logs:
        store.forget_not_finite(keys)
    assert [disk.contains(key) for key in keys] == [False, False, True]
    assert [(log["event"], log["key"]) for log in logs] == [
        ("record_corrupt", key.hex[:12]) for key in keys[:2]
    ]
    assert counted("store_errors_total", tier="disk", kind="corrupt") == 2
    assert counted("store_errors_total", tier="disk", kind="read") == 0
    store.forget_not_finite(keys)
    assert counted("store_errors_total", tier="disk", kind="corrupt") == 2


def test_a_record_is_durable_where_any_durable_tier_holds_it(
    host: HostTier, open_tier: Callable[..., DiskTier], tmp_path: Path, metrics: Metrics,
    records: ModuleType,
) -> None:  # fmt: skip
    """Whichever of them it is; memory is none of them."""
    disk, other = open_tier(), open_tier(path=tmp_path / "other")
    other.name = "other"
    store = TieredStore([host, disk, other], metrics)
    made = [records.make_record(number) for number in range(5)]
    for record in (made[0], made[2]):
        disk.put(record)
    for record in (made[1], made[2]):
        other.put(record)
    host.put(made[3])
    keys = [record.key for record in made]
    assert store.are_durable(keys) == [True, True, True, False, False]
    assert [store.is_durable(key) for key in keys] == [True, True, True, False, False]
    store.close()
