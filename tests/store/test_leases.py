"""Records in LMDB that are being read: never evicted under the reader, never other bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from chunkcache.chunk import Retention, Terms
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store.disk import DiskTier
from chunkcache.store.layout import slab_key
from chunkcache.store.lru import LruPolicy
from chunkcache.store.reader import read_record

KIB = 1024
RECORD_BYTES = 4 * 4096  # three slabs and a header, in file pages


def flip(tier: DiskTier, record: Any, layer: int) -> None:
    """Change one bit of a stored layer."""
    with tier._env.writing() as txn:
        key = slab_key(record.key.digest, layer)
        slab = bytearray(txn.get(key, db=tier._env._slabs))
        slab[5] ^= 0x10
        txn.put(key, bytes(slab), db=tier._env._slabs)


def test_what_is_read_is_no_victim(open_tier: Callable[..., DiskTier], records: ModuleType) -> None:
    tier = open_tier(6 * RECORD_BYTES, policy=LruPolicy())
    oldest, *others = [records.make_record(number) for number in range(12)]
    tier.put(oldest)
    with tier.open(oldest.key) as reader, tier.open(oldest.key):
        for other in others:
            tier.put(other)
        assert tier.contains(oldest.key) and not tier.contains(others[0].key)
        assert records.contents(read_record(reader)) == records.contents(oldest)
    assert not tier._mirror._leases
    for number in range(100, 130):
        tier.put(records.make_record(number))
    assert not tier.contains(oldest.key), "given back, it is a record like others"


def test_a_store_full_of_records_being_read_takes_no_more(
    open_tier: Callable[..., DiskTier], records: ModuleType
) -> None:
    tier = open_tier(2 * RECORD_BYTES)
    first, second, third = (records.make_record(number) for number in range(3))
    tier.put(first)
    tier.put(second)
    with tier.open(first.key), tier.open(second.key):
        assert not tier.put(third)
        assert tier.contains(first.key) and tier.contains(second.key)
    assert tier.put(third)


def test_a_record_deleted_under_its_reader_is_gone(
    open_tier: Callable[..., DiskTier], records: ModuleType
) -> None:
    tier, record = open_tier(), records.make_record(1)
    out = torch.empty_like(record.kv)
    tier.put(record)
    with tier.open(record.key) as reader:
        tier.delete(record.key)
        with pytest.raises(StoreError, match="gone"):
            reader.read_layers(0, 3, out)
        tier.put(record)
        with pytest.raises(StoreError, match="gone"):
            reader.read_layers(0, 3, out)
    assert tier.contains(record.key)


@pytest.mark.parametrize("layer", range(3))
def test_a_layer_whose_bits_have_changed_is_no_layer(
    open_tier: Callable[..., DiskTier], records: ModuleType, layer: int
) -> None:
    tier, record = open_tier(), records.make_record(1)
    tier.put(record)
    out = torch.empty_like(record.kv[:1])
    with tier.open(record.key) as reader:
        flip(tier, record, layer)
        for sound in range(layer):
            reader.read_layers(sound, sound + 1, out)
            assert torch.equal(out[0].view(torch.uint8), record.kv[sound].view(torch.uint8))
        with pytest.raises(CorruptRecord, match=f"layer {layer}"):
            reader.read_layers(layer, layer + 1, out)
    assert not tier.contains(record.key), "it was dropped"


@pytest.mark.parametrize("opened_by", ["open", "get"])
def test_a_damaged_record_on_other_terms_by_now_is_dropped_all_the_same(
    open_tier: Callable[..., DiskTier], records: ModuleType, opened_by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Else the next one who reads it would find, and count, the same damage again."""
    tier, record = open_tier(), records.make_record(1)
    tier.put(record)
    flip(tier, record, 1)
    true = tier._writer.remove_same

    def kept_meanwhile(*seen: Any) -> None:
        tier.retain(record.key, Terms(retention=Retention.WARMED))
        true(*seen)

    monkeypatch.setattr(tier._writer, "remove_same", kept_meanwhile)
    with pytest.raises(CorruptRecord):
        if opened_by == "get":
            tier.get(record.key)
        with tier.open(record.key) as reader:
            reader.read_layers(0, 3, torch.empty_like(record.kv))
    assert list(tier.scan()) == []
    monkeypatch.setattr(tier._writer, "remove_same", true)
    tier.put(record)
    tier._writer.remove_same(record.key.digest, b"of another record")
    assert tier.contains(record.key)


def test_a_tier_that_was_closed_is_read_no_more(
    open_tier: Callable[..., DiskTier], records: ModuleType
) -> None:
    tier, record = open_tier(), records.make_record(1)
    tier.put(record)
    with tier.open(record.key) as reader:
        tier.close()
        with pytest.raises(StoreError, match="closed"):
            reader.read_layers(0, 1, torch.empty_like(record.kv[:1]))


def test_many_read_what_one_writer_evicts(
    open_tier: Callable[..., DiskTier], records: ModuleType
) -> None:
    """Each layer is the very one, or the record is a miss when it is opened; never in between."""
    evicted: list[int] = []
    tier = open_tier(12 * RECORD_BYTES, on_evict=evicted.append)
    wanted = [records.make_record(number, num_tokens=5 + number % 3) for number in range(16)]
    faults: list[BaseException] = []
    read: list[int] = []
    stop = threading.Event()

    def reading(seed: int) -> None:
        try:
            for step in range(120):
                record = wanted[(seed * 5 + step * 7) % len(wanted)]
                if (reader := tier.open(record.key)) is None:
                    continue
                with reader:
                    out = torch.empty_like(record.kv[:1])
                    for layer in (2, 0, 1):
                        reader.read_layers(layer, layer + 1, out)
                        mine = record.kv[layer].view(torch.uint8)
                        assert torch.equal(out[0].view(torch.uint8), mine), f"{seed} {step}"
                read.append(step)
        except BaseException as fault:
            faults.append(fault)

    def writing() -> None:
        number = 0
        while not stop.is_set():
            tier.put(wanted[number % len(wanted)])
            number += 1

    writer = threading.Thread(target=writing)
    readers = [threading.Thread(target=reading, args=(seed,)) for seed in range(4)]
    for thread in (writer, *readers):
        thread.start()
    for thread in readers:
        thread.join(60)
    stop.set()
    writer.join(60)
    assert faults == [] and read and sum(evicted) > 10
    assert not tier._mirror._leases
