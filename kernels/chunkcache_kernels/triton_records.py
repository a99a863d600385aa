"""Records on a GPU: codec bytes to pages, and KV to codec bytes. Twins: `records.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import triton
import triton.language as tl

from chunkcache_kernels.records import Form
from chunkcache_kernels.sending import sent
from chunkcache_kernels.triton_kernels import partner_of, turn
from chunkcache_kernels.triton_pages import padded

if TYPE_CHECKING:
    from chunkcache_kernels.arena import Arena

_CHANNELS = 64  # that one program rounds


@triton.jit
def rounded(x):  # type: ignore[no-untyped-def]
    """To the nearest whole number, half to even, of fp32 below 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit  # type: ignore[untyped-decorator]
def _decode(  # type: ignore[no-untyped-def]
    numbers, ranges, coded, part, token, channel, fits, num_tokens, code_bytes,
    CHANNELS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """fp32 numbers of a part that begins at byte `part`, as the codec's decoder gives them."""
    at = token * CHANNELS + channel
    if BITS == 0:
        return tl.load(numbers + part // (numbers.dtype.element_ty.primitive_bitwidth // 8) + at,
                       mask=fits, other=0.0).to(tl.float32)  # fmt: skip
    num_groups = (num_tokens + GROUP - 1) // GROUP
    of_range = ranges + part // 2 + (token // GROUP) * CHANNELS + channel
    lowest = tl.load(of_range, mask=fits, other=0.0).to(tl.float32)
    step = tl.load(of_range + num_groups * CHANNELS, mask=fits, other=0.0).to(tl.float32)
    of_code = coded + part + 4 * num_groups * CHANNELS
    if BITS == 8:
        code = tl.load(of_code + at, mask=fits, other=0).to(tl.int32)
    else:
        octet = tl.load(of_code + at % code_bytes, mask=fits, other=0).to(tl.int32)
        code = (octet >> (at // code_bytes * 4)) & 15
    number = code.to(tl.float32) * step + lowest
    return number.to(numbers.dtype.element_ty).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _keep(  # type: ignore[no-untyped-def]
    x, to, scales, of_scale, fits, real, AXIS: tl.constexpr
):
    """To a page: cast, or rounded to int8 by the largest number along an axis."""
    if scales is None:
        tl.store(to, x.to(to.dtype.element_ty), mask=fits)
    else:
        largest = tl.maximum(tl.max(tl.abs(x), AXIS), 1.1754943508222875e-38)
        scale = tl.math.div_rn(largest, 127.0)
        tl.store(scales + of_scale, scale, mask=real)
        wide = tl.math.div_rn(x, tl.expand_dims(scale, AXIS) + tl.zeros_like(x))
        tl.store(to, rounded(wide).to(tl.int8), mask=fits)


@triton.jit  # type: ignore[untyped-decorator]
def _keep_fours(  # type: ignore[no-untyped-def]
    x, to, of_range, PAGE: tl.constexpr, DIM: tl.constexpr, PAGE_PADDED: tl.constexpr,
    DIM_PADDED: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A page [tokens, channels] in 4 bits a number, in the order of KEYS or of values."""
    place, cols = tl.arange(0, PAGE_PADDED), tl.arange(0, DIM_PADDED)
    in_page = (place < PAGE)[:, None]
    lowest = _down(tl.min(tl.where(in_page, x, float("inf")), 0))
    width = tl.max(tl.where(in_page, x, -float("inf")), 0) - lowest
    step = -_down(tl.math.div_rn(-width, 15.0))
    tl.store(of_range, lowest.to(tl.bfloat16), mask=cols < DIM)
    tl.store(of_range + DIM, step.to(tl.bfloat16), mask=cols < DIM)
    scale = tl.maximum(step, 1.1754943508222875e-38)[None, :] + tl.zeros_like(x)
    above = tl.where(in_page, x - lowest[None, :], 0.0)
    code = rounded(tl.math.div_rn(above, scale))
    code = tl.minimum(tl.maximum(code, 0.0), 15.0).to(tl.uint8)
    if KEYS:
        _store_words(code, to, PAGE, DIM, PAGE_PADDED, DIM_PADDED)
    else:
        _store_words(tl.trans(code), to, DIM, PAGE, DIM_PADDED, PAGE_PADDED)


@triton.jit  # type: ignore[untyped-decorator]
def _store_words(  # type: ignore[no-untyped-def]
    code, to, ROWS: tl.constexpr, COLS: tl.constexpr, ROWS_PADDED: tl.constexpr,
    COLS_PADDED: tl.constexpr,
):  # fmt: skip
    """Codes [rows, cols] to bytes [ROWS, COLS / 2], in a word as `fours.py` says."""
    woven = tl.reshape(code, (ROWS_PADDED, COLS_PADDED // 8, 2, 2, 2))
    woven = tl.permute(woven, (0, 1, 4, 2, 3))  # even ones before odd ones
    first, second = tl.split(tl.reshape(woven, (ROWS_PADDED, COLS_PADDED // 2, 2)))
    row, pair = tl.arange(0, ROWS_PADDED)[:, None], tl.arange(0, COLS_PADDED // 2)[None, :]
    fits = (row < ROWS) & (pair < COLS // 2)
    tl.store(to + row * (COLS // 2) + pair, first | (second << 4), mask=fits)


@triton.jit  # type: ignore[untyped-decorator]
def promote_kernel(  # type: ignore[no-untyped-def]
    numbers, ranges, coded, keys, values, key_scales, value_scales, pages, cos, sin,
    num_tokens, layer_bytes, part_bytes, code_bytes, stride_keys, stride_key_scales,
    stride_value_scales,
    HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr, ROTARY: tl.constexpr,
    PAGE: tl.constexpr, PAGE_PADDED: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One page of one head in one layer: K decoded and rotated to its places, and V."""
    number, head, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = tl.arange(0, PAGE_PADDED)
    cols = tl.arange(0, DIM_PADDED)
    token = number * PAGE + place
    if keys.dtype.element_ty == tl.uint8:
        token = tl.minimum(token, num_tokens - 1)  # the last one again
    in_page, in_head = place < PAGE, cols < DIM
    real = in_page & (token < num_tokens)
    fits = real[:, None] & in_head[None, :]
    whole = in_page[:, None] & in_head[None, :]  # what is left of the last page: 0
    at = tl.load(pages + number).to(tl.int64) * HEADS + head
    first = layer * layer_bytes
    channel = head * DIM + cols[None, :]
    key = _decode(numbers, ranges, coded, first, token[:, None], channel, fits, num_tokens,
                  code_bytes, HEADS * DIM, BITS, GROUP)  # fmt: skip
    if ROTARY > 0:
        other = head * DIM + partner_of(cols, ROTARY)[None, :]
        partner = _decode(numbers, ranges, coded, first, token[:, None], other, fits, num_tokens,
                          code_bytes, HEADS * DIM, BITS, GROUP)  # fmt: skip
        key = turn(key, partner, cols, token, real, cos, sin, ROTARY)
    if keys.dtype.element_ty == tl.uint8:
        begin = layer * stride_keys + at * (DIM * PAGE // 2)
        of_range = key_scales + layer * stride_key_scales + at * (2 * DIM) + cols
        _keep_fours(key, keys + begin, of_range, PAGE, DIM, PAGE_PADDED, DIM_PADDED, True)
    else:
        to = keys + layer * stride_keys + at * (DIM * PAGE) + place[:, None]
        of_scale = layer * stride_key_scales + at * DIM + cols
        _keep(key, to + (cols * PAGE)[None, :], key_scales, of_scale, whole, in_head, 0)
    value = _decode(numbers, ranges, coded, first + part_bytes, token[:, None], channel, fits,
                    num_tokens, code_bytes, HEADS * DIM, BITS, GROUP)  # fmt: skip
    if keys.dtype.element_ty == tl.uint8:
        begin = layer * stride_keys + at * (DIM * PAGE // 2)
        of_range = value_scales + layer * stride_value_scales + at * (2 * DIM) + cols
        _keep_fours(value, values + begin, of_range, PAGE, DIM, PAGE_PADDED, DIM_PADDED, False)
    else:
        to = values + layer * stride_keys + at * (DIM * PAGE) + (place * DIM)[:, None]
        of_scale = layer * stride_value_scales + at * PAGE + place
        _keep(value, to + cols[None, :], value_scales, of_scale, whole, in_page, 1)


def promote(
    arena: Arena,
    first: int,
    coded: torch.Tensor,
    form: Form,
    pages: np.ndarray,
    angles: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """See `records.promote`. Cost: one launch, one pass over the bytes."""
    cos, sin = angles
    layers, heads, dim = len(coded), form.heads, form.dim
    assert coded.dtype is torch.uint8 and coded.is_contiguous()
    assert coded.shape == (layers, form.layer_bytes) and coded.device == arena.keys.device
    assert len(pages) == -(-form.tokens // arena.page_tokens)
    assert arena.keys.shape[2] == heads and arena.head_dim == dim
    assert first + layers <= len(arena.keys)
    assert cos.is_contiguous() and sin.is_contiguous() and len(cos) >= form.tokens
    where = sent({"pages": pages.astype(np.int32)}, coded.device)["pages"]
    scales = arena.key_scales, arena.value_scales
    promote_kernel[(len(pages), heads, layers)](
        coded.view(form.dtype), coded.view(torch.bfloat16), coded, arena.keys[first:],
        arena.values[first:], *(None if part is None else part[first:] for part in scales),
        where, cos, sin, form.tokens, form.layer_bytes, form.part_bytes, form.code_bytes,
        arena.keys.stride(0), *(0 if part is None else part.stride(0) for part in scales),
        HEADS=heads, DIM=dim, DIM_PADDED=padded(dim), ROTARY=cos.shape[1], PAGE=arena.page_tokens,
        PAGE_PADDED=padded(arena.page_tokens), BITS=form.bits, GROUP=max(1, form.group),
        enable_fp_fusion=False,  # numbers are then those that the host decodes
    )  # fmt: skip


def place_chunk(
    arena: Arena,
    first: int,
    kv: torch.Tensor,
    pages: np.ndarray,
    angles: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """See `portable.place_chunk`."""
    layers, _, tokens, heads, dim = kv.shape
    coded = kv.contiguous().view(torch.uint8).view(layers, -1)
    promote(arena, first, coded, Form(tokens, heads, dim, kv.dtype), pages, angles)


@triton.jit
def _down(x):  # type: ignore[no-untyped-def]
    """fp32 numbers to the largest bf16 that is not above, in fp32."""
    bits = x.to(tl.int32, bitcast=True)
    low = bits & 0xFFFF
    cut = bits - low
    # below zero the magnitude grows; what is no number stays
    cut = tl.where((bits < 0) & (low != 0) & (tl.abs(x) < float("inf")), cut + 0x10000, cut)
    return cut.to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def quantise_kernel(  # type: ignore[no-untyped-def]
    kv, ranges, coded, num_tokens, layer_bytes, part_bytes, code_bytes,
    CHANNELS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Some channels of one group, of K or V of one layer."""
    group = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    layer, part = (tl.program_id(2) // 2).to(tl.int64), tl.program_id(2) % 2
    LEVELS: tl.constexpr = (1 << BITS) - 1
    within = tl.arange(0, GROUP_PADDED)
    token = group * GROUP + within
    # the last group is filled up with its last row
    shown = tl.minimum(token, num_tokens - 1)[:, None]
    in_row = channel < CHANNELS
    fits = (within < GROUP)[:, None] & in_row[None, :]
    source = kv + (layer * 2 + part) * num_tokens * CHANNELS + shown * CHANNELS + channel[None, :]
    x = tl.load(source, mask=fits, other=0.0).to(tl.float32)
    lowest = _down(tl.min(tl.where(fits, x, float("inf")), 0))
    width = tl.max(tl.where(fits, x, -float("inf")), 0) - lowest
    step = -_down(tl.math.div_rn(-width, LEVELS * 1.0))
    num_groups = (num_tokens + GROUP - 1) // GROUP
    begin = layer * layer_bytes + part * part_bytes
    of_range = ranges + begin // 2 + group * CHANNELS + channel
    tl.store(of_range, lowest.to(ranges.dtype.element_ty), mask=in_row)
    tl.store(of_range + num_groups * CHANNELS, step.to(ranges.dtype.element_ty), mask=in_row)
    scale = tl.maximum(step, 1.1754943508222875e-38)[None, :] + tl.zeros_like(x)
    code = rounded(tl.math.div_rn(x - lowest[None, :], scale))
    code = tl.minimum(tl.maximum(code, 0.0), LEVELS * 1.0).to(tl.uint8)
    fits = fits & (token < num_tokens)[:, None]
    to = coded + begin + 4 * num_groups * CHANNELS + token[:, None] * CHANNELS + channel[None, :]
    tl.store(to, code, mask=fits)


def quantise(kv: torch.Tensor, form: Form) -> torch.Tensor:
    """See `records.quantise`. Cost: one launch; of 4 bits another pass that packs the codes."""
    layers = len(kv)
    assert form.bits and kv.is_contiguous()
    assert kv.shape == (layers, 2, form.tokens, form.heads, form.dim)
    count, ranges = form.tokens * form.channels, 4 * form.groups * form.channels
    coded = torch.empty((layers, 2, ranges + count), dtype=torch.uint8, device=kv.device)
    grid = form.groups, triton.cdiv(form.channels, _CHANNELS), 2 * layers
    quantise_kernel[grid](
        kv, coded.view(torch.bfloat16), coded, form.tokens, coded.stride(0), coded.stride(1), count,
        CHANNELS=form.channels, BITS=form.bits, GROUP=form.group,
        GROUP_PADDED=triton.next_power_of_2(form.group), BLOCK=_CHANNELS, enable_fp_fusion=False,
    )  # fmt: skip
    if form.bits == 8:
        return coded.flatten(1)
    low, high = coded[..., ranges:].chunk(2, dim=2)
    return torch.cat((coded[..., :ranges], low | high << 4), dim=2).flatten(1)
