"""`check_store`: both directions, what is wrong, what is stale, and what is removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.errors import InvalidRequest, StoreError
from chunkcache.store.check import CheckReport, check_store
from chunkcache.store.layout import MetaEntry, header_key, map_bytes_for, padded, slab_key
from chunkcache.store.lmdb_env import RecordEnv

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from chunkcache.store.disk import DiskTier

    OpenTier = Callable[..., DiskTier]

CAPACITY = 64 * 1024 * 1024


@pytest.fixture
def path(tmp_path: Path, open_tier: OpenTier, records: ModuleType) -> Path:
    """A closed store with four records."""
    tier = open_tier()
    for number in range(4):
        tier.put(records.make_record(number))
    tier.close()
    return tmp_path / "kv"


def digest(records: ModuleType, number: int) -> bytes:
    found: bytes = records.make_record(number).key.digest
    return found


def change(path: Path, edit: Callable[[RecordEnv, Any], object]) -> None:
    env = RecordEnv(path, map_bytes_for(CAPACITY))
    with env.writing() as txn:
        edit(env, txn)
    env.close()


def test_a_sound_store_is_clean_and_its_bytes_are_counted(path: Path, records: ModuleType) -> None:
    report = check_store(path, CAPACITY, fingerprint=records.FINGERPRINT, codecs=["raw"])
    assert report == CheckReport(records=4, ok=4, models=1, size_bytes=4 * 4 * 4096)
    assert report.clean


def test_a_store_that_was_never_made_is_clean_and_is_not_made(tmp_path: Path) -> None:
    assert check_store(tmp_path / "none", CAPACITY, fix=True) == CheckReport()
    assert not (tmp_path / "none").exists()


def damage_entry(env: RecordEnv, txn: Any, digest: bytes) -> None:
    packed = txn.get(digest, db=env._meta)
    txn.put(digest, packed[:-1] + bytes([packed[-1] ^ 1]), db=env._meta)


def lie_about_size(env: RecordEnv, txn: Any, digest: bytes) -> None:
    entry = MetaEntry.unpack(txn.get(digest, db=env._meta))
    lie = MetaEntry(entry.size_bytes - 4096, *list(_fields(entry))[1:])
    txn.put(digest, lie.pack(), db=env._meta)


def _fields(entry: MetaEntry) -> list[Any]:
    return [
        entry.size_bytes, entry.num_tokens, entry.created_ns, entry.fingerprint, entry.codec,
    ]  # fmt: skip


DAMAGE: dict[str, Callable[[RecordEnv, Any, bytes], object]] = {
    "a damaged entry": damage_entry,
    "an entry with another size": lie_about_size,
    "a missing slab": lambda env, txn, d: txn.delete(slab_key(d, 1), db=env._slabs),
    "a damaged slab": lambda env, txn, d: txn.put(slab_key(d, 2), bytes(4080), db=env._slabs),
    "a short slab": lambda env, txn, d: txn.put(slab_key(d, 0), b"x", db=env._slabs),
    "a slab too many": lambda env, txn, d: txn.put(slab_key(d, 9), bytes(4080), db=env._slabs),
    "a missing header": lambda env, txn, d: txn.delete(header_key(d), db=env._slabs),
    "a damaged header": lambda env, txn, d: txn.put(header_key(d), padded(b"x"), db=env._slabs),
    "no values at all": lambda env, txn, d: [
        txn.delete(key, db=env._slabs)
        for key in (header_key(d), *(slab_key(d, layer) for layer in range(3)))
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_wrong_record_is_found_named_and_removed_and_the_others_stay(
    damage: str, path: Path, records: ModuleType, open_tier: OpenTier
) -> None:
    wrong = digest(records, 2)
    change(path, lambda env, txn: DAMAGE[damage](env, txn, wrong))
    report = check_store(path, CAPACITY)
    assert (report.records, report.ok, report.corrupt, report.orphans) == (4, 3, 1, 0)
    assert not report.clean and report.removed == 0
    assert [line[:12] for line in report.problems] == [wrong.hex()[:12]]
    fixed = check_store(path, CAPACITY, fix=True)
    assert fixed.corrupt == 1 and fixed.removed == 1 and fixed.size_bytes == 3 * 4 * 4096
    after = check_store(path, CAPACITY)
    assert after == CheckReport(records=3, ok=3, models=1, size_bytes=3 * 4 * 4096)
    tier = open_tier()
    assert set(tier.scan()) == {digest(records, n) for n in (0, 1, 3)}
    assert tier.put(records.make_record(2))


def test_slabs_without_an_entry_are_found_and_removed(path: Path, records: ModuleType) -> None:
    orphan = digest(records, 1)
    change(path, lambda env, txn: txn.delete(orphan, db=env._meta))
    change(path, lambda env, txn: txn.put(b"\xff" * 34, bytes(4080), db=env._slabs))
    report = check_store(path, CAPACITY, fix=True)
    assert (report.records, report.ok, report.corrupt, report.orphans) == (3, 3, 0, 2)
    assert {line[:12] for line in report.problems} == {orphan.hex()[:12], "f" * 12}
    assert report.removed == 2 and report.size_bytes == 3 * 4 * 4096
    assert check_store(path, CAPACITY).clean


def test_records_of_another_model_are_stale_not_wrong(path: Path) -> None:
    report = check_store(path, CAPACITY, fix=True, fingerprint=b"model-b")
    assert report.clean and report.ok == report.stale == 4 and report.removed == 0


def test_stale_records_are_removed_on_demand_and_current_ones_stay(
    path: Path, open_tier: OpenTier, records: ModuleType
) -> None:
    newer = open_tier(fingerprint=b"model-b")
    newer.put(records.make_record(7))
    newer.close()
    report = check_store(path, CAPACITY, fingerprint=b"model-b", drop_stale=True)
    assert (report.records, report.ok, report.stale, report.removed) == (5, 5, 4, 4)
    assert check_store(path, CAPACITY).records == 1
    assert open_tier(fingerprint=b"model-b").contains(records.make_record(7).key)


def test_without_fix_nothing_changes(path: Path, records: ModuleType) -> None:
    change(path, lambda env, txn: damage_entry(env, txn, digest(records, 0)))
    before = (path / "data.mdb").read_bytes()
    assert not check_store(path, CAPACITY, fingerprint=b"model-b").clean
    assert (path / "data.mdb").read_bytes() == before


def test_dropping_stale_records_needs_to_know_what_is_current(path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"drop_stale: got True.*Hint"):
        check_store(path, CAPACITY, drop_stale=True)


def test_a_store_this_process_has_open_is_refused_with_a_hint(
    path: Path, open_tier: OpenTier
) -> None:
    tier = open_tier()
    with pytest.raises(StoreError, match="already open"):
        check_store(path, CAPACITY)
    tier.close()
    assert check_store(path, CAPACITY).clean


def test_a_store_another_process_writes_can_be_checked(
    path: Path, other_process: Any, records: ModuleType
) -> None:
    reports: list[CheckReport] = []

    def check() -> None:
        reports.append(check_store(path, 1024 * 1024, fingerprint=records.FINGERPRINT, fix=True))

    other_process.ask(
        "fill", path=path, capacity_bytes=1024 * 1024, first=0, last=400, num_tokens=200,
        meanwhile=check,
    )  # fmt: skip
    assert len(reports) > 3
    assert all(report.clean and report.removed == 0 for report in reports)
