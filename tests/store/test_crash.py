"""kill -9 of a writer at random moments: every record is absent or whole, what was told is there.

`CHUNKCACHE_TEST_KILLS` sets the number of kills.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from chunkcache.metrics import Metrics
from chunkcache.store.check import check_store
from chunkcache.store.damage import find_damage
from chunkcache.store.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from chunkcache.store.disk import DiskTier

    OpenTier = Callable[..., DiskTier]

KILLS = int(os.environ.get("CHUNKCACHE_TEST_KILLS", "10"))
MIB = 1024 * 1024
TOKENS = 400


def told_stored(told: list[Any]) -> set[int]:
    """Numbers of the records which must be there: those told, less those it set out to delete."""
    stored: set[int] = set()
    for each in told[1:]:
        if isinstance(each, int):
            stored.add(each)
        else:
            stored.discard(each["deleting"])
    return stored


def test_records_told_stored_are_whole_after_a_kill_at_any_moment(
    other_process: Any, open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    draw = random.Random(os.environ.get("CHUNKCACHE_TEST_SEED", "0"))
    path = tmp_path / "kv"
    expected: set[int] = set()
    for kill in range(KILLS):
        answer = other_process.ask(
            "kill after", words=draw.randrange(3, 9), seconds=draw.uniform(0, 0.06), order={
                "do": "fill", "path": path, "capacity_bytes": 10**9, "num_tokens": TOKENS,
                "first": 10_000 * kill, "last": 10_000 * kill + 9_999, "deletes": kill % 2,
            },
        )  # fmt: skip
        assert answer["killed"], "it ended before it was killed"
        expected |= told_stored(answer["told"])
        assert find_damage(path / "data.mdb", all_pages=True) is None
        report = check_store(path, 10**9, fingerprint=records.FINGERPRINT)
        assert report.clean and report.stale == 0
    assert len(expected) > KILLS
    tier = open_tier(10**9)
    held = set(tier.scan())
    for number in expected:
        record = records.make_record(number, num_tokens=TOKENS)
        assert record.key.digest in held
        found = tier.get(record.key)
        assert found is not None and records.contents(found) == records.contents(record)
    assert len(held) <= len(expected) + 2 * KILLS, "at most one put and one delete were under way"


def test_a_kill_while_records_are_evicted_leaves_the_budget_kept_and_the_rest_whole(
    other_process: Any, open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    draw = random.Random(os.environ.get("CHUNKCACHE_TEST_SEED", "1"))
    path = tmp_path / "kv"
    for _ in range(KILLS):
        answer = other_process.ask(
            "kill after", words=draw.randrange(1, 9), seconds=draw.uniform(0, 0.06), order={
                "do": "fill", "path": path, "capacity_bytes": MIB, "num_tokens": TOKENS,
                "first": 0, "last": 10_000,
            },
        )  # fmt: skip
        assert answer["killed"], "it ended before it was killed"
        assert find_damage(path / "data.mdb", all_pages=True) is None
        report = check_store(path, MIB, fingerprint=records.FINGERPRINT)
        assert report.clean and report.size_bytes <= MIB
    tier = open_tier(MIB)
    by_digest = {
        record.key.digest: record
        for record in (records.make_record(number, num_tokens=TOKENS) for number in range(400))
    }
    for digest in tier.scan():
        if (record := by_digest.get(digest)) is not None:
            found = tier.get(record.key)
            assert found is not None and records.contents(found) == records.contents(record)
    assert tier.put(records.make_record(99_999, num_tokens=TOKENS))


def test_after_a_kill_every_record_asked_for_is_right_or_a_miss_that_is_filled(
    other_process: Any, open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    """What a service does after each kill; `-s` shows the counts that docs/log.md has."""
    draw = random.Random(os.environ.get("CHUNKCACHE_TEST_SEED", "2"))
    path, capacity_bytes = tmp_path / "kv", 3 * MIB
    counts: Counter[str] = Counter(points=KILLS)
    for kill in range(KILLS):
        first = draw.randrange(60)
        answer = other_process.ask(
            "kill after", words=draw.randrange(1, 12), seconds=draw.uniform(0, 0.06), order={
                "do": "fill", "path": path, "capacity_bytes": capacity_bytes,
                "num_tokens": TOKENS, "first": first, "last": 10_000, "deletes": kill % 2,
            },
        )  # fmt: skip
        assert answer["killed"], "it ended before it was killed"
        metrics = Metrics()
        store = TieredStore([open_tier(capacity_bytes, path=path)], metrics)
        for number in draw.sample(range(first, first + 16), 8):
            record = records.make_record(number, num_tokens=TOKENS)
            found = store.fetch(record.key)
            counts["asked"] += 1
            counts[found.miss or "hits"] += 1
            if found.record is None:
                assert store.offer(record, wait=True)
                found = store.fetch(record.key)
                counts["made again"] += found.record is not None
            wrong = found.record is None or records.contents(found.record) != records.contents(
                record
            )
            counts["wrong"] += wrong
        store.close()
    print(dict(counts))
    assert counts["wrong"] == counts["error"] == counts["corrupt"] == 0
    assert counts["made again"] == counts["absent"]
    assert counts["hits"] > 0 and counts["absent"] > 0
