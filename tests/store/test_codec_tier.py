"""Codecs in the disk tier: who finds whose records, and how rounded ones are told apart."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from chunkcache.chunk import ChunkKV
from chunkcache.codec_spec import stored_under
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.metrics import Metrics
from chunkcache.store import check_store
from chunkcache.store.codec import codec_named
from chunkcache.store.disk import DiskTier
from chunkcache.store.host import HostTier
from chunkcache.store.layout import header_key, slab_key
from chunkcache.store.tiered import TieredStore

OpenTier = Callable[..., DiskTier]
CAPACITY = 64 * 1024 * 1024
INT4 = "int4(group=8)"


@pytest.fixture
def record(records: ModuleType) -> ChunkKV:
    made = records.make_record(1, num_tokens=20)
    draw = torch.Generator().manual_seed(1)
    return replace(made, kv=torch.randn(made.kv.shape, generator=draw).to(made.kv.dtype))


@pytest.fixture
def tier_of(open_tier: OpenTier) -> Callable[[str], DiskTier]:
    """Opens the same store again with another codec."""
    last: list[DiskTier] = []

    def opener(codec: str) -> DiskTier:
        for tier in last:
            tier.close()
        last[:] = [open_tier(codec=codec_named(codec))]
        return last[0]

    return opener


TierOf = Callable[[str], DiskTier]


@pytest.mark.parametrize("codec", [INT4, "int8", "gear", "mikv", f"zstd(over={INT4})"])
def test_a_rounded_record_says_so_and_by_what(tier_of: TierOf, record: ChunkKV, codec: str) -> None:
    tier = tier_of(codec)
    assert tier.put(record)
    found = tier.get(record.key)
    assert found is not None and found.rounded_by == codec_named(codec).name
    assert not torch.equal(found.kv, record.kv)
    torch.testing.assert_close(found.kv.float(), record.kv.float(), atol=0.5, rtol=0)
    assert found.stats.token_inter.tobytes() == record.stats.token_inter.tobytes()


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_lossless_record_is_as_it_was_computed(
    tier_of: TierOf, records: ModuleType, codec: str
) -> None:
    made = records.make_record(3, num_tokens=40)
    tier = tier_of(codec)
    tier.put(made)
    found = tier.get(made.key)
    assert found is not None and found.rounded_by is None
    assert records.contents(found) == records.contents(made)


def test_lossless_records_are_read_by_a_tier_of_any_codec(
    tier_of: TierOf, records: ModuleType, record: ChunkKV
) -> None:
    for before, after in (("raw", INT4), ("zstd", "raw"), ("zstd", INT4)):
        tier = tier_of(before)
        tier.delete(record.key)
        tier.put(record)
        tier = tier_of(after)
        assert tier.contains(record.key)
        found = tier.get(record.key)
        assert found is not None and records.contents(found) == records.contents(record)
        assert tier.put(record) and tier.usage().records == 1  # what is there is better


def test_another_lossy_codec_is_a_miss_and_neither_takes_the_others_place(
    tier_of: TierOf, record: ChunkKV
) -> None:
    codecs = [INT4, "int4(group=16)", "int8(group=8)"]
    for held, codec in enumerate(codecs):
        tier = tier_of(codec)
        assert tier.get(record.key) is None and not tier.contains(record.key)
        tier.put(record)
        assert tier.usage().records == held + 1
    for codec in codecs:
        found = tier_of(codec).get(record.key)
        assert found is not None and found.rounded_by == codec
    assert tier_of("raw").get(record.key) is None


def test_who_asks_for_lossless_never_gets_a_rounded_record_and_may_store_his_own(
    tier_of: TierOf, records: ModuleType, record: ChunkKV
) -> None:
    tier_of(INT4).put(record)
    assert tier_of("raw").put(record)
    tier = tier_of(INT4)  # finds both, and takes the better one
    found = tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)
    assert set(tier.scan()) == {record.key.digest, stored_under(record.key.digest, INT4)}
    assert tier.delete(record.key) and tier.usage().records == 0
    assert tier.get(record.key) is None and not tier.delete(record.key)


def test_what_one_codec_rounded_no_other_stores(tier_of: TierOf, record: ChunkKV) -> None:
    """It would pass for what another codec makes, or for what was computed."""
    tier = tier_of(INT4)
    tier.put(record)
    rounded = tier.get(record.key)
    tier.delete(record.key)
    assert rounded is not None
    for codec in ("raw", "zstd", "int8"):
        tier = tier_of(codec)
        assert not tier.put(rounded) and tier.usage().records == 0
    tier = tier_of(INT4)
    assert tier.put(rounded)
    again = tier.get(record.key)
    assert again is not None and again.rounded_by == INT4


def test_what_cannot_be_coded_is_dropped_whole(tier_of: TierOf, record: ChunkKV) -> None:
    kv = record.kv.clone()
    kv[-1, 1, 3, 0, 0] = torch.inf  # in the last layer
    tier = tier_of(INT4)
    with pytest.raises(StoreError, match="no number"):
        tier.put(replace(record, kv=kv))
    assert tier.usage().records == 0 and tier.get(record.key) is None
    assert tier_of("raw").put(replace(record, kv=kv))


def test_a_record_at_another_codecs_place_is_corrupt(tier_of: TierOf, record: ChunkKV) -> None:
    """Whole and sound, but not what the place promises."""
    tier = tier_of(INT4)
    tier.put(record)
    own, env = stored_under(record.key.digest, INT4), tier._env
    with env.reading() as txn:
        packed = env.entry(txn, own)
        values = [bytes(txn.get(slab_key(own, n), db=env._slabs)) for n in range(3)]
        header = bytes(txn.get(header_key(own), db=env._slabs))
    with env.writing() as txn:
        env.remove(txn, own)
        place = record.key.digest
        for layer, value in enumerate(values):
            txn.put(slab_key(place, layer), value, db=env._slabs)
        txn.put(header_key(place), header, db=env._slabs)
        txn.put(place, packed, db=env._meta)
    with pytest.raises(CorruptRecord, match="another record's"):
        tier.get(record.key)
    assert tier.usage().records == 0


def test_check_takes_records_for_stale_that_the_codec_in_use_does_not_read(
    tier_of: TierOf, records: ModuleType, record: ChunkKV, tmp_path: Path
) -> None:
    for codec in (INT4, "int8"):
        tier_of(codec).put(record)
    tier = tier_of("zstd")
    tier.put(records.make_record(2))
    tier.close()

    def stale(codec: str, **options: Any) -> int:
        report = check_store(tmp_path / "kv", CAPACITY, codecs=[codec], **options)
        assert report.clean
        return report.stale

    assert (stale("raw"), stale(INT4), stale("int8(group=64)")) == (2, 1, 1)
    assert stale(INT4, drop_stale=True) == 1 and stale("raw") == 1


class Far(DiskTier):
    name = "far"


def test_a_record_stays_rounded_on_its_way_through_the_tiers(
    open_tier: OpenTier, record: ChunkKV, metrics: Metrics, tmp_path: Path, records: ModuleType
) -> None:
    far = Far(tmp_path / "far", CAPACITY, codec_named(INT4), fingerprint=records.FINGERPRINT)
    far.put(record)
    near = open_tier()
    with closing(TieredStore([HostTier(CAPACITY), near, far], metrics)) as store:
        assert store.fetch(record.key).tier == "far"
        store.flush()
        assert not near.contains(record.key)  # raw, it would pass for what was computed
        again = store.fetch(record.key)
        assert again.tier == "host" and again.record.rounded_by == INT4
        opened = store.open(record.key)
        assert opened.reader.rounded_by == INT4


def test_there_is_room_for_what_records_take_once_coded(
    open_tier: OpenTier, record: ChunkKV, records: ModuleType
) -> None:
    long = records.make_record(1, 800)
    made = replace(long, kv=record.kv.repeat(1, 1, 40, 1, 1))
    size = made.size_bytes
    tight = 256 * 1024 + 3 * size // 4
    tier = open_tier(tight, codec=codec_named("int4(group=64)"))
    assert not tier.has_room(size)  # nothing was coded yet
    tier.put(made)
    assert tier.has_room(size) and not tier.has_room(3 * size)
