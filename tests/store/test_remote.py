"""A remote tier that lies is a miss; what is right comes back bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import structlog

from chunkcache.chunk import ChunkKV
from chunkcache.errors import ConfigError, CorruptRecord, StoreError
from chunkcache.metrics import Metrics
from chunkcache.store.codec import codec_named
from chunkcache.store.frame import frame_of
from chunkcache.store.remote.objects import ObjectBlobs
from chunkcache.store.remote.resp import RespBlobs
from chunkcache.store.remote.tier import RemoteTier
from chunkcache.store.tiered import TieredStore

RAW = codec_named("raw")
OpenRemote = Callable[..., RemoteTier]


@pytest.fixture(params=["shared", "object"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def blobs(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    made: Any
    if kind == "object":
        made = ObjectBlobs(f"file://{tmp_path}/objects", "1/raw")
    else:
        server = request.getfixturevalue("valkey")
        made = RespBlobs(server.url, f"chunkcache:{tmp_path.name}:", timeout_s=20.0)
    yield made
    made.close()


@pytest.fixture
def tier(kind: str, blobs: Any, records: ModuleType) -> RemoteTier:
    return RemoteTier(kind, blobs, RAW, fingerprint=records.FINGERPRINT, timeout_s=20.0)


def stored(record: ChunkKV, fingerprint: bytes) -> bytes:
    frame = frame_of(record, RAW, fingerprint)
    return b"".join([frame.header, *frame.slabs])


# ---------------------------------------------------------------- lying


def damaged(whole: bytes, other: bytes) -> dict[str, bytes]:
    """What a tier may give in place of `whole`; `other` is another record's bytes."""
    middle = len(whole) - 7
    return {
        "a byte of a layer": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "a byte of the header": whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        "cut short in the layers": whole[:-1],
        "cut short in the header": whole[:100],
        "cut short in its first bytes": whole[:9],
        "longer by a byte": whole + b"\0",
        "layers of another record": whole[:-100] + other[-100:],
        "another record": other,
        "a format to come": whole[:8] + b"\2" + whole[9:],
        "a page of a proxy": b"<html>503 Service Unavailable</html>" * 9,
        "a length beyond all memory": whole[:10] + b"\xff\xff\xff\xff" + whole[14:],
    }


LIES = list(damaged(bytes(400), bytes(400)))


@pytest.mark.parametrize("lie", LIES)
def test_wrong_bytes_are_never_served_and_are_put_right(
    lie: str, tier: RemoteTier, blobs: Any, records: ModuleType, metrics: Metrics,
    counted: Callable[..., float],
) -> None:  # fmt: skip
    record, other = records.make_record(1, num_tokens=40, num_priors=2), records.make_record(2, 40)
    whole = stored(record, records.FINGERPRINT)
    blobs.write(record.key.hex, [damaged(whole, stored(other, records.FINGERPRINT))[lie]])
    store = TieredStore([tier], metrics)
    with structlog.testing.capture_logs() as logs:
        lookup = store.fetch(record.key)
    assert (lookup.record, lookup.miss) == (None, "corrupt")
    assert [line["event"] for line in logs] == ["record_corrupt"]
    assert counted("store_errors_total", tier=tier.name, kind="corrupt") == 1
    assert store.fetch(record.key).miss == "absent", "it has been dropped"
    assert store.offer(record, wait=True)
    found = store.fetch(record.key).record
    assert found is not None and records.contents(found) == records.contents(record)
    store.close()


def test_a_header_may_not_ask_for_more_memory_than_its_key_and_model_allow(
    kind: str, blobs: Any, records: ModuleType
) -> None:
    """Headers whose checksums hold: written by someone who knows how."""
    mine = records.make_record(1, num_tokens=8)
    asked: list[int] = []
    read = blobs.read

    class Watched:
        most_bytes = 1 << 20

        def read(self, name: str, start: int, stop: int) -> bytes | None:
            asked.append(stop - start)
            found: bytes | None = read(name, start, stop)
            return found

        write, remove, sizes, close = blobs.write, blobs.remove, blobs.sizes, blobs.close

    def lied(**changes: Any) -> bytes:
        from chunkcache.chunk import KVGeometry
        from chunkcache.store.record import encode_header

        shape = {"num_layers": 3, "num_kv_heads": 2, "head_dim": 8, **changes.pop("shape", {})}
        geometry = KVGeometry(dtype="bfloat16", rope="rope-test", **shape)
        liar = ChunkKV(mine.key, geometry, mine.kv, mine.stats)
        lengths = changes.pop("lengths", (64,) * 3)
        return encode_header(
            liar, fingerprint=records.FINGERPRINT, codec="raw",
            slab_lengths=lengths, slab_checksums=(b"c" * 16,) * 3,
        )  # fmt: skip

    ours = RemoteTier(
        kind, Watched(), RAW, fingerprint=records.FINGERPRINT, geometry=records.SMALL,
        timeout_s=20.0,
    )  # fmt: skip
    any_model = RemoteTier(kind, Watched(), RAW, fingerprint=records.FINGERPRINT, timeout_s=20.0)
    for tier, header in (
        (ours, lied(shape={"num_kv_heads": 4})),
        (ours, lied(lengths=(2**40, 1, 1))),
        (any_model, lied(shape={"num_kv_heads": 2**30, "head_dim": 2**20})),
        (any_model, lied(shape={"head_dim": 0})),
        (any_model, lied(lengths=(2**40, 1, 1))),
    ):
        blobs.write(mine.key.hex, [header, b"x" * 192])
        with pytest.raises(CorruptRecord, match=mine.key.hex):
            tier.get(mine.key)
    assert max(asked) <= 64 * 1024, "nothing beyond the header was asked for"


def test_a_name_that_holds_no_string_is_put_right(valkey: Any, records: ModuleType) -> None:
    blobs = RespBlobs(valkey.url, "chunkcache:list:", timeout_s=20.0)
    tier = RemoteTier("shared", blobs, RAW, fingerprint=records.FINGERPRINT, timeout_s=20.0)
    record = records.make_record(1)
    blobs._client.lpush("chunkcache:list:" + record.key.hex, "odd")
    for _ in range(2):
        assert not tier.contains(record.key)
        with pytest.raises(CorruptRecord, match="no string"):
            tier.get(record.key)
        assert tier.get(record.key) is None, "dropped"
        blobs._client.lpush("chunkcache:list:" + record.key.hex, "odd")
    assert list(tier.scan()) == [], "strings only"
    assert tier.put(record)
    assert tier.get(record.key) is not None
    tier.close()


def test_records_of_another_model_or_codec_are_not_found_and_not_harmed(
    kind: str, tier: RemoteTier, blobs: Any, records: ModuleType
) -> None:
    record = records.make_record(1)
    other = RemoteTier(kind, blobs, RAW, fingerprint=b"model-b", timeout_s=20.0)
    tier.put(record)
    assert other.get(record.key) is None and not other.contains(record.key)
    assert not other.delete(record.key)
    found = tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)


def test_what_a_lossy_codec_rounded_says_so_and_is_taken_by_no_other(
    kind: str, blobs: Any, records: ModuleType
) -> None:
    int8 = codec_named("int8")
    tier = RemoteTier(kind, blobs, int8, fingerprint=records.FINGERPRINT, timeout_s=20.0)
    made = records.make_record(1, num_tokens=70)
    numbers = ChunkKV(made.key, made.geometry, made.kv.float().nan_to_num(0, 1, 1).clamp(-9, 9).to(
        made.kv.dtype), made.stats)  # fmt: skip
    assert tier.put(numbers)
    found = tier.get(numbers.key)
    assert found is not None and found.rounded_by == int8.name
    assert float((found.kv.float() - numbers.kv.float()).abs().max()) < 0.2
    exact = RemoteTier(kind, blobs, RAW, fingerprint=records.FINGERPRINT, timeout_s=20.0)
    assert exact.get(numbers.key) is None, "of another codec"
    assert not exact.put(found) and tier.get(numbers.key) is not None


class Swapped:
    """Blobs under which a record is replaced, or removed, between header and layers."""

    most_bytes = 1 << 30

    def __init__(self, *then: bytes | None) -> None:
        self.then = list(then)

    def read(self, name: str, start: int, stop: int) -> bytes | None:
        now = self.then.pop(0) if len(self.then) > 1 else self.then[0]
        return now[start:stop] if now is not None else None

    def write(self, name: str, parts: Sequence[bytes]) -> None:
        raise AssertionError("nothing is written")

    remove = sizes = close = write


def test_a_record_replaced_or_removed_while_it_is_read_is_no_damage(records: ModuleType) -> None:
    record = records.make_record(1, num_tokens=6)
    again = ChunkKV(record.key, record.geometry, record.kv + 1, record.stats)
    old, new = (stored(r, records.FINGERPRINT) for r in (record, again))
    swapped = RemoteTier("far", Swapped(old, new), RAW, fingerprint=records.FINGERPRINT)
    found = swapped.get(record.key)
    assert found is not None and records.contents(found) == records.contents(again)
    back = RemoteTier("far", Swapped(old, new, old, old), RAW, fingerprint=records.FINGERPRINT)
    found = back.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)
    removed = RemoteTier("far", Swapped(old, None), RAW, fingerprint=records.FINGERPRINT)
    assert removed.get(record.key) is None


# ---------------------------------------------------------------- large, many, listed


def test_a_record_larger_than_the_first_read_comes_back_whole(
    tier: RemoteTier, records: ModuleType
) -> None:
    record = records.make_record(1, num_tokens=6000, num_priors=900)  # its header is 98 KB
    assert tier.put(record)
    assert tier.contains(record.key)
    found = tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)


def test_what_others_keep_in_the_same_place_is_not_counted(
    tier: RemoteTier, blobs: Any, records: ModuleType
) -> None:
    record = records.make_record(1)
    assert list(tier.scan()) == [] and tier.usage().records == 0, "before anything was written"
    tier.put(record)
    blobs.write("notes", [b"odd"])
    blobs.write("00ff", [b"odd"])
    usage = tier.usage()
    assert list(tier.scan()) == [record.key.digest]
    assert (usage.records, usage.size_bytes) == (1, len(stored(record, records.FINGERPRINT)))
    assert tier.has_room(10**6)


def test_a_write_that_fails_half_way_leaves_nothing(
    tmp_path: Path, records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = ObjectBlobs(f"file://{tmp_path}/objects", "1/raw")
    tier = RemoteTier("object", blobs, RAW, fingerprint=records.FINGERPRINT, timeout_s=20.0)
    record = records.make_record(1)

    def fail(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(StoreError, match="No space left"):
            tier.put(record)
    assert tier.get(record.key) is None and not tier.contains(record.key)
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []
    assert tier.put(record) and tier.contains(record.key)


# ---------------------------------------------------------------- addresses, packages


def test_a_missing_package_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"pip install 'chunkcache\[redis\]'"):
        RespBlobs("redis://localhost", "chunkcache:", timeout_s=1.0)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"s3://.*pip install 'chunkcache\[object-store\]'"):
        ObjectBlobs("s3://bucket/folder", "1/raw")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError, match=r"pip install 'chunkcache\[object-store\]'"):
        ObjectBlobs(f"file://{tmp_path}", "1/raw")


def test_an_address_that_fsspec_does_not_know_is_named() -> None:
    with pytest.raises(ConfigError, match=r"store\.object: got 'shelf://a'"):
        ObjectBlobs("shelf://a", "1/raw")


# ---------------------------------------------------------------- asked about many at a time


def test_many_are_looked_for_by_one_read_as_each_alone(
    kind: str, tier: RemoteTier, blobs: Any, records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [records.make_record(number) for number in range(3)]
    held.append(records.make_record(3, num_priors=400))  # a header longer than most
    for record in held:
        tier.put(record)
    damaged, stranger, foreign, odd, nowhere = (records.make_record(n) for n in range(10, 15))
    whole = stored(damaged, records.FINGERPRINT)
    blobs.write(damaged.key.hex, [whole[:30], b"\xff", whole[31:]])
    blobs.write(stranger.key.hex, [stored(records.make_record(99), records.FINGERPRINT)])
    blobs.write(foreign.key.hex, [stored(foreign, b"another model")])
    blobs.write(odd.key.hex, [b"<"])
    if kind == "shared":
        blobs.remove(odd.key.hex)
        blobs._client.lpush(blobs._prefix + odd.key.hex, "a list")
    keys = [one.key for one in (damaged, *held[:2], stranger, foreign, odd, nowhere, *held[2:])]
    alone = [tier.contains(key) for key in keys]
    reads: list[int] = []
    real = blobs.read_many
    monkeypatch.setattr(
        blobs, "read_many", lambda names, stop: reads.append(len(names)) or real(names, stop)
    )
    assert tier.contains_many(keys) == alone
    assert alone == [False, True, True, False, False, False, False, True, True]
    assert reads == [len(keys)]
    assert tier.contains_many(keys[-1:] * 70) == [True] * 70 and reads[1:] == [64, 6]
    assert tier.contains_many([]) == []


def test_a_tier_that_fails_has_none_of_many(
    tier: RemoteTier, blobs: Any, records: ModuleType, monkeypatch: pytest.MonkeyPatch,
    metrics: Metrics, counted: Callable[..., float],
) -> None:  # fmt: skip
    def fails(names: Sequence[str], stop: int) -> list[bytes | None]:
        raise OSError("gone")

    record, store = records.make_record(1), TieredStore([tier], metrics)
    tier.put(record)
    assert store.spread([record.key]) == [True]
    monkeypatch.setattr(blobs, "read_many", fails)
    assert store.spread([record.key] * 3) == [False] * 3
    assert counted("store_errors_total", tier=tier.name, kind="read") == 1
