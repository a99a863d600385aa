"""Codec bytes to pages, KV to codec bytes, the largest scores: Triton's kernels against torch and
against the codecs themselves, bit for bit.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from chunkcache.store.codec import codec_named
from chunkcache_kernels import choice, portable, records
from chunkcache_kernels.arena import Arena
from chunkcache_kernels.fours import PAGE_TYPE as INT4
from chunkcache_kernels.records import Form

LAYERS, PAGES = 3, 9
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
FORMS = {
    "raw fp32, no channel turned": (Form(17, 2, 16, F32), 8, F32, 0),
    "raw bf16, some channels turned": (Form(33, 3, 80, BF16), 16, BF16, 40),
    "int8 to fp16, odd page": (Form(25, 2, 24, F16, 8, 8), 24, F16, 24),
    "int8 to bf16": (Form(16, 1, 64, BF16, 8, 64), 16, BF16, 64),
    "int4 to bf16, odd tokens": (Form(19, 2, 16, BF16, 4, 8), 8, BF16, 16),
    "int4 of fp32 to int8": (Form(21, 2, 32, F32, 4, 8), 16, torch.int8, 32),
    "raw fp16 to int8": (Form(9, 1, 96, F16), 8, torch.int8, 96),
    "int4 of fp32 to int4, odd tokens": (Form(21, 2, 32, F32, 4, 8), 16, INT4, 32),
    "raw bf16 to int4, odd page": (Form(25, 2, 24, BF16), 24, INT4, 8),
    "one token of int8 to int4": (Form(1, 1, 16, F16, 8, 64), 8, INT4, 0),
    "one token of int8 to int8": (Form(1, 2, 16, F32, 8, 64), 8, torch.int8, 8),
}


def drawn(form: Form, layers: int = 2) -> torch.Tensor:
    """K before RoPE and V, some channels constant, some of them tiny, some large."""
    made = torch.Generator().manual_seed(form.tokens)
    kv = torch.randn(layers, 2, form.tokens, form.heads, form.dim, generator=made)
    kv *= torch.logspace(-6, 3, form.dim)
    kv[..., 1] = -3.7
    kv[..., 2] = 0.0
    return kv.to(form.dtype)


def codec_of(form: Form) -> Any:
    """What makes such bytes on the host."""
    return codec_named(f"int{form.bits}(group={form.group})" if form.bits else "raw")


def coded_by_codec(form: Form, kv: torch.Tensor) -> torch.Tensor:
    """uint8 `[layers, layer_bytes]`."""
    codec = codec_of(form)
    stats: Any = None  # which none of these looks at
    layers = [codec.encode_layer(n, layer, stats) for n, layer in enumerate(kv)]
    coded = torch.stack([torch.frombuffer(bytearray(x), dtype=torch.uint8) for x in layers])
    assert coded.shape[1] == form.layer_bytes
    return coded


def parts(arena: Arena) -> list[torch.Tensor]:
    every = (arena.keys, arena.values, arena.key_scales, arena.value_scales)
    return [part for part in every if part is not None]


@pytest.mark.parametrize("case", FORMS.values(), ids=FORMS.keys())
def test_coded_layers_come_to_where_the_host_puts_them(
    case: tuple[Form, int, torch.dtype, int], device: torch.device, angles: Any
) -> None:
    from chunkcache_kernels import triton_records

    form, page, kept, rotary = case
    kv = drawn(form)
    coded = coded_by_codec(form, kv)
    codec = codec_of(form)
    for layer, octets in enumerate(coded):
        codec.decode_layer(layer, memoryview(octets.numpy()), kv[layer])
    pages = np.array([7, 0, 4, 8, 2][: -(-form.tokens // page)], dtype=np.int64)
    nothing = torch.empty(form.tokens, 0)
    turned = angles(torch.arange(form.tokens), rotary) if rotary else (nothing, nothing)
    arenas = []
    for where in (device, "cpu", "cpu"):
        size = LAYERS, PAGES, form.heads, form.dim, page
        arenas.append(Arena.empty(*size, dtype=kept, device=torch.device(where)))
        for part in parts(arenas[-1]):
            part.fill_(99)
    ours, twin, host = arenas
    there = turned[0].to(device), turned[1].to(device)
    triton_records.promote(ours, 1, coded.to(device), form, pages, there)
    # on a CPU, where torch divides as the kernels do; on CUDA it may multiply by an inverse
    records.promote(twin, 1, coded, form, pages, turned)
    portable.place_chunk(host, 1, kv, pages, turned)
    if not form.bits:
        again = deepcopy(ours)
        triton_records.place_chunk(again, 1, kv.to(device), pages, there)
        assert all(torch.equal(a, b) for a, b in zip(parts(again), parts(ours), strict=True))
    for mine, other, true in zip(parts(ours), parts(twin), parts(host), strict=True):
        assert torch.equal(mine.cpu(), other) and torch.equal(other, true)
        assert (mine[0] == 99).all() and (mine[1] != 99).any(), "other layers stay as they are"


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("tokens", "group"), [(33, 8), (64, 64), (5, 32), (1, 8)])
def test_kv_is_rounded_to_the_bytes_of_the_codec(
    bits: int, tokens: int, group: int, device: torch.device
) -> None:
    from chunkcache_kernels import triton_records

    form = Form(tokens, 3, 24, BF16 if group == 8 else F32, bits, group)
    kv = drawn(form)
    kv[0, 1, 0] = 0.0
    expected = coded_by_codec(form, kv)
    assert torch.equal(records.quantise(kv, form), expected)
    assert torch.equal(triton_records.quantise(kv.to(device), form).cpu(), expected)


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, under the interpreter
def test_numbers_that_are_none_are_seen_in_the_steps(device: torch.device) -> None:
    from chunkcache_kernels import triton_records

    form = Form(8, 1, 8, F32, 8, 8)
    kv = torch.zeros(1, 2, 8, 1, 8)
    kv[0, 0, 3, 0, 2], kv[0, 1, 1, 0, 5] = float("inf"), -float("inf")
    for coded in (records.quantise(kv, form), triton_records.quantise(kv.to(device), form).cpu()):
        ranges = coded.view(2, -1)[:, :32].contiguous().view(BF16).view(2, 2, 8).isfinite().all(1)
        assert (~ranges).nonzero().tolist() == [[0, 2], [1, 5]]


def test_forms_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="bits: got 3"):
        Form(8, 1, 8, F32, 3, 8)
    with pytest.raises(ValueError, match="channels: got 12, a multiple of 8"):
        Form(8, 1, 12, F32, 4, 8)


@pytest.mark.parametrize("columns", [1, 37, 5000])
def test_the_largest_scores_are_the_twins(columns: int, device: torch.device) -> None:
    from chunkcache_kernels import triton_choice

    made = torch.Generator().manual_seed(columns)
    scores = torch.randn(6, columns, generator=made)
    scores[1] = scores[1].round()  # many equal ones
    scores[2] = 0.0
    scores[2, ::2] = -0.0
    scores[3, ::3] = float("nan")
    scores[4, -1], scores[4, 0] = float("inf"), -float("inf")
    scores = torch.cat((scores, scores), dim=1)[:, :columns]  # rows that lie apart
    counts = torch.tensor([columns, columns // 2, columns // 3, 1, min(columns, 9), 0])
    counts = counts.int()
    expected = choice.topk_rows(scores, counts, columns + 1)
    for row, count, places in zip(scores, counts.tolist(), expected.tolist(), strict=True):
        kept = places[:count]
        assert places[count:] == [-1] * (columns + 1 - count) and kept == sorted(set(kept))
        known = [-x if x == x else np.inf for x in row.tolist()]
        by_hand = sorted(range(columns), key=known.__getitem__)
        assert kept == sorted(by_hand[:count])
    ours = triton_choice.topk_rows(scores.to(device), counts.to(device), columns + 1)
    assert torch.equal(ours.cpu(), expected)
