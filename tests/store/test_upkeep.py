"""Inventory, removal and backup of a store that others use meanwhile; archives and their damage."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from chunkcache.chunk import Retention, Terms
from chunkcache.errors import CorruptRecord, InvalidRequest, StoreError
from chunkcache.home import STORE_FILE
from chunkcache.store.archive import ArchiveReader, ArchiveWriter, Preamble
from chunkcache.store.check import check_store
from chunkcache.store.disk import DiskTier
from chunkcache.store.layout import MetaEntry, padded
from chunkcache.store.record import checksum, decode_header, encode_header, under_digest
from chunkcache.store.upkeep import back_up, remove_stored, take_inventory, why_useless

CAPACITY = 64 * 1024 * 1024
OpenTier = Callable[..., DiskTier]


@pytest.fixture
def path(tmp_path: Path, open_tier: OpenTier, records: ModuleType) -> Path:
    """A closed store with four records."""
    tier = open_tier()
    for number in range(4):
        tier.put(records.make_record(number))
    tier.close()
    return tmp_path / "kv"


def test_an_inventory_counts_what_is_there(path: Path, tmp_path: Path) -> None:
    inventory = take_inventory(path, CAPACITY)
    assert inventory.size_bytes == sum(one.entry.size_bytes for one in inventory.stored)
    ((kind, (count, size_bytes)),) = inventory.by_model().items()
    assert (kind, count, size_bytes) == ((b"model-a".hex()[:12], "raw"), 4, inventory.size_bytes)
    assert inventory.by_tenant() == {"": (4, inventory.size_bytes)}
    assert take_inventory(tmp_path / "none", CAPACITY).stored == []
    assert not (tmp_path / "none").exists()


def test_what_was_put_anew_since_is_not_removed(
    path: Path, open_tier: OpenTier, records: ModuleType
) -> None:
    found = take_inventory(path, CAPACITY).stored
    again = next(records.make_record(n) for n in range(4)
                 if records.make_record(n).key.digest == found[0].digest)  # fmt: skip
    tier = open_tier()
    tier.delete(again.key)
    tier.put(again)
    tier.close()
    assert remove_stored(path, CAPACITY, found) == 3
    assert [one.digest for one in take_inventory(path, CAPACITY).stored] == [found[0].digest]


@pytest.mark.parametrize(
    ("fingerprint", "codec", "expires_s", "reason"),
    [
        (b"f", "raw", math.inf, None),
        (b"f", "zstd(over=raw)", math.inf, None),
        (b"g", "raw", math.inf, "other model"),
        (b"f", "int8", math.inf, "other codec"),
        (b"f", "int4", math.inf, None),
        (b"f", "raw", 99.0, "expired"),
        (b"f", "raw", 101.0, None),
    ],
)
def test_why_a_record_is_useless(
    fingerprint: bytes, codec: str, expires_s: float, reason: str | None
) -> None:
    entry = MetaEntry(1, 1, 0, fingerprint, codec, Terms(expires_s=expires_s))
    assert why_useless(entry, fingerprint=b"f", codecs=["int4"], now_s=100.0) == reason


# ---------------------------------------------------------------- backup


def test_a_backup_of_a_store_in_use_opens_and_checks(
    path: Path, tmp_path: Path, other_process: Any, records: ModuleType, open_tier: OpenTier
) -> None:
    copy = tmp_path / "saved" / "kv"
    tier = open_tier(path=tmp_path / "live")
    for number in range(6):
        tier.put(records.make_record(number))
    tier.delete(records.make_record(0).key)
    turns = count()

    def write() -> None:
        again, number = divmod(next(turns), 30)
        record = records.make_record(10 + number)
        _ = tier.delete(record.key) if again % 2 else tier.put(record)

    answer = other_process.ask(
        "copy", path=tmp_path / "live", folder=copy, capacity_bytes=CAPACITY,
        meanwhile=write,
    )  # fmt: skip
    (report,) = answer["told"]
    assert report["records"] == report["ok"] >= 5
    assert report["corrupt"] == 0
    sizes = [(folder / STORE_FILE).stat().st_size for folder in (copy, tmp_path / "live")]
    assert sizes[0] < sizes[1], "free pages are left out"
    copied = open_tier(path=copy)
    for number in range(1, 6):
        found = copied.get(records.make_record(number).key)
        assert found is not None
        assert records.contents(found) == records.contents(records.make_record(number))
    assert copied.get(records.make_record(0).key) is None
    assert copied.put(records.make_record(0)), "the copy is a store like any other"
    assert not list(copy.parent.glob("*.partial-*"))


def test_a_copy_has_its_name_once_all_of_it_outlives_a_power_failure(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []  # and whether the copy had its name by then
    true, copy = os.fsync, tmp_path / "copy"

    def fsync(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), copy.exists()))
        true(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    back_up(path, CAPACITY, copy)
    partial = f"{copy}.partial-{os.getpid()}"
    assert synced == [(f"{partial}/data.mdb", False), (partial, False), (str(tmp_path), True)]


def test_a_backup_never_writes_over_anything(path: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InvalidRequest, match="a new folder"):
        back_up(path, CAPACITY, tmp_path / "there")
    with pytest.raises(StoreError, match="there is none"):
        back_up(tmp_path / "none", CAPACITY, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_damaged_store_is_not_backed_up_and_stays(path: Path, tmp_path: Path) -> None:
    file = path / STORE_FILE
    file.write_bytes(file.read_bytes()[:8192])
    with pytest.raises(StoreError, match=r"damaged.*check --fix"):
        back_up(path, CAPACITY, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert file.stat().st_size == 8192


def test_a_damaged_record_is_named_in_its_copy(
    path: Path, tmp_path: Path, records: ModuleType
) -> None:
    file = path / STORE_FILE
    content = bytearray(file.read_bytes())
    needle = records.make_record(1).kv[0].view(dtype=records.torch.uint8).numpy().tobytes()
    content[content.index(needle)] ^= 1
    file.write_bytes(content)
    report = back_up(path, CAPACITY, tmp_path / "copy")
    assert (report.ok, report.corrupt) == (3, 1)
    assert check_store(tmp_path / "copy", CAPACITY, fix=True).removed == 1


# ---------------------------------------------------------------- archives


def archive(records: ModuleType, numbers: range, *, terms: Terms = Terms()) -> bytes:  # noqa: B008
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, Preamble("ab", "cd", "a model"))
    for number in numbers:
        record = records.make_record(number)
        slabs = [padded(layer.contiguous().view(records.torch.uint8).numpy().tobytes())
                 for layer in record.kv]  # fmt: skip
        encoded = encode_header(
            record, fingerprint=b"f", codec="raw",
            slab_lengths=[layer.nbytes for layer in record.kv],
            slab_checksums=[checksum(slab) for slab in slabs],
        )  # fmt: skip
        writer.add(encoded, terms, slabs)
    writer.end()
    return stream.getvalue()


def read(packed: bytes) -> list[Any]:
    return list(ArchiveReader(io.BytesIO(packed)).records(CAPACITY))


def test_an_archive_gives_back_what_was_put_in(records: ModuleType) -> None:
    terms = Terms("left out", -3, Retention.WARMED, 2.5e9)
    packed = archive(records, range(3), terms=terms)
    assert ArchiveReader(io.BytesIO(packed)).preamble == Preamble("ab", "cd", "a model")
    found = read(packed)
    assert [one.header.digest for one in found] == [
        records.make_record(n).key.digest for n in range(3)
    ]
    assert all(one.terms == Terms("", -3, Retention.WARMED, 2.5e9) for one in found)
    assert all(one.slabs is not None for one in found)
    assert read(archive(records, range(0))) == []


def test_an_archive_that_is_cut_anywhere_is_refused_after_its_whole_records(
    records: ModuleType,
) -> None:
    packed = archive(records, range(2))
    one = len(archive(records, range(1)))
    for length in [*range(0, 200, 7), *range(200, len(packed), 997), len(packed) - 1]:
        given = []
        with pytest.raises(StoreError, match=r"ends|no archive"):
            for record in ArchiveReader(io.BytesIO(packed[:length])).records(CAPACITY):
                given.append(record)
        assert len(given) <= (length >= one - 25) + (length >= len(packed) - 25)


def test_no_flipped_byte_passes(records: ModuleType) -> None:
    packed = archive(records, range(1))
    sound = read(packed)[0]
    for at in [*range(300), *range(300, len(packed), 499), len(packed) - 1]:
        changed = bytearray(packed)
        changed[at] ^= 0x40
        try:
            found = read(bytes(changed))
        except StoreError:
            continue
        assert [one.slabs for one in found] == [None], at
        assert found[0].encoded == sound.encoded


def test_a_record_larger_than_the_store_is_refused_unread(records: ModuleType) -> None:
    with pytest.raises(StoreError, match="the store holds 100"):
        list(ArchiveReader(io.BytesIO(archive(records, range(1)))).records(100))


def test_a_header_moves_under_another_digest(records: ModuleType) -> None:
    (one,) = read(archive(records, range(1)))
    moved = decode_header(under_digest(one.encoded, b"\x07" * 32))
    assert moved.digest == b"\x07" * 32
    assert moved.packed_token_ids == one.header.packed_token_ids
    assert moved.slab_checksums == one.header.slab_checksums
    with pytest.raises(CorruptRecord):
        under_digest(one.encoded[:-1], b"\x07" * 32)


def test_a_record_that_was_cut_out_is_missed(records: ModuleType) -> None:
    both, first = archive(records, range(2)), archive(records, range(1))
    empty = len(archive(records, range(0)))
    without_first = both[: empty - 25] + both[len(first) - 25 :]
    with pytest.raises(StoreError, match="records are missing"):
        read(without_first)
