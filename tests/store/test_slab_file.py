"""Values by plain reads of LMDB's file: the same bytes as LMDB's own map gives, its slow twin."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lmdb
import pytest

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store import lmdb_env, slab_file
from chunkcache.store.disk import DiskTier
from chunkcache.store.layout import map_bytes_for
from chunkcache.store.lmdb_env import RecordEnv
from chunkcache.store.lmdb_pages import LongValue, long_value_of
from chunkcache.store.reader import read_record

OpenTier = Callable[..., DiskTier]
MIB = 1024 * 1024
TOKENS = 300  # slabs of 19,200 bytes: five pages
MAPPED = slab_file._mapped


@pytest.fixture
def no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the map for a layer fails."""

    def asked(*_: object) -> None:
        pytest.fail("a layer was read through the map")

    monkeypatch.setattr(slab_file, "_mapped", asked)


def both_ways(env: RecordEnv, digest: bytes) -> list[tuple[bytes, bytes]]:
    """Every layer of a record, in one transaction: by plain reads, and through the map."""
    with env.reading() as txn:
        header = env.header(txn, digest)
        plain = [bytes(slab) for slab in env.slabs(txn, header)]
        mapped = [bytes(MAPPED(txn, env._slabs, header, n)) for n in range(len(plain))]
    return list(zip(plain, mapped, strict=True))


def opening(monkeypatch: pytest.MonkeyPatch, **other: Any) -> None:
    """LMDB is opened with other options than ours."""
    real = lmdb.open
    monkeypatch.setattr(lmdb_env.lmdb, "open", lambda *a, **given: real(*a, **{**given, **other}))


@pytest.mark.parametrize("options", [{}, {"writemap": True}, {"readahead": True}], ids=str)
@pytest.mark.usefixtures("no_map")
def test_layers_are_those_of_the_map(
    options: dict[str, bool], monkeypatch: pytest.MonkeyPatch, open_tier: OpenTier,
    records: ModuleType,
) -> None:  # fmt: skip
    opening(monkeypatch, **options)
    tier = open_tier()
    made = [records.make_record(n, num_tokens=n + 60, num_priors=n) for n in range(8)]
    made += [records.make_record(9, TOKENS, records.ODD)]
    for record in made:
        tier.put(record)
        if record is made[3]:
            tier.delete(record.key)  # its pages are taken again
    for record in (r for r in made if r is not made[3]):
        for plain, mapped in both_ways(tier._env, record.key.digest):
            assert plain == mapped and len(plain) > 100
        found = tier.get(record.key)
        assert found is not None and records.contents(found) == records.contents(record)
        with tier.open(record.key) as reader:  # type: ignore[union-attr]
            assert records.contents(read_record(reader)) == records.contents(record)


@pytest.mark.usefixtures("no_map")
def test_values_beyond_the_map_that_was_opened_are_read(
    open_tier: OpenTier, records: ModuleType, tmp_path: Path, other_process: Any
) -> None:
    tier = open_tier(map_bytes=MIB)
    filled = {"first": 0, "last": 40, "num_tokens": TOKENS, "capacity_bytes": 64 * MIB}
    other_process.ask("fill", path=tmp_path / "kv", **filled)
    for number in range(40):
        record = records.make_record(number, num_tokens=TOKENS)
        found = tier.get(record.key)
        assert found is not None and records.contents(found) == records.contents(record)
    assert tier._env._env.info()["map_size"] > 2 * MIB


def test_the_two_ways_agree_while_another_process_writes(
    open_tier: OpenTier, records: ModuleType, tmp_path: Path, other_process: Any
) -> None:
    env, seen = RecordEnv(tmp_path / "kv", map_bytes_for(2 * MIB)), []

    def look() -> None:
        with env.reading() as txn:
            digests = [digest for digest, _ in env.entries(txn)]
        for digest in digests[-3:]:
            try:
                seen.extend(both_ways(env, digest))
            except CorruptRecord as error:
                assert "header is missing" in error.message, "it was deleted meanwhile"

    filled = {"first": 0, "last": 60, "num_tokens": TOKENS, "capacity_bytes": 2 * MIB}
    other_process.ask("fill", path=tmp_path / "kv", deletes=True, meanwhile=look, **filled)
    look()
    env.close()
    assert seen and all(plain == mapped for plain, mapped in seen)


@pytest.mark.usefixtures("no_map")
def test_a_record_deleted_under_a_transaction_is_read_as_it_was(
    open_tier: OpenTier, records: ModuleType
) -> None:
    tier, record = open_tier(2 * MIB), records.make_record(1, num_tokens=TOKENS)
    tier.put(record)

    def replace_all() -> None:
        tier.delete(record.key)
        for number in range(2, 60):  # more than the store holds
            tier.put(records.make_record(number, num_tokens=TOKENS))

    with tier._env.reading() as txn:
        header = tier._env.header(txn, record.key.digest)
        before = [bytes(slab) for slab in tier._env.slabs(txn, header)]
        writer = threading.Thread(target=replace_all)
        writer.start()
        writer.join()
        assert not tier.contains(record.key)
        assert [bytes(slab) for slab in tier._env.slabs(txn, header)] == before


@pytest.mark.parametrize("told", [
    lambda key: None,
    lambda key: long_value_of(key)._replace(page=0),  # type: ignore[union-attr]
    lambda key: LongValue(long_value_of(key).page + 1, long_value_of(key).length),  # type: ignore[union-attr]
], ids=["nothing", "another kind of page", "no page's beginning"])  # fmt: skip
def test_where_a_value_does_not_lie_as_its_node_says_the_map_is_asked(
    told: Callable[[memoryview], LongValue | None], monkeypatch: pytest.MonkeyPatch,
    open_tier: OpenTier, records: ModuleType,
) -> None:  # fmt: skip
    tier, record = open_tier(), records.make_record(1, num_tokens=TOKENS)
    tier.put(record)
    tier.put(records.make_record(2, num_tokens=TOKENS))
    monkeypatch.setattr(slab_file, "long_value_of", told)
    found = tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)


def test_a_file_that_ends_before_a_value_is_an_error_and_no_signal(
    monkeypatch: pytest.MonkeyPatch, open_tier: OpenTier, records: ModuleType
) -> None:
    tier, record = open_tier(), records.make_record(1, num_tokens=TOKENS)
    tier.put(record)
    real = os.preadv
    monkeypatch.setattr(slab_file, "_mapped", lambda *_: os.kill(os.getpid(), signal.SIGBUS))
    with tier._env.reading() as txn, monkeypatch.context() as patch:
        header = tier._env.header(txn, record.key.digest)
        patch.setattr(slab_file.os, "preadv", lambda *given: real(*given) - 1)
        with pytest.raises(StoreError, match="is truncated"):
            list(tier._env.slabs(txn, header))


def test_a_device_that_fails_is_an_error_and_the_record_stays(
    monkeypatch: pytest.MonkeyPatch, open_tier: OpenTier, records: ModuleType
) -> None:
    tier, record = open_tier(), records.make_record(1, num_tokens=TOKENS)
    tier.put(record)

    def fails(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(slab_file.os, "preadv", fails)
        with pytest.raises(StoreError, match="Input/output error"):
            tier.get(record.key)
    assert tier.get(record.key) is not None
