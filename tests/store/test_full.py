"""A full map, a full disk, a full budget: the write is dropped whole, the rest goes on."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING, Any

import lmdb
import pytest
import structlog

from chunkcache.errors import StoreError
from chunkcache.store.check import check_store
from chunkcache.store.host import HostTier
from chunkcache.store.lmdb_env import RecordEnv
from chunkcache.store.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from chunkcache.metrics import Metrics
    from chunkcache.store.disk import DiskTier

    OpenTier = Callable[..., DiskTier]

KIB = 1024
MIB = 1024 * KIB


def test_a_record_that_no_map_can_hold_is_dropped_whole_with_the_limit_and_the_knob(
    open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    tier = open_tier(map_bytes=256 * KIB)
    with pytest.raises(StoreError, match=r"map .* 262144 bytes.*store\.disk_capacity_bytes"):
        tier.put(records.make_record(1, num_tokens=2000))
    assert tier.usage().records == 0
    assert tier.put(records.make_record(2, num_tokens=20))
    tier.close()
    report = check_store(tmp_path / "kv", 64 * MIB)
    assert report.clean and report.records == 1


def test_a_full_map_evicts_until_the_record_fits(open_tier: OpenTier, records: ModuleType) -> None:
    evicted: list[int] = []
    tier = open_tier(map_bytes=MIB, on_evict=evicted.append)
    for number in range(40):
        record = records.make_record(number, num_tokens=500 + 37 * (number % 11))
        assert tier.put(record)
        found = tier.get(record.key)
        assert found is not None and records.contents(found) == records.contents(record)
    assert sum(evicted) > 20


def test_the_pages_of_a_deleted_record_serve_the_very_next_put(
    open_tier: OpenTier, records: ModuleType
) -> None:
    evicted: list[int] = []
    tier = open_tier(map_bytes=MIB, on_evict=evicted.append)
    number = 0
    while not evicted:
        tier.put(records.make_record(number, num_tokens=600))
        number += 1
    count = len(evicted)
    for each in range(number, number + 5):
        assert tier.delete(records.make_record(each - 1, num_tokens=600).key)
        assert tier.put(records.make_record(each, num_tokens=600))
    assert len(evicted) == count


def test_the_pages_of_an_evicted_record_serve_the_put_it_left_for(
    open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    """Else the file would have room for one record more than the budget."""
    probe = open_tier(path=tmp_path / "probe")
    probe.put(records.make_record(0, num_tokens=600))
    size = probe.usage().size_bytes
    tier = open_tier(10 * size)
    for number in range(60):
        tier.put(records.make_record(number, num_tokens=600))
    assert tier.usage().size_bytes == 10 * size
    assert tier._env._env.info()["last_pgno"] * 4096 < 11 * size


@pytest.mark.parametrize("failure", [lmdb.DiskError("full"), OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("when", ["put", "commit"])
def test_a_full_disk_costs_the_write_and_nothing_else(
    failure: Exception, when: str, open_tier: OpenTier, records: ModuleType, metrics: Metrics,
    counted: Callable[..., float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    store = TieredStore([HostTier(MIB), open_tier()], metrics)
    assert store.offer(records.make_record(0), wait=True)
    put = RecordEnv.put

    def failing(self: RecordEnv, txn: Any, *args: Any) -> None:
        if when == "commit":  # everything was written, and then the disk was full
            put(self, txn, *args)
        raise failure

    monkeypatch.setattr(RecordEnv, "put", failing)
    full = records.make_record(1)
    with structlog.testing.capture_logs() as logs:
        assert store.offer(full)
        store.flush()
    assert [line["event"] for line in logs] == ["store_write_failed"]
    assert "store.disk_capacity_bytes" in logs[0]["reason"]
    with pytest.raises(StoreError, match="free disk space"):
        store.offer(full, wait=True)
    assert counted("store_errors_total", tier="disk", kind="write") == 2
    assert store.fetch(full.key).tier == "host", "the request is served"
    assert not store.is_durable(full.key) and store.is_durable(records.make_record(0).key)
    monkeypatch.undo()
    assert store.offer(full, wait=True) and store.is_durable(full.key)
    store.close()
    report = check_store(tmp_path / "kv", 64 * MIB)
    assert report.clean and report.records == 2


def test_a_file_that_may_not_grow_keeps_what_it_has(
    other_process: Any, open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    """The operating system itself refuses (RLIMIT_FSIZE), in the middle of a run of writes."""
    answer = other_process.ask(
        "fill", path=tmp_path / "kv", capacity_bytes=64 * MIB, first=0, last=30, num_tokens=2000,
        max_file_bytes=8 * MIB,
    )  # fmt: skip
    assert answer["code"] == 0, "no signal, no crash"
    stored = [told for told in answer["told"][1:-1] if isinstance(told, int)]
    refused = [told for told in answer["told"] if isinstance(told, dict)]
    assert len(stored) > 5 and len(refused) > 5
    assert all("store.disk_capacity_bytes" in each["reason"] for each in refused)
    report = check_store(tmp_path / "kv", 64 * MIB)
    assert report.clean and report.records == len(stored)
    tier = open_tier()
    for number in stored:
        record = records.make_record(number, num_tokens=2000)
        found = tier.get(record.key)
        assert found is not None and records.contents(found) == records.contents(record)
    assert tier.put(records.make_record(99, num_tokens=2000)), "room again"


def test_churn_keeps_the_budget_at_all_times_and_the_file_close_to_it(
    open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    capacity = 4 * MIB
    tier = open_tier(capacity)
    draw = random.Random(1)
    for number in range(600):
        tier.put(records.make_record(number, num_tokens=draw.randrange(100, 1000)))
        assert tier.usage().size_bytes <= capacity
    live = tier.usage().size_bytes
    assert live > 0.9 * capacity
    on_disk = (tmp_path / "kv" / "data.mdb").stat().st_blocks * 512
    assert on_disk / live < 1.5


def test_a_reader_that_hangs_costs_writes_but_does_not_drain_the_store(
    open_tier: OpenTier, records: ModuleType, other_process: Any, tmp_path: Path
) -> None:
    """Pages a reader can see are not reused: the map fills up, and evicting more is in vain."""
    capacity = 24 * MIB
    tier = open_tier(capacity)
    for number in range(15):
        tier.put(records.make_record(number, num_tokens=8000))
    assert other_process.ask("hold", path=tmp_path / "kv", capacity_bytes=capacity) == ["reading"]
    refused = 0
    for number in range(100, 160):
        try:
            tier.put(records.make_record(number, num_tokens=8000))
        except StoreError:
            refused += 1
    assert refused > 30
    assert tier.usage().records >= 10
    other_process.ask("release")
    assert tier._env.free_stale_readers() == 1
    for number in range(200, 210):
        assert tier.put(records.make_record(number, num_tokens=8000))
    assert tier.usage().size_bytes <= capacity


def test_pages_in_no_record_are_named_when_they_use_up_the_budget(
    open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    tier = open_tier(10 * 4096)
    with tier._env.writing() as txn:
        txn.put(b"\1" * 34, bytes(9 * 4096), db=tier._env._slabs)
    with pytest.raises(StoreError, match="chunkcache check --fix"):
        tier.put(records.make_record(1))
    tier.close()
    assert check_store(tmp_path / "kv", 10 * 4096, fix=True).orphans == 1
    assert open_tier(10 * 4096).put(records.make_record(1))
