"""A real server that is stopped, killed or full: misses, which end when it is back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import structlog

from chunkcache.chunk import ChunkKV
from chunkcache.errors import StoreError
from chunkcache.metrics import Metrics
from chunkcache.store.base import TierAtRest
from chunkcache.store.codec import codec_named
from chunkcache.store.remote.breaker import Breaker
from chunkcache.store.remote.resp import RespBlobs
from chunkcache.store.remote.tier import RemoteTier
from chunkcache.store.tiered import TieredStore

RAW = codec_named("raw")


def test_a_server_that_stops_answering_is_a_miss_and_is_then_left_alone(
    own_valkey: Any, records: ModuleType, metrics: Metrics, counted: Callable[..., float]
) -> None:
    now_s = [0.0]
    breakers = (
        Breaker(failures=2, clock=lambda: now_s[0]), Breaker(failures=1, clock=lambda: now_s[0])
    )  # fmt: skip
    tier = RemoteTier(
        "shared", RespBlobs(own_valkey.url, "chunkcache:", timeout_s=0.05), RAW,
        fingerprint=records.FINGERPRINT, timeout_s=0.05, breakers=breakers,
    )  # fmt: skip
    store = TieredStore([tier], metrics)
    record, late = records.make_record(1), records.make_record(2)
    while not tier._reads.breaker.allows() or not _put(tier, record):
        now_s[0] += 10.0  # a machine so busy that 50 ms were not enough
    own_valkey.pause()
    with structlog.testing.capture_logs() as logs:
        assert [store.fetch(record.key).miss for _ in range(5)] == ["error"] * 5
        with pytest.raises(TierAtRest):
            tier.get(record.key)
        assert store.offer(late), "it will be tried"
        store.flush()
    events = [line["event"] for line in logs]
    assert events.count("tier_at_rest") == 1 and len(events) < 6, "not once for each look-up"
    assert counted("store_errors_total", tier="shared", kind="read") == 5
    own_valkey.resume()
    assert store.fetch(record.key).miss == "error", "its rest is not over"
    for _ in range(100):
        now_s[0] += 400.0
        if (lookup := store.fetch(record.key)).record is not None:
            break
    assert lookup.record is not None
    assert records.contents(lookup.record) == records.contents(record)
    store.close()


def _put(tier: RemoteTier, record: ChunkKV) -> bool:
    try:
        return tier.put(record)
    except StoreError:
        return False


def test_a_server_that_is_killed_and_comes_back_empty_costs_its_records_alone(
    own_valkey: Any, records: ModuleType, metrics: Metrics
) -> None:
    tier = RemoteTier(
        "shared", RespBlobs(own_valkey.url, "chunkcache:", timeout_s=20.0), RAW,
        fingerprint=records.FINGERPRINT, timeout_s=20.0,
    )  # fmt: skip
    store = TieredStore([tier], metrics)
    record = records.make_record(1)
    assert store.offer(record, wait=True) and store.fetch(record.key).tier == "shared"
    own_valkey.kill()
    assert store.fetch(record.key).miss == "error"
    with pytest.raises(StoreError, match="shared: ConnectionError"):
        store.offer(record, wait=True)
    own_valkey.start()
    assert store.fetch(record.key).miss == "absent", "without a second failure: connected anew"
    assert store.offer(record, wait=True)
    assert store.fetch(record.key).tier == "shared"
    store.close()


def test_a_server_killed_while_records_are_read_gives_right_bytes_or_a_miss(
    own_valkey: Any, records: ModuleType, metrics: Metrics
) -> None:
    tier = RemoteTier(
        "shared", RespBlobs(own_valkey.url, "chunkcache:", timeout_s=20.0), RAW,
        fingerprint=records.FINGERPRINT, timeout_s=20.0,
    )  # fmt: skip
    made = [records.make_record(number, num_tokens=3000) for number in range(4)]
    right = {record.key: records.contents(record) for record in made}
    for record in made:
        assert tier.put(record)
    store = TieredStore([tier], metrics)
    enough, wrong, misses = threading.Event(), [], []
    hits = threading.Semaphore(0)

    def read() -> None:
        while not enough.is_set():
            for key, contents in right.items():
                lookup = store.fetch(key)
                if lookup.record is None:
                    misses.append(lookup.miss)
                elif records.contents(lookup.record) != contents:
                    wrong.append(key)
                hits.release()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(12):
        assert hits.acquire(timeout=20)
    own_valkey.kill()
    while not misses:
        assert hits.acquire(timeout=20)
    enough.set()
    for reader in readers:
        reader.join(20)
    assert wrong == [] and set(misses) == {"error"}
    store.close()


def test_a_full_or_read_only_tier_is_still_read(own_valkey: Any, records: ModuleType) -> None:
    tier = RemoteTier(
        "shared", RespBlobs(own_valkey.url, "chunkcache:", timeout_s=20.0), RAW,
        fingerprint=records.FINGERPRINT, timeout_s=20.0,
    )  # fmt: skip
    kept = records.make_record(0)
    assert tier.put(kept)
    tier._blobs._client.config_set("maxmemory", 1)
    for number in range(1, 4):
        with pytest.raises(StoreError, match=r"OOM|memory"):
            tier.put(records.make_record(number))
    with pytest.raises(TierAtRest, match="writes rest"):
        tier.put(records.make_record(5))
    with pytest.raises(TierAtRest):
        tier.has_room(1)
    found = tier.get(kept.key)
    assert found is not None and records.contents(found) == records.contents(kept)
    assert tier.get(records.make_record(1).key) is None
    tier.close()
