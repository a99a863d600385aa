"""The disk tier does what the host tier does: same operations, same answers, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from chunkcache.store.codec import codec_named
from chunkcache.store.disk import DiskTier
from chunkcache.store.host import HostTier
from chunkcache.store.policy import LruPolicy, WindowedFrequencyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from chunkcache.chunk import ChunkKV
    from chunkcache.store.policy import Policy

MIB = 1024 * 1024


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


def machine(records: ModuleType) -> type[RuleBasedStateMachine]:
    made = awkward_records(records)
    chosen = st.sampled_from(made)

    class Twins(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.folder = TemporaryDirectory()
            self.host = HostTier(64 * MIB)
            self.open()

        def open(self) -> None:
            self.disk = DiskTier(
                Path(self.folder.name) / "kv", 64 * MIB, codec_named("raw"),
                fingerprint=records.FINGERPRINT,
            )  # fmt: skip

        def teardown(self) -> None:
            self.disk.close()
            self.folder.cleanup()

        @rule(record=chosen)
        def put(self, record: ChunkKV) -> None:
            assert self.disk.put(record) == self.host.put(record)

        @rule(record=chosen)
        def get(self, record: ChunkKV) -> None:
            found, twin = self.disk.get(record.key), self.host.get(record.key)
            assert (found is None) == (twin is None)
            if found is not None and twin is not None:
                assert records.contents(found) == records.contents(twin)

        @rule(record=chosen)
        def delete(self, record: ChunkKV) -> None:
            assert self.disk.delete(record.key) == self.host.delete(record.key)

        @rule()
        def restart(self) -> None:
            self.disk.close()
            self.open()

        @invariant()
        def same_records(self) -> None:
            assert set(self.disk.scan()) == set(self.host.scan())
            assert self.disk.usage().records == self.host.usage().records
            for record in made:
                assert self.disk.contains(record.key) == self.host.contains(record.key)

    return Twins


def test_disk_and_host_give_the_same_answers_to_any_run_of_verbs(records: ModuleType) -> None:
    run_state_machine_as_test(
        machine(records),
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )  # fmt: skip


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
