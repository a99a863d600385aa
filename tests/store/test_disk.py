"""The disk tier by itself: opening, identity, budget, threads, closing."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from chunkcache.errors import StoreError
from chunkcache.store.codec.raw import RawCodec
from chunkcache.store.lmdb_env import RecordEnv
from chunkcache.store.lru import LruPolicy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from chunkcache.store.disk import DiskTier

    OpenTier = Callable[..., DiskTier]

MIB = 1024 * 1024


class OtherCodec(RawCodec):
    name = "raw of a later version"


def test_records_survive_a_restart_with_their_order_of_age(
    open_tier: OpenTier, records: ModuleType
) -> None:
    made = [records.make_record(n) for n in range(8)]
    tier = open_tier()
    for record in made:
        tier.put(record)
    used = tier.usage().size_bytes
    tier.close()
    tier = open_tier(used)
    for record in made:
        found = tier.get(record.key)
        assert found is not None and records.contents(found) == records.contents(record)
    tier.close()
    tier = open_tier(used)
    tier.put(records.make_record(8))
    assert set(tier.scan()) == {r.key.digest for r in [*made[1:], records.make_record(8)]}


def test_records_of_another_model_or_codec_are_not_found_and_take_part_in_the_budget(
    open_tier: OpenTier, records: ModuleType
) -> None:
    record = records.make_record(1)
    tier = open_tier(codec=OtherCodec())
    tier.put(record)
    used = tier.usage().size_bytes
    for other in ({"fingerprint": b"model-b", "codec": OtherCodec()}, {"codec": RawCodec()}):
        tier.close()
        tier = open_tier(used, **other)
        assert tier.get(record.key) is None and not tier.contains(record.key)
        assert not tier.delete(record.key) and not list(tier.scan())
        assert tier.usage().size_bytes == used
    tier.close()
    tier = open_tier(used, fingerprint=b"model-b", codec=RawCodec())
    assert tier.put(records.make_record(2))  # the other model's record makes room
    assert tier.usage().records == 1


def test_a_forced_digest_collision_is_a_miss(open_tier: OpenTier, records: ModuleType) -> None:
    tier = open_tier()
    first = records.make_record(1)
    second = records.colliding_with(first, 2)
    tier.put(first)
    assert tier.get(second.key) is None
    tier.put(second)
    assert tier.get(first.key) is None
    found = tier.get(second.key)
    assert found is not None and records.contents(found) == records.contents(second)
    assert tier.usage().records == 1


def test_a_record_that_is_there_is_not_written_again_and_counts_as_used(
    open_tier: OpenTier, records: ModuleType
) -> None:
    made = [records.make_record(number) for number in range(3)]
    trial = open_tier(2 * 4 * 4096, policy=LruPolicy())
    trial.put(made[0])
    trial.put(made[1])
    commits = trial._env._env.info()["last_txnid"]
    assert trial.put(made[0])
    assert trial._env._env.info()["last_txnid"] == commits
    trial.put(made[2])
    assert set(trial.scan()) == {made[0].key.digest, made[2].key.digest}


def test_what_was_got_is_a_copy_that_outlives_the_record(
    open_tier: OpenTier, records: ModuleType
) -> None:
    tier = open_tier()
    record = records.make_record(1, num_tokens=300)
    tier.put(record)
    found = tier.get(record.key)
    assert found is not None and found.kv.is_contiguous()
    tier.delete(record.key)
    for number in range(2, 30):
        tier.put(records.make_record(number, num_tokens=300))
    assert records.contents(found) == records.contents(record)
    found.kv.zero_()  # its own memory, writable: writing into the map would end the process


def test_usage_counts_the_very_pages_in_use(open_tier: OpenTier, records: ModuleType) -> None:
    tier = open_tier()
    assert tier.usage().size_bytes == 0
    tier.put(records.make_record(1, num_tokens=63))
    assert tier.usage().size_bytes == 4 * 4096  # three slabs of 4032 bytes and the header
    tier.put(records.make_record(2, num_tokens=64))
    assert tier.usage().size_bytes == (4 + 3 * 2 + 1) * 4096
    tier.delete(records.make_record(1, num_tokens=63).key)
    assert tier.usage().size_bytes == 7 * 4096


def test_a_record_larger_than_the_budget_is_not_admitted_and_evicts_nothing(
    open_tier: OpenTier, records: ModuleType
) -> None:
    tier = open_tier(16 * 4096)
    tier.put(records.make_record(1))
    assert not tier.put(records.make_record(2, num_tokens=1000))
    assert tier.contains(records.make_record(1).key)


@pytest.mark.parametrize("part", ["shape", "dtype"])
def test_a_record_that_contradicts_its_geometry_is_refused(
    part: str, open_tier: OpenTier, records: ModuleType
) -> None:
    record = records.make_record(1)
    kv = record.kv[:, :, :-1] if part == "shape" else record.kv.float()
    with pytest.raises(StoreError, match="its geometry says"):
        open_tier().put(replace(record, kv=kv))


def test_a_second_opening_in_one_process_is_refused_with_a_hint(
    open_tier: OpenTier, records: ModuleType
) -> None:
    tier = open_tier()
    with pytest.raises(StoreError, match=r"already open in this process.*Hint: .*once"):
        open_tier()
    assert tier.put(records.make_record(1))


def test_a_folder_that_is_no_store_is_refused_with_a_hint(
    open_tier: OpenTier, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open"):
        open_tier(path=tmp_path / "file")


def test_every_verb_of_a_closed_tier_says_that_it_is_closed(
    open_tier: OpenTier, records: ModuleType
) -> None:
    tier, record = open_tier(), records.make_record(1)
    tier.close()
    tier.close()
    verbs: list[Callable[[], Any]] = [
        lambda: tier.get(record.key), lambda: tier.put(record), lambda: tier.contains(record.key),
        lambda: tier.delete(record.key), tier.scan, tier.usage,
    ]  # fmt: skip
    for verb in verbs:
        with pytest.raises(StoreError, match="is closed"):
            verb()


def test_closing_waits_for_a_verb_that_runs(
    open_tier: OpenTier, records: ModuleType, monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:  # fmt: skip
    tier, record = open_tier(), records.make_record(1)
    tier.put(record)
    reading, go_on = threading.Event(), threading.Event()
    fill = RecordEnv.fill

    def slow_fill(self: RecordEnv, *args: Any) -> None:
        reading.set()
        assert go_on.wait(20)
        fill(self, *args)

    monkeypatch.setattr(RecordEnv, "fill", slow_fill)
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.append(tier.get(record.key)))
    reader.start()
    assert reading.wait(20)
    closer = threading.Thread(target=tier.close)
    closer.start()
    eventually(lambda: tier._verbs._taken)
    assert closer.is_alive()
    go_on.set()
    reader.join(20)
    closer.join(20)
    assert records.contents(found[0]) == records.contents(record)
    with pytest.raises(StoreError, match="is closed"):
        tier.usage()


def test_threads_that_put_get_and_delete_at_once_see_whole_records_or_none(
    open_tier: OpenTier, records: ModuleType
) -> None:
    made = [records.make_record(n, num_tokens=200) for n in range(12)]
    expected = [records.contents(record) for record in made]
    probe = open_tier()
    probe.put(made[0])
    capacity = 7 * probe.usage().size_bytes
    probe.close()
    tier = open_tier(capacity, sync_interval_s=0.005)
    problems: list[object] = []

    def work(seed: int) -> None:
        try:
            for turn in range(60):
                at = (turn * (2 * seed + 1) + seed) % len(made)
                found = tier.get(made[at].key)
                if found is None:
                    tier.put(made[at])
                elif records.contents(found) != expected[at]:
                    problems.append(at)
                if turn % 7 == seed:
                    tier.delete(made[at].key)
                if tier.usage().size_bytes > capacity:
                    problems.append(tier.usage())
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems


def test_the_background_flush_runs_again_after_a_failure(
    open_tier: OpenTier, records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, done = threading.Event(), threading.Event()

    def sync(self: RecordEnv) -> None:
        if not failed.is_set():
            failed.set()
            raise StoreError("store: cannot sync")
        done.set()

    monkeypatch.setattr(RecordEnv, "sync", sync)
    with structlog.testing.capture_logs() as logs:
        tier = open_tier(sync_interval_s=0.002)
        tier.put(records.make_record(1))
        assert failed.wait(20) and done.wait(20)
    assert [line["event"] for line in logs] == ["store_sync_failed"]


def test_a_tier_that_fails_to_flush_at_the_end_is_closed_all_the_same(
    open_tier: OpenTier, records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = open_tier()
    tier.put(records.make_record(1))

    def sync(self: RecordEnv) -> None:
        raise StoreError("store: cannot sync")

    with monkeypatch.context() as patch:
        patch.setattr(RecordEnv, "sync", sync)
        with pytest.raises(StoreError, match="cannot sync"):
            tier.close()
    assert open_tier().contains(records.make_record(1).key)
