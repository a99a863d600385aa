"""What codecs do in C is what they do by torch, bit by bit, and they do without it."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from chunkcache.chunk import ChunkKV, KVGeometry
from chunkcache.codec_spec import parse_codec
from chunkcache.errors import StoreError
from chunkcache.store.codec import codec_named, read_through
from chunkcache.store.codec.basis import BasisCodec, fit_basis, write_basis
from chunkcache.store.codec.compiled import open_codes
from chunkcache.store.codec.groups import GroupRounding
from chunkcache.store.codec.joint import JointCodec, fit_joint_basis, write_joint_basis
from chunkcache_kernels.codes import Codes

TOKENS = (1, 31, 32, 33, 257)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def codes() -> Codes:
    found = open_codes(None)
    if found is None:
        pytest.skip("no compiler")
    return found


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw) * torch.rand(shape[-1:], generator=draw) * 4 + 1


# ------------------------------------------------------------ groups


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("channels", [6, 64, 3 * 96, 2 * 128, 5 * 256])
def test_groups_are_coded_and_decoded_as_by_torch(codes: Codes, bits: int, channels: int) -> None:
    for rows, dtype in zip(TOKENS, (*DTYPES, *DTYPES), strict=False):
        numbers, largest = drawn(rows, channels), torch.finfo(dtype).max
        by_torch, in_c = GroupRounding(bits, 32), GroupRounding(bits, 32, codes)
        coded = by_torch.encode(numbers, largest)
        assert in_c.encode(numbers, largest) == coded
        apart = torch.full((rows + 2, channels + 5), torch.nan, dtype=dtype)
        expected = apart.clone()
        by_torch.decode_into(memoryview(coded), expected[1:-1, 2 : channels + 2])
        in_c.decode_into(memoryview(coded), apart[1:-1, 2 : channels + 2])
        # as bits, what lies around it too
        assert torch.equal(apart.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("odd", [torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 65_500.0])
@pytest.mark.parametrize("at", [0, 40, 69])
def test_the_same_numbers_are_refused(codes: Codes, odd: float, at: int) -> None:
    numbers = drawn(70, 20)
    numbers[at, 7] = odd
    for rounding in (GroupRounding(4, 32), GroupRounding(4, 32, codes)):
        with pytest.raises(StoreError, match="what is no number"):
            rounding.encode(numbers, torch.finfo(torch.float16).max)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-45, 1e-39, -3.0, 2e38])
def test_groups_without_range_and_numbers_next_to_nothing_too(codes: Codes, value: float) -> None:
    numbers = torch.full((33, 4), value)
    numbers[:, 1] *= torch.linspace(0.5, 1, 33)
    coded = GroupRounding(3, 32).encode(numbers, torch.finfo(torch.float32).max)
    assert GroupRounding(3, 32, codes).encode(numbers, torch.finfo(torch.float32).max) == coded
    by_torch = GroupRounding(3, 32).decode(memoryview(coded), 33, 4)
    assert torch.equal(GroupRounding(3, 32, codes).decode(memoryview(coded), 33, 4), by_torch)


# ------------------------------------------------------------ a basis


def record_of(records: ModuleType, tokens: int, heads: int, dim: int) -> ChunkKV:
    """KV of two layers whose channels vary by very different amounts, turned among themselves."""
    channels = heads * dim
    turn = torch.linalg.qr(drawn(channels, channels, seed=3)).Q
    rows = torch.randn((2, 2, tokens, channels), generator=torch.Generator().manual_seed(tokens))
    rows = rows * torch.logspace(1, -2, channels) @ turn + 2
    record: ChunkKV = records.make_record(tokens, tokens, KVGeometry(2, heads, dim, "float32", "r"))
    return replace(record, kv=rows.view(2, 2, tokens, heads, dim))


@pytest.mark.parametrize(("heads", "dim"), [(3, 64), (1, 96), (2, 128), (1, 256), (1, 10)])
def test_coefficients_are_coded_and_decoded_as_by_torch(
    codes: Codes, records: ModuleType, tmp_path: Path, heads: int, dim: int
) -> None:
    fitted = [record_of(records, tokens, heads, dim) for tokens in (300, 200)]
    digest = write_basis(fit_basis(fitted), tmp_path)
    by_torchs_product = copy.copy(codes)
    by_torchs_product.restores = False
    for means in ("k=3,v=4.7", "k=0,v=8", "k=1,v=0.25"):
        spec = parse_codec(f"basis(file={digest},{means})")
        by_torch, in_c = BasisCodec(spec, tmp_path), BasisCodec(spec, tmp_path, codes)
        in_part = BasisCodec(spec, tmp_path, by_torchs_product)
        for tokens, dtype in zip(TOKENS, (*DTYPES, *DTYPES), strict=False):
            record = record_of(records, tokens, heads, dim)
            kv = record.kv[1].to(dtype)
            coded = by_torch.encode_layer(1, kv, record.stats)
            assert in_c.encode_layer(1, kv, record.stats) == coded
            whole = torch.full((2, tokens + 2, heads, dim), torch.nan, dtype=dtype)
            expected = torch.empty_like(kv)
            by_torch.decode_layer(1, memoryview(coded), expected)
            in_part.decode_layer(1, memoryview(coded), whole[:, 1:-1])
            # the product is torch's in both; how it adds up is its own
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(whole[:, 1:-1], expected, rtol=eps, atol=1e-5)
            in_c.decode_layer(1, memoryview(coded), whole[:, 1:-1])
            off = (whole[:, 1:-1].float() - expected.float()).norm() / expected.float().norm()
            assert off < 5e-4 + eps / 2
            assert whole[:, [0, -1]].isnan().all()


@pytest.mark.parametrize("together", [1, 2])
def test_layers_together_are_coded_and_decoded_as_by_torch(
    codes: Codes, records: ModuleType, tmp_path: Path, together: int
) -> None:
    fitted = [record_of(records, tokens, 1, 96) for tokens in (300, 200)]
    digest = write_joint_basis(fit_joint_basis(fitted, together), tmp_path)
    for bits in (0.0, 0.1, 1.9, 8.0):
        spec = parse_codec(f"joint(file={digest},bits={bits})")
        by_torch, in_c = JointCodec(spec, tmp_path), JointCodec(spec, tmp_path, codes)
        for tokens, dtype in zip(TOKENS, (*DTYPES, *DTYPES), strict=False):
            kv = record_of(records, tokens, 1, 96).kv[2 - together :].to(dtype)
            first = 2 - together
            coded = by_torch.encode_layers(first, kv)
            assert in_c.encode_layers(first, kv) == coded
            found, expected = torch.empty_like(kv[-1:]), torch.empty_like(kv[-1:])
            slabs = [memoryview(slab) for slab in coded]
            by_torch.decode_layers(1, slabs, expected)
            in_c.decode_layers(1, slabs, found)
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(found, expected, rtol=eps, atol=1e-5)


def test_the_codecs_of_a_store_are_those_in_c(
    codes: Codes, records: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, called = [record_of(records, 50, 1, 10)], list[str]()
    for name in ("to_centres", "from_centres"):
        plain = getattr(Codes, name)

        def counted(*given: object, plain: Any = plain, name: str = name) -> object:
            called.append(name)
            return plain(*given)

        monkeypatch.setattr(Codes, name, counted)
    digest = write_joint_basis(fit_joint_basis(fitted, 2), tmp_path)
    read_through(codec_named(f"joint(file={digest})", tmp_path), fitted[0])
    assert called == ["to_centres", "from_centres"]


def test_a_basis_serves_several_threads_together(
    records: ModuleType, tmp_path: Path, codes: Codes
) -> None:
    fitted = record_of(records, 300, 2, 64)
    codec = codec_named(f"basis(file={write_basis(fit_basis([fitted]), tmp_path)})", tmp_path)
    coded = memoryview(codec.encode_layer(0, fitted.kv[0], fitted.stats))
    outs = [torch.empty_like(fitted.kv[0]) for _ in range(16)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda out: codec.decode_layer(0, coded, out), outs))
    assert all(torch.equal(out, outs[0]) for out in outs)


# ------------------------------------------------------------ without them


def test_without_a_compiler_it_is_said_once_and_torch_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: ModuleType, codes: Codes
) -> None:
    record = record_of(records, 33, 1, 10)
    coded = codec_named("int4").encode_layer(0, record.kv[0], record.stats)
    monkeypatch.setenv("CC", "no-such-compiler")
    with capture_logs() as said:
        codecs = [codec_named(name, cache=tmp_path) for name in ("int4", "gear", "int4")]
    assert [line["event"] for line in said] == ["codecs_not_compiled"]
    assert "no-such-compiler" in said[0]["reason"]
    for codec in codecs[::2]:
        assert codec.encode_layer(0, record.kv[0], record.stats) == coded
