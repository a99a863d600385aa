"""One record becomes another under whoever reads it, or stays: readers, failures, kills."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from chunkcache.chunk import ChunkKV, Retention, Terms
from chunkcache.codec_spec import stored_under
from chunkcache.errors import StoreError
from chunkcache.store import check_store
from chunkcache.store.codec import codec_named, read_through
from chunkcache.store.disk import DiskTier
from chunkcache.store.reader import read_record

INT4 = "int4(group=32)"
CODEC = codec_named(INT4)
CAPACITY = 64 * 1024 * 1024


@pytest.fixture
def record(records: ModuleType) -> ChunkKV:
    made: ChunkKV = records.make_finite(1)
    return made


@pytest.fixture
def tier(open_tier: Callable[..., DiskTier], record: ChunkKV) -> DiskTier:
    """Holds the record, as it was computed."""
    opened = open_tier(cold=CODEC)
    opened.put(record)
    return opened


def rounded_by(tier: DiskTier, record: ChunkKV) -> str | None:
    found = tier.get(record.key)
    assert found is not None
    return found.rounded_by


def test_what_is_being_read_stays_until_it_is_given_back(
    tier: DiskTier, record: ChunkKV, records: ModuleType
) -> None:
    with tier.open(record.key) as reader:
        assert tier.recode(record.key.digest, CODEC) is None
        assert records.contents(read_record(reader)) == records.contents(record)
    assert tier.recode(record.key.digest, CODEC) > 0
    assert not tier._mirror._leases and rounded_by(tier, record) == INT4
    assert tier.recode(record.key.digest, CODEC) is None, "it has left that place"


def test_who_opens_it_meanwhile_waits_for_the_commit_and_gets_the_other(
    tier: DiskTier, record: ChunkKV, monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:  # fmt: skip
    put, found = tier._env.put, []

    def look() -> None:
        with tier.open(record.key) as reader:
            found.append(reader.rounded_by)

    reading = threading.Thread(target=look)

    def put_slowly(*arguments: Any) -> None:
        reading.start()
        eventually(lambda: bool(tier._mirror._settled._waiters))
        put(*arguments)

    monkeypatch.setattr(tier._env, "put", put_slowly)
    assert tier.recode(record.key.digest, CODEC) > 0
    reading.join()
    assert found == [INT4]


@pytest.mark.parametrize("layer", [1, 2])  # of three: while it is read, and after
def test_what_changed_meanwhile_is_not_written_over(
    tier: DiskTier, record: ChunkKV, layer: int
) -> None:
    class Meddling:
        name = CODEC.name

        decode_layer = CODEC.decode_layer

        def encode_layer(self, number: int, *arguments: Any) -> bytes:
            if number == layer:
                tier.delete(record.key)
                tier.put(replace(record, terms=Terms("another")))
            return CODEC.encode_layer(number, *arguments)

    with pytest.raises(StoreError, match="gone") if layer == 1 else nullcontext():
        assert tier.recode(record.key.digest, Meddling()) is None
    ((_, entry),) = tier.entries()
    assert (entry.codec, entry.terms.tenant) == ("raw", "another")


def test_nothing_is_rounded_twice_and_nothing_pinned_at_all(
    open_tier: Callable[..., DiskTier], records: ModuleType
) -> None:
    int8 = codec_named("int8")
    tier = open_tier(codec=int8, cold=CODEC)
    rounded = records.make_finite(2)
    pinned = replace(records.make_finite(3), terms=Terms(retention=Retention.PINNED))
    tier.put(rounded)
    assert tier.recode(stored_under(rounded.key.digest, int8.name), CODEC) == 0
    assert rounded_by(tier, rounded) == int8.name
    tier.close()
    tier = open_tier(cold=CODEC)
    tier.put(pinned)
    assert tier.recode(pinned.key.digest, CODEC) == 0 and rounded_by(tier, pinned) is None


class FailingCodec:
    """Breaks off at one layer."""

    name = INT4

    def __init__(self, at: int) -> None:
        self.at = at
        self.decode_layer = codec_named(INT4).decode_layer

    def encode_layer(self, layer: int, *arguments: Any) -> bytes:
        if layer == self.at:
            raise StoreError("codec: made to fail")
        return codec_named(INT4).encode_layer(layer, *arguments)


@pytest.mark.parametrize("layer", range(3))
def test_a_failure_while_encoding_leaves_the_record(
    tier: DiskTier, record: ChunkKV, records: ModuleType, layer: int
) -> None:
    with pytest.raises(StoreError, match="made to fail"):
        tier.recode(record.key.digest, FailingCodec(layer))
    found = tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)
    assert not tier._mirror._leases


class FailingTransaction:
    """Fails at one of the values it is to put."""

    def __init__(self, txn: Any, at: int) -> None:
        self.txn, self.left = txn, at

    def put(self, *arguments: Any, **options: Any) -> Any:
        if not self.left:
            raise StoreError("store: disk full, made up")
        self.left -= 1
        return self.txn.put(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.txn, name)


@pytest.mark.parametrize("value", range(5))  # three layers, the header, the entry
@pytest.mark.parametrize("is_cold", [False, True])
def test_a_failure_while_writing_leaves_the_record(
    tier: DiskTier, record: ChunkKV, records: ModuleType, value: int, is_cold: bool,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    put = tier._env.put
    if is_cold:
        tier.recode(record.key.digest, CODEC)
    with monkeypatch.context() as failing, pytest.raises(StoreError, match="made up"):
        failing.setattr(
            tier._env, "put", lambda txn, *rest: put(FailingTransaction(txn, value), *rest)
        )
        if is_cold:
            tier.put(record)
        else:
            tier.recode(record.key.digest, CODEC)
    expected = read_through(CODEC, record) if is_cold else record
    found = tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(expected)
    assert not tier._mirror._changing and tier.usage().records == 1
    if is_cold:
        assert tier.put(record) and rounded_by(tier, record) is None, "another time it can be"
    tier.close()
    report = check_store(tmp_path / "kv", CAPACITY)
    assert report.clean and report.records == 1


FAR_S = 4e9
KEPT = Terms("t", 3, Retention.PINNED, FAR_S)


@pytest.mark.parametrize(
    ("former", "later", "expected"),
    [
        (KEPT, Terms("t"), KEPT),
        (Terms("t", 3), Terms("t"), Terms("t", 3)),
        (Terms("t", 3), Terms("t", retention=Retention.WARMED), Terms("t", 0, Retention.WARMED)),
        (Terms("t", 3, Retention.PINNED, 5.0), Terms("t"), Terms("t")),  # it has expired
    ],
)
def test_an_exact_record_takes_the_place_and_the_terms_of_its_rounded_copy(
    tier: DiskTier, record: ChunkKV, records: ModuleType, former: Terms, later: Terms,
    expected: Terms, tmp_path: Path,
) -> None:  # fmt: skip
    size_bytes = tier.usage().size_bytes
    tier.recode(record.key.digest, CODEC)
    tier.retain(record.key, former, exactly=True)
    assert tier.put(replace(record, terms=later))
    ((digest, entry),) = tier.entries()
    assert (digest, entry.codec, entry.terms) == (record.key.digest, "raw", expected)
    assert tier.usage().size_bytes == tier._mirror.held_bytes() == size_bytes
    found = tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)
    tier.close()
    assert check_store(tmp_path / "kv", CAPACITY).clean


def test_terms_go_over_even_if_the_rounded_copy_leaves_to_make_room(
    open_tier: Callable[..., DiskTier], record: ChunkKV, tmp_path: Path
) -> None:
    trial = open_tier(path=tmp_path / "trial")
    trial.put(record)
    tier = open_tier(trial.usage().size_bytes, cold=CODEC)
    tier.put(record)
    tier.recode(record.key.digest, CODEC)
    tier.retain(record.key, Terms("t", 3), exactly=True)
    assert tier.put(record)
    ((_, entry),) = tier.entries()
    assert (entry.codec, entry.terms) == ("raw", Terms("t", 3))


def test_a_rounded_copy_that_is_being_read_can_be_read_to_its_end_and_leaves_first(
    tier: DiskTier, record: ChunkKV, records: ModuleType
) -> None:
    rounded = records.contents(read_through(CODEC, record))
    tier.recode(record.key.digest, CODEC)
    tier.retain(record.key, KEPT, exactly=True)
    with tier.open(record.key) as reader:
        assert tier.put(record) and rounded_by(tier, record) is None
        assert tier.recode(record.key.digest, CODEC) == 0, "it is pinned now"
        tier.retain(record.key, Terms(), exactly=True)
        assert tier.recode(record.key.digest, CODEC) is None, "one reads what it would replace"
        assert records.contents(read_record(reader)) == rounded
    assert not tier._mirror._changing and tier.usage().records == 2
    terms = {entry.codec: entry.terms for _, entry in tier.entries()}
    assert terms == {"raw": Terms(), INT4: Terms("t", 0, Retention.PASSING, 0.0)}
    assert tier._mirror.victims(1, 1) == [stored_under(record.key.digest, INT4)]
    tier._mirror.stay()
    assert tier.recode(record.key.digest, CODEC) > 0 and tier.usage().records == 1
    assert tier._mirror.held_bytes() == tier.usage().size_bytes


def test_a_record_that_is_put_on_other_terms_can_be_read_on(
    tier: DiskTier, record: ChunkKV, records: ModuleType
) -> None:
    with tier.open(record.key) as reader:
        tier.retain(record.key, KEPT, exactly=True)
        assert records.contents(read_record(reader)) == records.contents(record)


def test_who_looks_while_the_exact_one_comes_finds_one_of_them(
    tier: DiskTier, record: ChunkKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier.recode(record.key.digest, CODEC)
    lease, places = tier._mirror.lease, list[bytes]()

    def lease_late(digest: bytes) -> bool:
        places.append(digest)
        if len(places) == 2:
            tier.put(record)
        return lease(digest)

    monkeypatch.setattr(tier._mirror, "lease", lease_late)
    with tier.open(record.key) as reader:
        assert reader.rounded_by is None
    rounded = stored_under(record.key.digest, INT4)
    assert places == [record.key.digest, rounded, record.key.digest]
    assert not tier._mirror._leases


def test_a_kill_at_any_moment_leaves_one_of_them_whole(
    other_process: Any, open_tier: Callable[..., DiskTier], records: ModuleType, tmp_path: Path
) -> None:
    draw, codec, path = random.Random(3), codec_named(INT4), tmp_path / "kv"
    numbers = range(6)
    kinds: set[str | None] = set()
    for words in (2, 4, 8, 10):  # while records are coded anew; while they are put back
        answer = other_process.ask(
            "kill after", words=words, seconds=draw.uniform(0, 0.004), order={
                "do": "recode", "path": path, "capacity_bytes": CAPACITY, "codec": INT4,
                "numbers": list(numbers),
            },
        )  # fmt: skip
        assert answer["killed"], "it ended before it was killed"
        report = check_store(path, CAPACITY, fingerprint=records.FINGERPRINT, codecs=[INT4])
        assert report.clean and report.stale == 0
        tier = open_tier(cold=codec)
        assert tier.usage().records == len(numbers), "one of two, never both"
        for number in numbers:
            record = records.make_finite(number)
            found = tier.get(record.key)
            expected = record if found.rounded_by is None else read_through(codec, record)
            assert records.contents(found) == records.contents(expected)
            kinds.add(found.rounded_by)
            tier.delete(record.key)
        assert tier.usage().records == 0
        tier.close()
    assert kinds == {None, INT4}
