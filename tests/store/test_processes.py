"""Several processes on one store: budget, fork, readers that were killed, maps of other sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.store.check import check_store
from chunkcache.store.layout import map_bytes_for
from chunkcache.store.lmdb_env import RecordEnv

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from chunkcache.store.disk import DiskTier

    OpenTier = Callable[..., DiskTier]

MIB = 1024 * 1024
TOKENS = 300


def test_two_writers_at_once_keep_the_budget_and_a_third_process_sees_whole_records(
    other_process: Any, open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    capacity = 2 * MIB
    tier = open_tier(capacity)
    made = [records.make_record(number, num_tokens=TOKENS) for number in range(0, 300, 7)]
    expected = [records.contents(record) for record in made]
    seen = {"samples": 0, "hits": 0}

    def watch() -> None:
        assert tier.usage().size_bytes <= capacity
        at = seen["samples"] % len(made)
        found = tier.get(made[at].key)
        if found is not None:
            assert records.contents(found) == expected[at]
            seen["hits"] += 1
        elif seen["samples"] % 5 == 0:
            tier.put(made[at])
        seen["samples"] += 1

    order = {
        "do": "fill",
        "path": tmp_path / "kv",
        "capacity_bytes": capacity,
        "num_tokens": TOKENS,
    }
    answers = other_process.ask(
        "together", meanwhile=watch,
        orders=[{**order, "first": 0, "last": 200}, {**order, "first": 100, "last": 300}],
    )  # fmt: skip
    assert [answer["code"] for answer in answers] == [0, 0]
    for answer in answers:
        assert not [told for told in answer["told"] if isinstance(told, dict)], "no write failed"
    assert seen["samples"] > 10 and seen["hits"] > 0
    assert 0.8 * capacity < tier.usage().size_bytes <= capacity
    tier.close()
    report = check_store(tmp_path / "kv", capacity, fingerprint=records.FINGERPRINT)
    assert report.clean and report.records > 10


def test_a_record_written_by_another_process_is_found_at_once(
    other_process: Any, open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    tier = open_tier()
    record = records.make_record(5, num_tokens=TOKENS)
    assert tier.get(record.key) is None
    other_process.ask(
        "fill", path=tmp_path / "kv", capacity_bytes=64 * MIB, first=5, last=6, num_tokens=TOKENS
    )
    found = tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)
    assert tier.usage().records == 1


def test_a_store_that_outgrew_this_process_s_map_is_still_read_and_written(
    other_process: Any, open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    tier = open_tier(MIB)
    other_process.ask(
        "fill", path=tmp_path / "kv", capacity_bytes=200 * MIB, first=0, last=150, num_tokens=2000
    )
    assert tier.usage().size_bytes > map_bytes_for(MIB)
    record = records.make_record(149, num_tokens=2000)
    found = tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)
    assert tier.put(records.make_record(999))  # and its own budget holds again
    assert tier.usage().size_bytes <= MIB


@pytest.fixture(scope="module")
def after_fork(other_process: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    path = tmp_path_factory.mktemp("fork") / "kv"
    answer = other_process.ask("fork", path=path, capacity_bytes=MIB)
    assert answer["code"] == 0
    told: list[Any] = answer["told"]
    return told


def test_in_a_forked_child_every_verb_gives_a_clear_error(after_fork: list[Any]) -> None:
    said = {each["verb"]: each["error"] for each in after_fork[:-2]}
    assert set(said) == {
        "get", "put", "contains", "delete", "scan", "usage", "offer", "flush",
    }  # fmt: skip
    for error in said.values():
        assert error is not None
        assert "opened before a fork" in error and "Hint: open it in the child" in error


def test_in_a_forked_child_the_tiers_miss_and_keep_nothing(after_fork: list[Any]) -> None:
    assert after_fork[-2] == {"fetched": "error", "offered": False}


def test_a_forked_child_leaves_the_parent_s_store_unharmed(after_fork: list[Any]) -> None:
    assert after_fork[-1] == {"status": 0, "parent_has_it": True, "put": True}


def test_slots_of_killed_readers_are_freed(other_process: Any, tmp_path: Path) -> None:
    env = RecordEnv(tmp_path / "kv", map_bytes_for(MIB))
    other_process.ask("hold", path=tmp_path / "kv", capacity_bytes=MIB)
    assert env.free_stale_readers() == 0, "it is alive"
    other_process.ask("release")
    assert env.free_stale_readers() == 1
    env.close()


def test_opening_frees_the_slots_of_readers_killed_before(
    other_process: Any, tmp_path: Path
) -> None:
    for _ in range(2):
        other_process.ask("hold", path=tmp_path / "kv", capacity_bytes=MIB)
    other_process.ask("release")  # the other one keeps the store, and the slot, in being
    env = RecordEnv(tmp_path / "kv", map_bytes_for(MIB))
    assert env.free_stale_readers() == 0
    env.close()
    other_process.ask("release")


def test_a_tier_frees_the_slots_of_killed_readers_by_itself(
    other_process: Any, open_tier: OpenTier, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    tier = open_tier(sync_interval_s=0.002)
    lines_before = tier._env._env.readers().count("\n")
    other_process.ask("hold", path=tmp_path / "kv", capacity_bytes=MIB)
    assert tier._env._env.readers().count("\n") > lines_before
    other_process.ask("release")
    eventually(lambda: tier._env._env.readers().count("\n") == lines_before)
