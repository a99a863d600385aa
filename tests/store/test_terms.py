"""Terms of records, in every tier that evicts: what was warmed, whose it is, until when."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import structlog

from chunkcache.chunk import ChunkKV, Retention, Terms
from chunkcache.metrics import Metrics
from chunkcache.store.disk import DiskTier
from chunkcache.store.host import HostTier
from chunkcache.store.tiered import TieredStore
from chunkcache.store.windowed import WindowedFrequencyPolicy

ROOM = 8  # records
Make = Callable[..., Any]


@pytest.fixture(params=["host", "disk"])
def new_tier(
    request: pytest.FixtureRequest, open_tier: Callable[..., DiskTier], records: ModuleType,
    tmp_path: Path,
) -> Make:  # fmt: skip
    """A tier with room for `ROOM` records; its policy is made from its capacity and options."""

    made = count()

    def make(**options: Any) -> HostTier | DiskTier:
        record = records.make_record(0)
        if request.param == "host":
            capacity = ROOM * record.size_bytes
            return HostTier(capacity, WindowedFrequencyPolicy(capacity, **options))
        trial = open_tier(path=tmp_path / f"trial {next(made)}")
        trial.put(record)
        capacity = ROOM * trial.usage().size_bytes
        policy = WindowedFrequencyPolicy(capacity, **options)
        return open_tier(capacity, path=tmp_path / f"{next(made)}", policy=policy)

    return make


def on(terms: Terms, record: ChunkKV) -> ChunkKV:
    return replace(record, terms=terms)


def test_documents_of_requests_never_push_out_what_was_warmed(
    new_tier: Make, records: ModuleType
) -> None:
    tier = new_tier()
    corpus = Terms(retention=Retention.WARMED)
    warmed = [on(corpus, records.make_record(n)) for n in range(ROOM - 2)]
    assert all(tier.put(record) for record in warmed)
    for number in range(100, 130):
        passing = on(Terms(retention=Retention.PASSING), records.make_record(number))
        for _ in range(3):  # asked for more often than any of the corpus
            if tier.get(passing.key) is None:
                assert tier.put(passing), "there are two places for them"
    assert all(tier.contains(record.key) for record in warmed)
    full = new_tier()
    for number in range(ROOM):
        assert full.put(on(corpus, records.make_record(number)))
    passing = on(Terms(retention=Retention.PASSING), records.make_record(300))
    assert not full.put(passing) and not full.contains(passing.key), "the corpus fills the tier"
    assert full.usage().records == ROOM


def test_pinned_records_stay_and_expired_ones_go_first_but_are_served_until_then(
    new_tier: Make, records: ModuleType
) -> None:
    tier = new_tier()
    pinned = on(Terms(retention=Retention.PINNED), records.make_record(0))
    expired = on(Terms(expires_s=1.0), records.make_record(1))
    for record in (pinned, *(records.make_record(n) for n in range(2, ROOM)), expired):
        assert tier.put(record)
    for _ in range(5):
        assert tier.get(expired.key) is not None
    assert tier.put(records.make_record(50))
    assert not tier.contains(expired.key) and tier.contains(records.make_record(2).key)
    for number in range(60, 80):
        assert tier.put(records.make_record(number))
    assert tier.get(pinned.key) is not None
    assert tier.delete(pinned.key)


def test_above_its_quota_a_tenant_evicts_its_own_and_no_other_s(
    new_tier: Make, records: ModuleType
) -> None:
    tier = new_tier()
    first = records.make_record(0)
    tier.put(first)
    quota = 2 * tier.usage().size_bytes
    tier = new_tier(quotas={"greedy": quota})
    other = on(Terms("other"), records.make_record(1))
    assert tier.put(other)
    for number in range(10, 20):
        assert tier.put(on(Terms("greedy"), records.make_record(number)))
        assert tier.contains(other.key)
    assert tier.usage().records == 3, "though there is room for more"


def test_terms_outlive_a_restart(open_tier: Callable[..., DiskTier], records: ModuleType) -> None:
    tier = open_tier()
    tier.put(records.make_record(0))
    capacity = 6 * tier.usage().size_bytes
    tier.close()
    tier = open_tier(capacity)
    warmed = [on(Terms(retention=Retention.WARMED), records.make_record(n)) for n in range(1, 5)]
    assert all(tier.put(record) for record in warmed)
    warmed.append(records.make_record(5))
    assert tier.put(warmed[-1])
    tier.retain(warmed[-1].key, Terms(retention=Retention.WARMED))
    tier.close()
    tier = open_tier(capacity)
    for number in range(100, 110):
        tier.put(on(Terms(retention=Retention.PASSING), records.make_record(number)))
    assert all(tier.contains(record.key) for record in warmed)


def test_what_is_there_can_be_kept_on_firmer_terms_and_on_no_looser_ones(
    new_tier: Make, records: ModuleType
) -> None:
    tier = new_tier()
    made = [records.make_record(n) for n in range(ROOM)]
    for record in made:
        assert tier.put(record)
    for record in made[1:]:
        tier.retain(record.key, Terms("t", retention=Retention.WARMED))
        tier.retain(record.key, Terms("t", retention=Retention.PASSING))
    tier.retain(records.make_record(50).key, Terms(retention=Retention.PINNED))
    for number in range(100, 120):
        assert tier.put(on(Terms(retention=Retention.PASSING), records.make_record(number)))
        assert all(tier.contains(record.key) for record in made[1:])
    assert not tier.contains(made[0].key) and tier.usage().records == ROOM
    found = tier.get(made[1].key)
    assert found is not None and records.contents(found) == records.contents(made[1])


def test_terms_that_are_as_firm_change_nothing(new_tier: Make, records: ModuleType) -> None:
    tier, kept = new_tier(), records.make_record(0)
    assert tier.put(on(Terms("t", 5), kept))
    assert tier.retain(kept.key, Terms("t", -9)) is Retention.NORMAL
    for number in range(100, 120):
        assert tier.put(records.make_record(number))
    assert tier.contains(kept.key)


def test_asking_whether_a_record_is_there_changes_no_order(
    new_tier: Make, records: ModuleType
) -> None:
    tiers = [new_tier(), new_tier()]
    made = [records.make_record(n) for n in range(3 * ROOM)]
    for tier in tiers:
        for record in made[:ROOM]:
            tier.put(record)
    for _ in range(10):
        assert tiers[0].contains(made[0].key)
        assert not tiers[0].contains(made[-1].key)
    for record in made[ROOM:]:
        for tier in tiers:
            tier.put(record)
        assert set(tiers[0].scan()) == set(tiers[1].scan())


def test_what_a_waiting_request_will_want_leaves_last(new_tier: Make, records: ModuleType) -> None:
    tier = new_tier()
    wanted = records.make_record(0)
    held = [wanted, *(records.make_record(n) for n in range(1, ROOM))]
    for record in held:
        assert tier.put(record)
    for _ in range(4):
        for record in held[1:]:
            assert tier.get(record.key) is not None
    for _ in range(2):  # two requests wait for it
        tier.on_wait([wanted.key])
    for number in range(100, 110):
        assert tier.put(records.make_record(number))
        assert tier.contains(wanted.key), "the least used of all, but somebody waits for it"
    tier.on_wait_over([wanted.key])
    assert tier.put(records.make_record(110)) and tier.contains(wanted.key), "one waits still"
    tier.on_wait_over([wanted.key])
    assert tier.put(records.make_record(111)) and not tier.contains(wanted.key)


def test_a_tier_is_not_stuck_when_all_it_holds_is_waited_for(
    new_tier: Make, records: ModuleType
) -> None:
    tier = new_tier()
    held = [records.make_record(n) for n in range(ROOM)]
    for record in held:
        assert tier.put(record)
        tier.on_wait([record.key])
    assert tier.put(records.make_record(100))
    assert [tier.contains(record.key) for record in held] == [True] * (ROOM - 1) + [False], (
        "the one that is wanted last has gone"
    )


def test_a_record_is_pinned_and_let_go_again(new_tier: Make, records: ModuleType) -> None:
    tier = new_tier()
    pinned, other = records.make_record(0), records.make_record(1)
    assert tier.put(pinned) and tier.put(other)
    tier.retain(pinned.key, Terms("t", 3, Retention.PINNED), exactly=True)
    tier.retain(other.key, Terms(retention=Retention.PINNED), exactly=True)
    tier.retain(other.key, Terms(), exactly=True)
    for number in range(100, 130):
        assert tier.put(records.make_record(number))
    assert tier.contains(pinned.key) and not tier.contains(other.key)
    tier.retain(pinned.key, Terms("t", -9), exactly=True)
    for number in range(200, 230):
        assert tier.put(records.make_record(number))
    assert not tier.contains(pinned.key)


def test_a_quota_that_is_set_later_counts_what_is_there(
    new_tier: Make, records: ModuleType
) -> None:
    tier = new_tier()
    terms = Terms("greedy")
    own = [on(terms, records.make_record(n)) for n in range(ROOM - 1)]
    other = records.make_record(50)
    assert all(tier.put(record) for record in (*own, other))
    size_bytes = tier.usage().size_bytes // ROOM
    tier.on_quota("greedy", 3 * size_bytes)
    assert tier.usage().records == ROOM, "nothing leaves until more comes"
    assert tier.put(on(terms, records.make_record(60)))
    assert sum(tier.contains(record.key) for record in own) == 2 and tier.contains(other.key)
    tier.on_quota("greedy", None)
    for number in range(70, 74):
        assert tier.put(on(terms, records.make_record(number)))
    assert tier.usage().records == ROOM


def test_who_asks_for_terms_is_told_whether_they_hold(new_tier: Make, records: ModuleType) -> None:
    tier = new_tier()
    record, absent = records.make_record(0), records.make_record(1)
    assert tier.put(record)
    for terms in (Terms("t", 3), Terms("t", 3), Terms()):
        assert tier.retain(record.key, terms, exactly=True) is Retention.NORMAL
        assert tier.retain(absent.key, terms, exactly=True) is None
    warmed = Retention.WARMED
    assert tier.retain(record.key, Terms(retention=warmed)) is warmed
    assert tier.retain(record.key, Terms(retention=Retention.PASSING)) is warmed, "it is firmer"
    assert tier.retain(absent.key, Terms()) is None


def test_pins_leave_half_the_tier_to_others_and_say_so(new_tier: Make, records: ModuleType) -> None:
    tier, terms = new_tier(), Terms(retention=Retention.PINNED)
    made = [records.make_record(n) for n in range(ROOM)]
    assert all(tier.put(record) for record in made)
    with structlog.testing.capture_logs() as logs:
        kept = [tier.retain(record.key, terms, exactly=True) for record in made]
    assert kept == [Retention.PINNED] * (ROOM // 2) + [Retention.WARMED] * (ROOM // 2)
    assert [line["event"] for line in logs] == ["pins_full"] * (tier.name == "disk"), "once"
    for number in range(100, 130):
        assert tier.put(records.make_record(number)), "there is room for others"
        assert all(tier.contains(record.key) for record in made[: ROOM // 2])
    last = made[-1]
    tier.put(last)
    assert tier.retain(last.key, terms, exactly=True) is Retention.WARMED
    assert tier.retain(made[0].key, terms, exactly=True) is Retention.PINNED, "it was before"
    assert tier.retain(made[0].key, Terms(), exactly=True) is Retention.NORMAL
    assert tier.retain(last.key, terms, exactly=True) is Retention.PINNED, "asked for once more"


def test_a_pin_that_has_expired_leaves_its_place_to_others(
    new_tier: Make, records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier, now_s = new_tier(), time.time()
    made = [records.make_record(n) for n in range(ROOM)]
    assert all(tier.put(record) for record in made)
    pinned, soon = Retention.PINNED, Terms(retention=Retention.PINNED, expires_s=now_s + 60)
    assert {tier.retain(record.key, soon) for record in made[: ROOM // 2]} == {pinned}
    last = made[-1].key
    assert tier.retain(last, Terms(retention=pinned), exactly=True) is Retention.WARMED
    monkeypatch.setattr(time, "time", lambda: now_s + 120)
    assert tier.retain(last, Terms(retention=pinned), exactly=True) is pinned


def test_a_write_that_is_refused_is_counted_and_said_once_for_each_reason(
    open_tier: Callable[..., DiskTier], records: ModuleType, metrics: Metrics,
    counted: Callable[..., float], tmp_path: Path,
) -> None:  # fmt: skip
    trial = open_tier(path=tmp_path / "trial")
    trial.put(records.make_record(0))
    size_bytes = trial.usage().size_bytes
    capacity = ROOM * size_bytes
    policy = WindowedFrequencyPolicy(capacity, quotas={"bound": size_bytes, "tiny": 9})
    tier = open_tier(capacity, policy=policy)
    store = TieredStore([tier], metrics)
    bound = Terms("bound", retention=Retention.PINNED)
    passing, warmed = Terms(retention=Retention.PASSING), Terms(retention=Retention.WARMED)
    with structlog.testing.capture_logs() as logs:
        assert store.offer(on(bound, records.make_record(0)), wait=True)
        for number in range(1, ROOM):
            assert store.offer(on(warmed, records.make_record(number)), wait=True)
        for number in (51, 52):
            for terms in (bound, passing):
                assert not store.offer(on(terms, records.make_record(number)), wait=True)
        assert not store.offer(records.make_record(53, num_tokens=9000), wait=True)
        assert not store.offer(on(Terms("tiny"), records.make_record(54)), wait=True)
    bytes_of, quotas = "store.disk_capacity_bytes", "store.quota_bytes, chunkcache quota --set"
    bound_to = f"the quota of tenant 'bound', {size_bytes} bytes"
    assert {line["event"] for line in logs} == {"store_write_refused"}
    assert [(line["reason"], line["knob"]) for line in logs] == [
        (f"{bound_to}, is full of what is pinned or being read", quotas),
        ("the tier is full of what is pinned or warmed or being read", bytes_of),
        ("it is larger than the tier", bytes_of),
        ("it is larger than the quota of tenant 'tiny', 9 bytes", quotas),
    ]
    assert counted("store_refusals_total", tier="disk") == 6
    assert tier.usage().records == ROOM, "and nothing has left for them"
    store.close()
