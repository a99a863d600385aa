"""How large a record will be, told before it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from chunkcache.store.codec import codec_named
from chunkcache.store.disk import DiskTier

MIB = 1024 * 1024


@pytest.mark.parametrize("codec", ["raw", "int8", "int4(group=32)", "gear(bits=4)", "zstd"])
@pytest.mark.parametrize("num_tokens", [1, 7, 64, 301])
def test_a_size_is_that_of_the_record_or_soon_learnt(
    open_tier: Callable[..., DiskTier], records: ModuleType, codec: str, num_tokens: int
) -> None:
    geometry = records.make_record(0).geometry
    tier = open_tier(64 * MIB, codec=codec_named(codec), geometry=geometry)
    told = tier.size_for(num_tokens)
    assert told is not None and tier.usage().size_bytes == 0
    record = records.make_record(1, num_tokens=num_tokens)
    kv = torch.linspace(-3, 3, record.kv.numel()).view(record.kv.shape).to(record.kv.dtype)
    assert tier.put(replace(record, kv=kv))
    real = tier.usage().size_bytes
    assert told == real if codec != "zstd" else told >= real
    assert tier.size_for(num_tokens) == real


def test_of_an_unknown_model_nothing_is_told(open_tier: Callable[..., DiskTier]) -> None:
    assert open_tier(MIB).size_for(7) is None
