"""Every tier does what the host tier does: same operations, same answers, bit for bit."""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from chunkcache.chunk import ChunkKV
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.base import Tier
from chunkcache.store.codec import codec_named
from chunkcache.store.disk import DiskTier
from chunkcache.store.host import HostTier
from chunkcache.store.lru import LruPolicy
from chunkcache.store.policy import Policy
from chunkcache.store.reader import read_record
from chunkcache.store.remote.objects import ObjectBlobs
from chunkcache.store.remote.resp import RespBlobs
from chunkcache.store.remote.tier import RemoteTier
from chunkcache.store.windowed import WindowedFrequencyPolicy

MIB = 1024 * 1024
RAW = codec_named("raw")
Reopen = Callable[[], Tier]


def disk_in(folder: Path, fingerprint: bytes, request: Any) -> Reopen:
    return lambda: DiskTier(folder / "kv", 64 * MIB, RAW, fingerprint=fingerprint)


def objects_in(folder: Path, fingerprint: bytes, request: Any) -> Reopen:
    return lambda: RemoteTier(
        "object", ObjectBlobs(f"file://{folder}/objects", "1/raw"), RAW,
        fingerprint=fingerprint, timeout_s=20.0,
    )  # fmt: skip


def server_for(folder: Path, fingerprint: bytes, request: Any) -> Reopen:
    prefix = f"chunkcache:{secrets.token_hex(4)}:"
    url = request.getfixturevalue("valkey").url
    return lambda: RemoteTier(
        "shared", RespBlobs(url, prefix, timeout_s=20.0), RAW,
        fingerprint=fingerprint, timeout_s=20.0,
    )  # fmt: skip


KINDS = {"disk": disk_in, "shared": server_for, "object": objects_in}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def storage(
    kind: str, records: ModuleType, request: pytest.FixtureRequest
) -> Callable[[Path], Reopen]:
    """Gives new storage, in a folder; which gives a tier over it, as often as it is called."""
    return lambda folder: KINDS[kind](folder, records.FINGERPRINT, request)


def awkward_records(records: ModuleType) -> list[ChunkKV]:
    made = [
        records.make_record(0, num_tokens=1),
        records.make_record(1, num_tokens=1000),
        records.make_record(2, num_tokens=63),  # slabs of 4032 bytes, in one page each
        records.make_record(3, num_tokens=64),  # of 4096 bytes: with LMDB's 16, in two
        records.make_record(4, num_tokens=7, num_priors=3),
        records.make_record(5, num_tokens=33, geometry=records.ODD),
        records.make_record(6, num_tokens=1, geometry=records.ODD, num_priors=1),
    ]
    return [*made, records.colliding_with(made[0], 7), records.colliding_with(made[3], 8)]


def machine(records: ModuleType, storage: Callable[[Path], Reopen]) -> type[RuleBasedStateMachine]:
    made = awkward_records(records)
    chosen = st.sampled_from(made)

    class Twins(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.folder = TemporaryDirectory()
            self.host = HostTier(64 * MIB)
            self.reopen = storage(Path(self.folder.name))
            self.tier = self.reopen()

        def teardown(self) -> None:
            self.tier.close()
            self.folder.cleanup()

        @rule(record=chosen)
        def put(self, record: ChunkKV) -> None:
            assert self.tier.put(record) == self.host.put(record)

        @rule(record=chosen)
        def get(self, record: ChunkKV) -> None:
            found, twin = self.tier.get(record.key), self.host.get(record.key)
            assert (found is None) == (twin is None)
            if found is not None and twin is not None:
                assert records.contents(found) == records.contents(twin)

        @rule(record=chosen)
        def open(self, record: ChunkKV) -> None:
            reader, twin = self.tier.open(record.key), self.host.get(record.key)
            assert (reader is None) == (twin is None)
            if reader is not None and twin is not None:
                with reader:
                    assert records.contents(read_record(reader)) == records.contents(twin)

        @rule(record=chosen)
        def delete(self, record: ChunkKV) -> None:
            assert self.tier.delete(record.key) == self.host.delete(record.key)

        @rule()
        def restart(self) -> None:
            self.tier.close()
            self.tier = self.reopen()

        @invariant()
        def same_records(self) -> None:
            assert set(self.tier.scan()) == set(self.host.scan())
            assert self.tier.usage().records == self.host.usage().records
            for record in made:
                assert self.tier.contains(record.key) == self.host.contains(record.key)

    return Twins


@pytest.mark.hypothesis
def test_a_tier_and_the_host_tier_give_the_same_answers_to_any_run_of_verbs(
    kind: str, records: ModuleType, storage: Callable[[Path], Reopen], times_more: int
) -> None:
    examples, steps = (30, 40) if kind == "disk" else (8, 20)
    run_state_machine_as_test(
        machine(records, storage),
        settings=settings(
            max_examples=examples * times_more, stateful_step_count=steps, deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )  # fmt: skip


def test_readers_beside_a_writer_and_a_deleter_see_a_record_whole_or_not_at_all(
    records: ModuleType, storage: Callable[[Path], Reopen], tmp_path: Path
) -> None:
    """Two chunks of one digest take each other's place; a third comes and goes."""
    tier = storage(tmp_path)()
    first, third = records.make_record(1, num_tokens=200), records.make_record(3, num_tokens=200)
    second = records.colliding_with(first, 2)
    right = {record.key: records.contents(record) for record in (first, second, third)}
    enough, failures, wrong = threading.Event(), [], []
    hits = dict.fromkeys(right, 0)

    def repeatedly(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                while not enough.is_set():
                    work()
            except BaseException as error:
                failures.append(error)
                enough.set()

        return threading.Thread(target=run)

    def read() -> None:
        for key, contents in right.items():
            try:
                found = tier.get(key)
            except CorruptRecord:
                raise
            except StoreError:  # deleted while it was read
                continue
            if found is not None:
                hits[key] += 1
                if records.contents(found) != contents:
                    wrong.append(key)

    turns = iter(range(40))

    def write() -> None:
        if next(turns, None) is None:
            enough.set()
            return
        for record in (first, second, third):
            assert tier.put(record)
            read()
        assert tier.delete(third.key)

    threads = [repeatedly(work) for work in (read, read, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    tier.close()
    assert failures == [] and wrong == []
    assert min(hits.values()) >= 40, "the writer reads what it has just written"


@pytest.mark.parametrize("policy", [LruPolicy, WindowedFrequencyPolicy])
def test_disk_and_host_evict_the_same_records(
    policy: type[Any], open_tier: Callable[..., DiskTier], records: ModuleType, tmp_path: Path
) -> None:
    """Records of one size, room for 20 of them, 300 accesses to 60, the first ones most often."""

    def made(capacity_bytes: int) -> Policy:
        return policy() if policy is LruPolicy else policy(capacity_bytes, half_life_uses=50)

    trial = open_tier(path=tmp_path / "trial")
    trial.put(records.make_record(0))
    disk_bytes = 20 * trial.usage().size_bytes
    host_bytes = 20 * records.make_record(0).size_bytes
    evicted: dict[str, list[int]] = {"host": [], "disk": []}
    host = HostTier(host_bytes, made(host_bytes), on_evict=evicted["host"].append)
    disk = open_tier(disk_bytes, policy=made(disk_bytes), on_evict=evicted["disk"].append)
    draw = random.Random(5)
    for _ in range(300):
        record = records.make_record(int(60 * draw.random() ** 2))
        found = disk.get(record.key)
        assert (host.get(record.key) is None) == (found is None)
        if found is None:
            disk.put(record)
            host.put(record)
        assert set(disk.scan()) == set(host.scan())
        assert disk.usage().size_bytes <= disk_bytes
    assert sum(evicted["disk"]) == sum(evicted["host"]) > 50
