"""Codecs: held to slow, obvious twins; bounds of their errors; nothing else is taken."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.chunk import ChunkStats
from chunkcache.errors import ConfigError, CorruptRecord, StoreError
from chunkcache.store.codec import CODEC_NAMES, codec_named
from chunkcache.store.codec.groups import GroupRounding, pack, packed_bytes, unpack

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOSSY = (
    "int8(group=8)", "int4(group=8)", "bits(k=3,v=5,group=8)", "bits(k=2,v=7,group=16)",
    "gear(bits=4,rank=2,sparse=0.1,group=8)", "gear(bits=2,rank=0,sparse=0,group=8)",
    "mikv(share=0.3,high=8,low=3,group=8)", "mikv(share=0,high=8,low=2,group=8)",
)  # fmt: skip
# one token, a whole group, one more, one less, one head, odd sizes
SHAPES = ((1, 1, 1), (8, 2, 4), (9, 1, 6), (7, 3, 5), (40, 1, 16))


def drawn(
    shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """KV of a layer with channels of very different size and place."""
    draw = np.random.default_rng([seed, *shape])
    kv = draw.standard_normal((2, *shape)) * draw.uniform(0.01, 4, shape[1:])
    kv += 8 * draw.standard_normal(shape[1:])
    return torch.from_numpy(kv.astype(np.float32)).to(dtype)


def stats_of(num_tokens: int) -> ChunkStats:
    """Statistics of a chunk, other for every token."""
    inter = np.random.default_rng(num_tokens).permutation(num_tokens) / num_tokens
    inter = inter.astype(np.float32)
    return ChunkStats(inter, 1 - inter, np.empty(0, np.float32), 0.5)


def encoded(name: str, kv: torch.Tensor) -> bytes:
    return codec_named(name).encode_layer(0, kv, stats_of(kv.shape[1]))


def decoded(name: str, coded: bytes, like: torch.Tensor) -> torch.Tensor:
    out = torch.full(like.shape, torch.nan, dtype=like.dtype)
    codec_named(name).decode_layer(0, memoryview(coded), out)
    return out


# ------------------------------------------------------------ raw, and zstd over it


@pytest.mark.parametrize("name", ["raw", "zstd", "zstd(level=1)"])
@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 3), st.integers(1, 5)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_lossless_codecs_are_bit_exact_for_any_bits(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    octets = np.random.default_rng(seed).integers(
        0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), np.uint8
    )
    kv = torch.from_numpy(octets).view(dtype)
    coded = encoded(name, kv)
    assert name != "raw" or coded == octets.tobytes()
    assert decoded(name, coded, kv).view(torch.uint8).numpy().tobytes() == octets.tobytes()


@pytest.mark.parametrize("name", ["raw", *LOSSY])
def test_a_view_is_encoded_as_if_it_were_contiguous(name: str) -> None:
    kv = drawn((6, 3, 4)).transpose(1, 2).contiguous().transpose(1, 2)
    assert not kv.is_contiguous()
    assert encoded(name, kv) == encoded(name, kv.contiguous())


def test_bytes_of_like_weight_are_pressed_together() -> None:
    kv = drawn((64, 2, 32), dtype=torch.bfloat16)
    plain = len(encoded("raw", kv))
    assert len(encoded("zstd", kv)) < 0.85 * plain


@pytest.mark.parametrize("inner", LOSSY)
def test_zstd_loses_nothing_of_another_codec(inner: str) -> None:
    kv = drawn((9, 2, 4), dtype=torch.bfloat16)
    name = f"zstd(over={inner})"
    assert torch.equal(decoded(name, encoded(name, kv), kv), decoded(inner, encoded(inner, kv), kv))


def test_a_frame_that_says_it_is_huge_is_refused_before_memory_is_taken() -> None:
    kv = drawn((4, 1, 2))
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 * 1024 * 1024))
    with pytest.raises(CorruptRecord, match="says it has 67108864 bytes"):
        decoded("zstd", bomb, kv)


# ------------------------------------------------------------ packing


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 1001])
def test_codes_of_any_width_are_packed_without_gaps(bits: int, count: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, count).astype(np.uint8)
    packed = pack(codes, bits)
    assert len(packed) == packed_bytes(count, bits) <= -(-count * bits // 8) + 2
    assert np.array_equal(unpack(memoryview(packed), count, bits), codes)


# ------------------------------------------------------------ twins and bounds


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_groups_are_those_of_the_slow_twin_and_off_by_half_a_step_at_most(
    naive: ModuleType, bits: int, shape: tuple[int, int, int]
) -> None:
    kv = drawn(shape)
    numbers = kv[0].flatten(1)
    rounding = GroupRounding(bits, 8)
    coded = rounding.encode(numbers, torch.finfo(torch.float32).max)
    assert coded == naive.bits_encode(numbers.numpy(), bits, 8)
    found = rounding.decode(memoryview(coded), *numbers.shape).numpy()
    np.testing.assert_array_equal(found, naive.group_decode(coded, *numbers.shape, bits, 8))
    step = naive.range_of_groups(numbers.numpy(), 8) / (2**bits - 1)
    # a range in bfloat16 is wider by at most 2^-7 of itself and of the lowest number
    slack = 2.0**-7 * np.abs(numbers.numpy()).max(axis=0) + 1e-6
    assert (np.abs(found - numbers.numpy()) <= (step * (1 + 2.0**-7) + slack) / 2).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_codecs_are_two_parts_with_a_width_of_their_own(
    naive: ModuleType, shape: tuple[int, int, int]
) -> None:
    kv = drawn(shape, dtype=torch.bfloat16)
    for name, widths in {"int8": (8, 8), "int4": (4, 4), "bits(k=3,v=5,group=32)": (3, 5)}.items():
        group = 64 if name == "int8" else 32
        parts = [
            naive.bits_encode(part.flatten(1).float().numpy(), bits, group)
            for part, bits in zip(kv, widths, strict=True)
        ]
        assert encoded(name, kv) == b"".join(parts)


@pytest.mark.parametrize("shape", SHAPES)
def test_mikv_is_its_slow_twin(naive: ModuleType, shape: tuple[int, int, int]) -> None:
    kv = drawn(shape)
    coded = encoded("mikv(share=0.3,high=8,low=3,group=8)", kv)
    assert coded == naive.mikv_encode(kv.numpy(), stats_of(shape[0]), 0.3, 8, 3, 8)


def test_mikv_is_as_good_as_high_where_it_matters_and_as_low_elsewhere() -> None:
    kv, stats = drawn((64, 2, 16)), stats_of(64)
    matters = torch.from_numpy(np.argsort(-stats.token_inter, kind="stable")[:16].copy())
    mixed = "mikv(share=0.25,high=8,low=2,group=16)"
    error = (decoded(mixed, encoded(mixed, kv), kv) - kv).abs().amax(dim=(0, 2, 3))
    others = torch.ones(64, dtype=torch.bool)
    others[matters] = False
    assert error[matters].max() < 0.1 < error[others].median()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gear_is_decoded_as_its_slow_twin_does(
    naive: ModuleType, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    kv = drawn(shape, dtype=dtype)
    coded = encoded("gear(bits=3,rank=2,sparse=0.1,group=8)", kv)
    found = decoded("gear(bits=3,rank=2,sparse=0.1,group=8)", coded, kv)
    twin = naive.gear_decode(coded, shape, bits=3, rank=2, sparse=0.1, group=8)
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(found.float().numpy(), twin, rtol=eps, atol=1e-4)


def test_gear_keeps_outliers_and_every_part_of_it_helps() -> None:
    kv = drawn((64, 2, 16))
    kv[0, 5, 0, 3], kv[1, 9, 1, 2] = 400.0, -300.0
    errors = []
    for rank, sparse in ((0, 0.0), (0, 0.05), (4, 0.05)):
        name = f"gear(bits=2,rank={rank},sparse={sparse},group=32)"
        found = decoded(name, encoded(name, kv), kv)
        errors.append(float((found - kv).norm()))
    assert errors[0] > 1.1 * errors[1] > 1.1 * errors[2]
    assert found[0, 5, 0, 3] == 400.0 and found[1, 9, 1, 2] == -300.0


def test_gear_counts_outliers_along_the_axis_they_are_taken_from() -> None:
    """Two of a hundred of each vector, however many channels there are."""
    name = "gear(bits=4,rank=0,sparse=0.02,group=32)"
    for tokens, channels in ((100, 400), (400, 100)):
        kv = drawn((tokens, 1, channels))
        without = len(encoded(name.replace("0.02", "0"), kv))
        numbers = 2 * tokens * channels
        assert (len(encoded(name, kv)) - without) / 4 / numbers == pytest.approx(0.02)


# ------------------------------------------------------------ all lossy ones


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constants_and_zeros_come_back(name: str, dtype: torch.dtype) -> None:
    for value in (0.0, 1.5, -3.0):
        kv = torch.full((2, 5, 2, 3), value, dtype=dtype)
        assert torch.equal(decoded(name, encoded(name, kv), kv), kv)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("odd", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("part", [0, 1])
def test_what_is_no_number_is_refused(name: str, odd: float, part: int) -> None:
    kv = drawn((9, 2, 3))
    kv[part, 4, 1, 2] = odd
    with pytest.raises(StoreError, match="what is no number"):
        encoded(name, kv)


@pytest.mark.parametrize("name", LOSSY)
def test_the_same_numbers_give_the_same_bytes(name: str) -> None:
    kv = drawn((40, 2, 16), dtype=torch.bfloat16)
    assert encoded(name, kv) == encoded(name, kv.clone())


@pytest.mark.parametrize("name", [*LOSSY, "raw", "zstd", "zstd(over=int4)"])
def test_a_buffer_of_another_length_is_corrupt(name: str) -> None:
    kv = drawn((9, 2, 4))
    coded = encoded(name, kv)
    for wrong in (b"", coded[:-1], coded[: len(coded) // 2], coded + b"\0"):
        with pytest.raises(CorruptRecord):
            decoded(name, wrong, kv)
    with pytest.raises(CorruptRecord):
        decoded(name, coded, drawn((10, 2, 4)))


@pytest.mark.parametrize("name", ["int8", "int4", "bits", "gear(sparse=0)", "mikv"])
def test_numbers_stay_within_the_type_they_came_in(name: str) -> None:
    kv = torch.tensor([-60000.0, 0.0, 1e-7, 60000.0], dtype=torch.float16).repeat(2, 3, 1, 1)
    assert decoded(name, encoded(name, kv), kv).isfinite().all()


# ------------------------------------------------------------ names


def test_codecs_are_found_by_the_name_they_write_into_records() -> None:
    for name in CODEC_NAMES:
        if name not in ("basis", "joint"):  # they need a file: test_basis.py, test_joint.py
            assert codec_named(codec_named(name).name).name == codec_named(name).name


def test_an_unknown_codec_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"store\.codec: got 'zip'.*raw"):
        codec_named("zip")
