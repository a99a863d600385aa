"""kill -9 of a writer at random moments: every record is absent or whole, what was told is there.

`CHUNKCACHE_TEST_KILLS` sets the number of kills.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

from chunkcache.store.check import check_store
from chunkcache.store.damage import find_damage

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
