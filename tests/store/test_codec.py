"""Codecs: what comes out is what went in, bit for bit, and nothing else is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.errors import ConfigError, CorruptRecord
from chunkcache.store.codec import CODEC_NAMES, codec_named

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 3), st.integers(1, 5)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_raw_is_bit_exact_for_any_bits(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    octets = np.random.default_rng(seed).integers(
        0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), np.uint8
    )
    kv = torch.from_numpy(octets).view(dtype)
    coded = codec_named("raw").encode_layer(kv)
    assert coded == octets.tobytes()
    out = torch.zeros(shape, dtype=dtype)
    codec_named("raw").decode_layers([memoryview(coded)], out.unsqueeze(0))
    assert out.view(torch.uint8).numpy().tobytes() == octets.tobytes()


def test_raw_encodes_a_view_as_if_it_were_contiguous() -> None:
    kv = torch.arange(2 * 6 * 3 * 4, dtype=torch.float32).reshape(2, 3, 6, 4).transpose(1, 2)
    assert not kv.is_contiguous()
    assert codec_named("raw").encode_layer(kv) == kv.contiguous().numpy().tobytes()


@pytest.mark.parametrize("length", [0, 63, 65])
def test_raw_takes_no_buffer_of_another_length(length: int) -> None:
    out = torch.zeros((2, 2, 4, 1, 2), dtype=torch.float32)
    good = memoryview(b"\x01" * 64)
    with pytest.raises(CorruptRecord, match="expected 64"):
        codec_named("raw").decode_layers([good, memoryview(b"\x01" * length)], out)
    assert out[0].all() and not out[1].any()


def test_raw_decodes_layers_in_order() -> None:
    kv = torch.arange(3 * 2 * 5 * 1 * 4, dtype=torch.float16).reshape(3, 2, 5, 1, 4)
    coded = [memoryview(codec_named("raw").encode_layer(layer)) for layer in kv]
    out = torch.zeros_like(kv)
    codec_named("raw").decode_layers(iter(coded), out)
    assert torch.equal(out, kv)


def test_codecs_are_found_by_the_name_they_write_into_records() -> None:
    assert [codec_named(name).name for name in CODEC_NAMES] == list(CODEC_NAMES)


def test_an_unknown_codec_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"store\.codec: got 'zip'.*raw"):
        codec_named("zip")
