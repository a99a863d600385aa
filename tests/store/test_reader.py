"""A record is read layer by layer through a lease, bit for bit, whatever happens to it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from chunkcache.store.disk import DiskTier
from chunkcache.store.host import HostTier
from chunkcache.store.reader import DTYPES, kv_shape, read_record


def host_tier(open_tier: Callable[..., DiskTier]) -> HostTier:
    return HostTier(1024 * 1024)


def disk_tier(open_tier: Callable[..., DiskTier]) -> DiskTier:
    return open_tier()


@pytest.mark.parametrize("make", [host_tier, disk_tier])
def test_layers_read_in_runs_are_the_record(
    make: Callable[..., Any], open_tier: Callable[..., DiskTier], records: ModuleType
) -> None:
    tier, record = make(open_tier), records.make_record(3, num_tokens=9, geometry=records.ODD)
    assert tier.open(record.key) is None
    tier.put(record)
    with tier.open(record.key) as reader:
        assert (reader.key, reader.geometry, reader.num_tokens) == (record.key, records.ODD, 9)
        assert reader.stats.intra == record.stats.intra
        layers, *rest = kv_shape(records.ODD, 9)
        read = torch.empty(layers, *rest, dtype=DTYPES[records.ODD.dtype])
        for first, last in ((4, 5), (0, 1), (1, 4)):
            reader.read_layers(first, last, read[first:last])
        assert torch.equal(read.view(torch.uint8), record.kv.view(torch.uint8))
        assert records.contents(read_record(reader)) == records.contents(record)


def test_a_lease_in_memory_outlives_its_record(records: ModuleType) -> None:
    tier, record = HostTier(1024 * 1024), records.make_record(1)
    tier.put(record)
    with tier.open(record.key) as reader:
        assert tier.delete(record.key)
        assert records.contents(read_record(reader)) == records.contents(record)
    assert tier.open(record.key) is None


def test_a_record_laid_out_otherwise_in_memory_is_read_as_its_numbers(records: ModuleType) -> None:
    record = records.make_record(1, num_tokens=6)
    turned = record.kv.transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.is_contiguous()
    tier = HostTier(1024 * 1024)
    tier.put(type(record)(record.key, record.geometry, turned, record.stats))
    with tier.open(record.key) as reader:
        out = torch.empty(2, *record.kv.shape[1:], dtype=record.kv.dtype)
        reader.read_layers(1, 3, out)
    assert torch.equal(out.view(torch.uint8), record.kv[1:3].view(torch.uint8))
