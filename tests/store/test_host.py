"""The host tier: a dictionary with a budget, the twin the disk tier is held to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chunkcache.chunk import ChunkKV, Terms
from chunkcache.store.base import TierUsage
from chunkcache.store.host import HostTier
from chunkcache.store.lru import LruPolicy

if TYPE_CHECKING:
    from types import ModuleType


def test_the_budget_is_never_exceeded_and_evictions_are_counted(records: ModuleType) -> None:
    evicted: list[int] = []
    size = records.make_record(0).size_bytes
    tier = HostTier(3 * size, on_evict=evicted.append)
    for number in range(10):
        assert tier.put(records.make_record(number))
        assert tier.usage().size_bytes <= 3 * size
    assert tier.usage() == TierUsage(3, 3 * size, 3 * size)
    assert sum(evicted) == 7


def test_the_record_used_last_stays_under_lru(records: ModuleType) -> None:
    made = [records.make_record(n) for n in range(3)]
    tier = HostTier(2 * made[0].size_bytes, LruPolicy())
    tier.put(made[0])
    tier.put(made[1])
    assert tier.get(made[0].key) is not None
    assert tier.contains(made[1].key)  # asking is not a use
    tier.put(made[2])
    assert set(tier.scan()) == {made[0].key.digest, made[2].key.digest}


@pytest.mark.parametrize("capacity_bytes", [0, 1, 1919])
def test_a_record_larger_than_the_tier_is_not_admitted(
    capacity_bytes: int, records: ModuleType
) -> None:
    record = records.make_record(1, num_tokens=10)
    assert record.size_bytes == 1920
    tier = HostTier(capacity_bytes)
    assert not tier.put(record)
    assert not tier.contains(record.key) and tier.usage().records == 0


def test_a_view_is_copied_so_that_the_budget_counts_all_memory_held(records: ModuleType) -> None:
    record = records.make_record(1, num_tokens=4)
    large = record.kv.repeat(1, 1, 50, 1, 1)
    view = ChunkKV(record.key, record.geometry, large[:, :, :4], record.stats)
    tier = HostTier(10_000)
    tier.put(view)
    held = tier.get(record.key)
    assert held is not None and held.kv.untyped_storage().nbytes() == record.size_bytes
    assert records.contents(held) == records.contents(record)


def test_a_digest_collision_is_a_miss_and_the_newer_record_stays(records: ModuleType) -> None:
    tier = HostTier(10_000)
    first = records.make_record(1)
    second = records.colliding_with(first, 2)
    tier.put(first)
    assert tier.get(second.key) is None and not tier.delete(second.key)
    tier.put(second)
    assert tier.get(first.key) is None and tier.get(second.key) is not None
    assert tier.usage().records == 1 and tier.usage().size_bytes == second.size_bytes


def test_closing_lets_the_records_go(records: ModuleType) -> None:
    tier = HostTier(10_000)
    tier.put(records.make_record(1))
    tier.close()
    tier.close()
    assert tier.usage().size_bytes == 0 and not list(tier.scan())


def test_an_exact_record_takes_the_place_and_the_terms_of_a_rounded_one(
    records: ModuleType,
) -> None:
    tier = HostTier(100_000)
    exact = records.make_record(1)
    rounded = replace(exact, terms=Terms("t", 3), rounded_by="int8(group=64)")
    for record, expected in (
        (rounded, rounded), (rounded, rounded), (exact, replace(exact, terms=Terms("t", 3))),
        (rounded, replace(exact, terms=Terms("t", 3))),
    ):  # fmt: skip
        assert tier.put(record)
        found = tier.get(exact.key)
        assert (found.rounded_by, found.terms) == (expected.rounded_by, expected.terms)
        assert tier.usage().records == 1 and tier.usage().size_bytes == exact.size_bytes
