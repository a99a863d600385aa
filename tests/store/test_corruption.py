"""Never a wrong byte: damage anywhere is found, the record dropped, the request told `corrupt`."""

from __future__ import annotations

import os
import random
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.check import check_store
from chunkcache.store.host import HostTier
from chunkcache.store.layout import MetaEntry, header_key, map_bytes_for, padded, slab_key
from chunkcache.store.lmdb_env import RecordEnv
from chunkcache.store.record import checksum, encode_header
from chunkcache.store.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from chunkcache.metrics import Metrics
    from chunkcache.store.disk import DiskTier

    OpenTier = Callable[..., DiskTier]

CAPACITY = 64 * 1024 * 1024
PARTS = ("meta", "header", "slab 0", "slab 1", "slab 2")


@pytest.fixture
def path(tmp_path: Path, open_tier: OpenTier, records: ModuleType) -> Path:
    """A closed store with three records."""
    tier = open_tier()
    for number in range(3):
        tier.put(records.make_record(number, num_tokens=40, num_priors=2))
    tier.close()
    return tmp_path / "kv"


def stored_values(path: Path, digest: bytes) -> dict[str, bytes]:
    """The five values of a record, by name."""
    env = RecordEnv(path, map_bytes_for(CAPACITY))
    with env.reading() as txn:
        keys = {
            "header": header_key(digest),
            **{f"slab {n}": slab_key(digest, n) for n in range(3)},
        }
        values = {part: bytes(txn.get(key, db=env._slabs)) for part, key in keys.items()}
        values["meta"] = env.entry(txn, digest) or b""
    env.close()
    return values


def places(path: Path, value: bytes) -> list[int]:
    """Offsets of a value in the file; there may be older copies of a small one."""
    data, found, at = (path / "data.mdb").read_bytes(), [], -1
    while (at := data.find(value, at + 1)) >= 0:
        found.append(at)
    assert found
    return found


def flip(path: Path, offsets: list[int], mask: int) -> None:
    with open(path / "data.mdb", "r+b", buffering=0) as file:
        for offset in offsets:
            old = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes([old[0] ^ mask]), offset)


def spots(length: int) -> Iterator[tuple[int, int]]:
    """Some positions in a value and the bits to flip there: both ends, and drawn ones between."""
    draw = random.Random(length)
    for at in (0, 1, length - 1, *(draw.randrange(length) for _ in range(5))):
        yield at, draw.choice((0x01, 0x10, 0x80, 0xFF))


@pytest.mark.parametrize("part", PARTS)
def test_a_flipped_byte_in_the_file_is_a_corrupt_record_that_is_dropped(
    part: str, path: Path, open_tier: OpenTier, records: ModuleType
) -> None:
    record = records.make_record(1, num_tokens=40, num_priors=2)
    value = stored_values(path, record.key.digest)[part]
    pristine = (path / "data.mdb").read_bytes()
    for at, mask in spots(len(value)):
        (path / "data.mdb").write_bytes(pristine)
        flip(path, [place + at for place in places(path, value)], mask)
        tier = open_tier()
        if part == "meta":
            assert not tier.contains(record.key), "damage to the entry is found on opening"
        else:
            with pytest.raises(CorruptRecord):
                tier.get(record.key)
        assert tier.get(record.key) is None
        for number in (0, 2):
            other = records.make_record(number, num_tokens=40, num_priors=2)
            found = tier.get(other.key)
            assert found is not None and records.contents(found) == records.contents(other)
        assert tier.put(record)
        found = tier.get(record.key)
        assert found is not None and records.contents(found) == records.contents(record)
        tier.close()
        assert check_store(path, CAPACITY, fingerprint=records.FINGERPRINT).clean


@pytest.mark.parametrize("part", PARTS)
def test_a_byte_flipped_under_an_open_store_is_a_corrupt_miss(
    part: str, path: Path, open_tier: OpenTier, records: ModuleType, metrics: Metrics,
    counted: Callable[..., float],
) -> None:  # fmt: skip
    record = records.make_record(1, num_tokens=40, num_priors=2)
    value = stored_values(path, record.key.digest)[part]
    store = TieredStore([HostTier(0), open_tier()], metrics)
    assert store.fetch(record.key).tier == "disk"
    flip(path, [place + 3 for place in places(path, value)], 0x20)
    lookup = store.fetch(record.key)
    assert (lookup.record, lookup.tier, lookup.miss) == (None, None, "corrupt")
    assert store.fetch(record.key).miss == "absent", "it has been dropped"
    assert counted("store_errors_total", tier="disk", kind="corrupt") == 1
    assert counted("chunk_misses_total", reason="corrupt") == 1
    assert store.offer(record, wait=True)
    assert store.fetch(record.key).tier == "disk"
    store.close()


def test_every_byte_of_every_value_is_covered_by_a_checksum(
    path: Path, records: ModuleType
) -> None:
    """All of them, padding included, in the mapped file."""
    digest = records.make_record(1, num_tokens=40, num_priors=2).key.digest
    values = stored_values(path, digest)
    env = RecordEnv(path, map_bytes_for(CAPACITY))

    def verify() -> None:
        with env.reading() as txn:
            MetaEntry.unpack(env.entry(txn, digest) or b"")
            header = env.header(txn, digest)
            assert len(list(env.slabs(txn, header))) == 3

    verify()
    for part, value in values.items():
        where = places(path, value)
        for at in range(0, len(value), 1 if part in ("meta", "header") else 13):
            flip(path, [place + at for place in where], 0x04)
            with pytest.raises(CorruptRecord):
                verify()
            flip(path, [place + at for place in where], 0x04)
    verify()
    env.close()


def move_value(path: Path, source: bytes, target: bytes) -> None:
    """Store under `target` what is under `source`, as a lost or misplaced write would."""
    env = RecordEnv(path, map_bytes_for(CAPACITY))
    with env.writing() as txn:
        txn.put(target, txn.get(source, db=env._slabs), db=env._slabs)
    env.close()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (("layer", 1, 0), ("layer", 1, 2)),  # another layer of the same record
        (("layer", 0, 1), ("layer", 1, 1)),  # the same layer of another record
        (("header", 0), ("header", 1)),
    ],
)
def test_a_swapped_value_is_a_corrupt_record(
    source: Any, target: Any, path: Path, open_tier: OpenTier, records: ModuleType
) -> None:
    def key(name: Any) -> bytes:
        digest = records.make_record(name[1], num_tokens=40, num_priors=2).key.digest
        return header_key(digest) if name[0] == "header" else slab_key(digest, name[2])

    move_value(path, key(source), key(target))
    tier = open_tier()
    with pytest.raises(CorruptRecord):
        tier.get(records.make_record(1, num_tokens=40, num_priors=2).key)
    assert tier.usage().records == 2
    assert tier.get(records.make_record(0, num_tokens=40, num_priors=2).key) is not None


def test_a_header_of_another_model_than_its_entry_is_a_corrupt_record(
    path: Path, open_tier: OpenTier, records: ModuleType
) -> None:
    record = records.make_record(1, num_tokens=40, num_priors=2)
    env = RecordEnv(path, map_bytes_for(CAPACITY))
    with env.writing() as txn:
        entry = MetaEntry.unpack(env.entry(txn, record.key.digest) or b"")
        other = replace(entry, fingerprint=b"model-b")
        txn.put(record.key.digest, other.pack(), db=env._meta)
    env.close()
    assert check_store(path, CAPACITY).corrupt == 1
    tier = open_tier(fingerprint=b"model-b")
    with pytest.raises(CorruptRecord, match="another model"):
        tier.get(record.key)
    assert tier.get(record.key) is None


@pytest.mark.parametrize("part", PARTS[1:])
def test_a_missing_value_is_a_corrupt_record(
    part: str, path: Path, open_tier: OpenTier, records: ModuleType
) -> None:
    record = records.make_record(1, num_tokens=40, num_priors=2)
    digest = record.key.digest
    env = RecordEnv(path, map_bytes_for(CAPACITY))
    with env.writing() as txn:
        key = header_key(digest) if part == "header" else slab_key(digest, int(part[-1]))
        assert txn.delete(key, db=env._slabs)
    env.close()
    tier = open_tier()
    with pytest.raises(CorruptRecord, match="missing"):
        tier.get(record.key)
    assert tier.get(record.key) is None and tier.usage().records == 2


def test_a_corrupt_record_can_be_deleted_or_put_anew(
    path: Path, open_tier: OpenTier, records: ModuleType
) -> None:
    first, second = (records.make_record(n, num_tokens=40, num_priors=2) for n in range(2))
    for record in (first, second):
        value = stored_values(path, record.key.digest)["header"]
        flip(path, [place + 9 for place in places(path, value)], 0x20)
    tier = open_tier()
    assert not tier.contains(first.key) and not tier.contains(second.key)
    assert tier.delete(first.key) and tier.get(first.key) is None
    assert tier.put(second)
    found = tier.get(second.key)
    assert found is not None and records.contents(found) == records.contents(second)


def test_writing_does_not_hide_a_truncation_by_growing_the_file(path: Path) -> None:
    env = RecordEnv(path, map_bytes_for(CAPACITY))
    os.truncate(path / "data.mdb", 8192)
    for _ in range(2):
        with pytest.raises(StoreError, match="is truncated"), env.writing(1000):
            pytest.fail("a transaction over missing pages")
    env.close()


def test_pages_taken_and_given_back_within_a_transaction_are_not_a_truncation(path: Path) -> None:
    """LMDB never writes such pages, though they count as the end of the file."""
    env = RecordEnv(path, map_bytes_for(CAPACITY))
    with env.writing(3_000_000) as txn:
        for number in range(3):
            txn.put(b"passing%d" % number, bytes(1_000_000), db=env._slabs)
        for number in range(3):
            txn.delete(b"passing%d" % number, db=env._slabs)
        txn.put(b"lasting", b"x", db=env._slabs)
    with env.reading() as txn:
        assert txn.get(b"lasting", db=env._slabs) == b"x"
    env.close()
    RecordEnv(path, map_bytes_for(CAPACITY)).close()


def used_length(path: Path) -> int:
    env = RecordEnv(path, map_bytes_for(CAPACITY))
    used = (env._env.info()["last_pgno"] + 1) * 4096
    env.close()
    return used


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_truncated_or_removed_under_an_open_store_is_a_miss_not_a_crash(
    gone: bool, path: Path, open_tier: OpenTier, records: ModuleType, metrics: Metrics,
    counted: Callable[..., float],
) -> None:  # fmt: skip
    used = used_length(path)
    store = TieredStore([HostTier(10**6), open_tier()], metrics)
    if gone:
        (path / "data.mdb").unlink()
    else:
        os.truncate(path / "data.mdb", used // 2)
    for number in range(3):
        record = records.make_record(number, num_tokens=40, num_priors=2)
        assert store.fetch(record.key).miss == "error"
        assert store.offer(record)  # the host copy stays
        store.flush()
        assert store.fetch(record.key).tier == "host"
    assert counted("store_errors_total", tier="disk", kind="read") >= 3
    assert counted("store_errors_total", tier="disk", kind="write") == 3
    store.close()


@pytest.mark.parametrize("knows_geometry", [True, False])
def test_a_header_that_lies_with_a_right_checksum_takes_no_memory_and_is_dropped(
    knows_geometry: bool, path: Path, open_tier: OpenTier, records: ModuleType
) -> None:
    record = records.make_record(1, num_tokens=40, num_priors=2)
    geometry, digest = record.geometry, record.key.digest
    lies: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
        ({}, (2**63, 1, 1)),
        ({}, (2**40, 1, 1)),
        ({"head_dim": 0}, (1280, 1280, 1280)),
    ]
    if knows_geometry:
        lies += [
            ({"num_kv_heads": 2**31, "head_dim": 2**31}, (1280, 1280, 1280)),
            ({"num_kv_heads": 1, "head_dim": 16}, (1280, 1280, 1280)),
            ({"dtype": "float16"}, (1280, 1280, 1280)),
        ]
    slabs = [stored_values(path, digest)[f"slab {n}"] for n in range(3)]
    for shape, lengths in lies:
        header = encode_header(
            replace(record, geometry=replace(geometry, **shape)),
            fingerprint=records.FINGERPRINT, codec="raw", slab_lengths=lengths,
            slab_checksums=[checksum(slab) for slab in slabs],
        )  # fmt: skip
        with closing(RecordEnv(path, map_bytes_for(CAPACITY))) as env, env.writing() as txn:
            entry = MetaEntry.unpack(env.entry(txn, digest) or b"")
            env.put(txn, digest, entry, padded(header), slabs)
        if lengths[0] > 1280:
            assert check_store(path, CAPACITY).corrupt == 1
        tier = open_tier(geometry=geometry if knows_geometry else None)
        assert not tier.contains(record.key)
        with pytest.raises(CorruptRecord):
            tier.open(record.key)
        assert tier.get(record.key) is None
        assert tier.put(record)
        found = tier.get(record.key)
        assert found is not None and records.contents(found) == records.contents(record)
        tier.close()
