"""Pins on disk: what was granted is written, and holds in every process and after a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import structlog

from chunkcache.chunk import ChunkKV, Retention, Terms
from chunkcache.store import check_store
from chunkcache.store.codec import codec_named
from chunkcache.store.disk import DiskTier

ROOM = 8  # records
PINNED = Terms(retention=Retention.PINNED)
INT4 = codec_named("int4(group=32)")
OpenTier = Callable[..., DiskTier]


@pytest.fixture
def made(records: ModuleType) -> list[ChunkKV]:
    return [records.make_record(number) for number in range(ROOM)]


@pytest.fixture
def capacity(open_tier: OpenTier, made: list[ChunkKV], tmp_path: Path) -> int:
    """Room for all of them, just so."""
    trial = open_tier(path=tmp_path / "trial")
    trial.put(made[0])
    return ROOM * trial.usage().size_bytes


@pytest.fixture
def retained(other_process: Any, capacity: int, tmp_path: Path) -> Callable[..., list[str]]:
    """Has another process put records on terms: how firmly each is kept then."""

    def put_on_terms(numbers: list[int], retention: Retention = Retention.PINNED) -> list[str]:
        order = {"do": "retain", "path": tmp_path / "kv", "capacity_bytes": capacity}
        answer = other_process.ask(**order, numbers=numbers, retention=retention.name)
        return list(answer["told"])

    return put_on_terms


def pinned(tier: DiskTier, made: list[ChunkKV]) -> set[int]:
    """Which of them `meta` says are; the others are said to be warmed."""
    terms = {digest: entry.terms.retention for digest, entry in tier.entries()}
    kept = [terms[record.key.digest] for record in made]
    assert set(kept) <= {Retention.PINNED, Retention.WARMED}
    return {number for number, one in enumerate(kept) if one is Retention.PINNED}


def test_the_pins_that_were_granted_hold_after_a_restart(
    open_tier: OpenTier, made: list[ChunkKV], capacity: int, records: ModuleType
) -> None:
    tier = open_tier(capacity)
    assert all(tier.put(record) for record in made)
    kept = [tier.retain(record.key, PINNED, exactly=True) for record in reversed(made)]
    assert kept == [Retention.PINNED] * 4 + [Retention.WARMED] * 4
    tier.close()
    tier = open_tier(capacity)
    assert pinned(tier, made) == {4, 5, 6, 7}
    for number in range(100, 130):
        assert tier.put(records.make_record(number))
    assert all(tier.contains(record.key) for record in made[4:])
    assert tier.retain(made[0].key, Terms(retention=Retention.PASSING)) in (None, Retention.WARMED)


def test_pins_of_two_processes_take_half_of_the_tier_together(
    open_tier: OpenTier, made: list[ChunkKV], capacity: int, retained: Callable[..., list[str]]
) -> None:
    tier = open_tier(capacity)
    assert all(tier.put(record) for record in made)
    assert tier.retain(made[0].key, PINNED) is Retention.PINNED
    assert retained([7, 6, 5, 4]) == ["PINNED"] * 3 + ["WARMED"]
    assert tier.retain(made[1].key, PINNED) is Retention.WARMED, "it knows of the others'"
    assert pinned(tier, [made[0], *made[4:], made[1]]) == {0, 2, 3, 4}


def test_a_record_that_is_put_pinned_is_so_only_if_there_is_a_place_for_it(
    open_tier: OpenTier, made: list[ChunkKV], capacity: int
) -> None:
    tier = open_tier(capacity)
    assert all(tier.put(replace(record, terms=PINNED)) for record in made)
    assert pinned(tier, made) == {0, 1, 2, 3}


def test_pins_that_fit_no_more_are_written_as_warmed_when_a_record_comes(
    open_tier: OpenTier, made: list[ChunkKV], capacity: int, records: ModuleType, tmp_path: Path
) -> None:
    """A tier that was larger; earlier versions wrote whatever was asked for, too."""
    tier = open_tier(2 * capacity)
    assert all(tier.put(replace(record, terms=PINNED)) for record in made)
    assert pinned(tier, made) == set(range(ROOM))
    tier.close()
    tier = open_tier(capacity)
    assert pinned(tier, made) == set(range(ROOM)), "nothing is written by who only opens it"
    with structlog.testing.capture_logs() as logs:
        for number in range(100, 110):
            assert tier.put(records.make_record(number))
    assert [line["event"] for line in logs] == ["pins_full"], "once"
    assert pinned(tier, made[:4]) == {0, 1, 2, 3}, "the first that came"
    assert sum(tier.contains(record.key) for record in made[4:]) < 4
    tier.close()
    assert check_store(tmp_path / "kv", capacity).clean


def test_pins_that_have_expired_take_no_place_after_a_restart(
    open_tier: OpenTier, made: list[ChunkKV], capacity: int, records: ModuleType
) -> None:
    tier = open_tier(capacity)
    assert all(tier.put(record) for record in made)
    expired = replace(PINNED, expires_s=1.0)
    kept = [tier.retain(record.key, expired, exactly=True) for record in made[:4]]
    kept += [tier.retain(record.key, PINNED, exactly=True) for record in made[4:]]
    assert kept == [Retention.PINNED] * ROOM
    tier.close()
    tier = open_tier(capacity)
    assert tier.put(records.make_record(100))
    assert pinned(tier, made[4:]) == {0, 1, 2, 3}
    assert sum(tier.contains(record.key) for record in made[:4]) == 3, "these leave"


def test_pins_of_another_process_hold_where_those_before_them_have_expired(
    open_tier: OpenTier, made: list[ChunkKV], capacity: int, records: ModuleType,
    retained: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tier, now_s = open_tier(capacity), time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now_s - 120)
        patch.setattr(time, "time_ns", lambda: int((now_s - 120) * 1e9))
        assert all(tier.put(record) for record in made)
        soon = replace(PINNED, expires_s=now_s - 60)
        assert {tier.retain(one.key, soon, exactly=True) for one in made[:4]} == {PINNED.retention}
        assert tier.retain(made[4].key, PINNED) is Retention.WARMED, "not yet"
    assert retained([4, 5, 6, 7]) == ["PINNED"] * 4
    assert tier.put(records.make_record(100))
    assert pinned(tier, made[4:]) == {0, 1, 2, 3}


def test_what_another_process_takes_back_meanwhile_is_not_written_over(
    open_tier: OpenTier, made: list[ChunkKV], capacity: int, records: ModuleType,
    retained: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tier = open_tier(2 * capacity)
    assert all(tier.put(replace(record, terms=PINNED)) for record in made)
    tier.close()
    tier = open_tier(capacity)
    pins_beyond = tier._mirror.pins_beyond

    def then_taken_back(now_s: float) -> list[bytes]:
        found = pins_beyond(now_s)
        monkeypatch.undo()
        assert retained([0, 5], Retention.NORMAL) == ["NORMAL"] * 2
        return found

    monkeypatch.setattr(tier._mirror, "pins_beyond", then_taken_back)
    assert tier.put(records.make_record(100))
    terms = {digest: entry.terms.retention.name for digest, entry in tier.entries()}
    kept = {number: terms.get(record.key.digest) for number, record in enumerate(made)}
    assert [kept[number] for number in (1, 2, 3, 4)] == ["PINNED"] * 4, "the others' places"
    assert {kept[0], kept[5]} <= {"NORMAL", None} and {kept[6], kept[7]} <= {"WARMED", None}
    assert list(kept.values()).count(None) == 1, "one has left for the new one"


@pytest.mark.parametrize(
    ("was_cold", "is_read"), [(False, False), (True, False), (True, True)]
)  # fmt: skip
def test_a_record_that_moves_while_it_is_pinned_is_pinned_where_it_is_then(
    open_tier: OpenTier, records: ModuleType, monkeypatch: pytest.MonkeyPatch,
    was_cold: bool, is_read: bool,
) -> None:  # fmt: skip
    record, tier = records.make_finite(1), open_tier(cold=INT4)
    tier.put(record)
    if was_cold:
        tier.recode(record.key.digest, INT4)
    retain, terms = tier._writer.retain, Terms("t", 3, Retention.PINNED)
    reader = tier.open(record.key) if is_read else None

    def moved_before(*arguments: Any, **options: Any) -> Any:
        if was_cold:
            tier.put(record)  # the rounded copy stays while it is read
        else:
            tier.recode(record.key.digest, INT4)
        return retain(*arguments, **options)

    monkeypatch.setattr(tier._writer, "retain", moved_before)
    assert tier.retain(record.key, terms, exactly=True) is Retention.PINNED
    found = {entry.codec: entry.terms for _, entry in tier.entries()}
    assert found[tier.codec_of(record.key)] == terms
    assert [one for one in found.values() if one.retention is Retention.PINNED] == [terms]
    if reader is not None:
        with reader:
            pass


def test_the_pin_of_a_rounded_copy_gives_its_place_to_the_exact_record(
    open_tier: OpenTier, records: ModuleType, tmp_path: Path
) -> None:
    record = records.make_finite(1)
    trial = open_tier(path=tmp_path / "trial")
    trial.put(record)
    tier = open_tier(2 * trial.usage().size_bytes, cold=INT4)
    tier.put(record)
    tier.recode(record.key.digest, INT4)
    assert tier.retain(record.key, PINNED, exactly=True) is Retention.PINNED
    assert tier.put(record)
    ((_, entry),) = tier.entries()
    assert (entry.codec, entry.terms) == ("raw", PINNED), "half of the tier, and no more"
