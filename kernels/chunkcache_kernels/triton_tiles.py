"""Tiles of keys and values out of pages, as Triton's programs multiply them; `fours.py` says how
numbers of 4 bits lie. A tile lies in one page where that divides into tiles, else in several.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LIFT = tl.constexpr(64.0)  # the scale of 65504 stays in fp16, and so does 1 / 64
_FEW = tl.constexpr(32)  # queries, whose sums are fewer than the numbers of a tile


@triton.jit
def _fours(octet, lowest, step):  # type: ignore[no-untyped-def]
    """fp32 numbers, twice as many as bytes on the last axis."""
    code = tl.interleave(octet & 15, octet >> 4)
    return code.to(tl.float32) * step + lowest


@triton.jit  # type: ignore[untyped-decorator]
def _ranges(  # type: ignore[no-untyped-def]
    ranges, at, channel, inside, DIM: tl.constexpr
):
    """Lowest numbers and steps of channels in pages, in fp32."""
    of_range = ranges + at * (2 * DIM) + channel
    lowest = tl.load(of_range, mask=inside, other=0.0).to(tl.float32)
    return lowest, tl.load(of_range + DIM, mask=inside, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _key_fours(  # type: ignore[no-untyped-def]
    keys, ranges, pages, first_page, num_pages, start, kv_head, at,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr, PAGE: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """A tile of keys of 4 bits; `at` is as in `load_keys`. Neighbouring tokens share a byte."""
    cols = tl.arange(0, DIM_PADDED)
    in_head = (cols < DIM)[:, None]
    pair = start // 2 + tl.arange(0, KEYS // 2)
    of_pair = keys + (pair % (PAGE // 2))[None, :] + (cols * (PAGE // 2))[:, None]
    if PAGE % KEYS == 0:
        octet = tl.load(of_pair + at * (DIM * PAGE // 2), mask=in_head, other=0)
        lowest, step = _ranges(ranges, at, cols[:, None], in_head, DIM)
    else:
        of_page = pair // (PAGE // 2)
        page = tl.load(pages + first_page + of_page, mask=of_page < num_pages, other=0)
        begin = (page.to(tl.int64) * KV_HEADS + kv_head) * (DIM * PAGE // 2)
        octet = tl.load(of_pair + begin[None, :], mask=in_head, other=0)
        lowest, step = _ranges(ranges, at[None, :], cols[:, None], in_head, DIM)
    return _fours(octet, lowest, step)


@triton.jit  # type: ignore[untyped-decorator]
def load_keys(  # type: ignore[no-untyped-def]
    keys, key_scales, pages, first_page, num_pages, start, kv_head,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr, PAGE: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """A tile of keys from `start` on [channels, KEYS]: raw as they lie, rounded ones in fp32.
    Beside it each key's page (one number if the tile lies in one) times heads, and its place.
    """
    cols = tl.arange(0, DIM_PADDED)
    in_head = cols < DIM
    place = (start + tl.arange(0, KEYS)) % PAGE
    if PAGE % KEYS == 0:
        page = tl.load(pages + first_page + start // PAGE)
    else:
        # whole pages are masked, not tokens, or a page's keys could not be loaded several at a time
        of_page = (start + tl.arange(0, KEYS)) // PAGE
        page = tl.load(pages + first_page + of_page, mask=of_page < num_pages, other=0)
    at = page.to(tl.int64) * KV_HEADS + kv_head
    if keys.dtype.element_ty == tl.uint8:
        key = _key_fours(
            keys, key_scales, pages, first_page, num_pages, start, kv_head, at,
            KV_HEADS, DIM, DIM_PADDED, PAGE, KEYS,
        )  # fmt: skip
    else:
        of_key = keys + (at * (DIM * PAGE) + place)[None, :] + (cols * PAGE)[:, None]
        key = tl.load(of_key, mask=in_head[:, None], other=0)
        if key_scales is not None:
            if PAGE % KEYS == 0:
                scale = tl.load(key_scales + at * DIM + cols, mask=in_head, other=0.0)[:, None]
            else:
                of_scale = key_scales + (at * DIM)[None, :] + cols[:, None]
                scale = tl.load(of_scale, mask=in_head[:, None], other=0.0)
            key = key.to(tl.float32) * scale
    return key, at, place


@triton.jit  # type: ignore[untyped-decorator]
def _load_values(  # type: ignore[no-untyped-def]
    values, at, place, seen, DIM: tl.constexpr, ACROSS: tl.constexpr, PAGE: tl.constexpr
):
    """The values of a tile [KEYS, channels] as they lie, of 4 bits their codes in fp32. One that
    nobody has `seen` may be NaN even times 0: it becomes 0.
    """
    if values.dtype.element_ty == tl.uint8:
        pair = tl.arange(0, ACROSS // 2)
        begin = at * (PAGE * DIM // 2) + place * (DIM // 2)
        of_pair = values + begin[:, None] + pair[None, :]
        octet = tl.load(of_pair, mask=seen[:, None] & (pair < DIM // 2)[None, :], other=0)
        value = tl.interleave(octet & 15, octet >> 4).to(tl.float32)
    else:
        across = tl.arange(0, ACROSS)
        of_value = values + (at * (PAGE * DIM) + place * DIM)[:, None] + across[None, :]
        value = tl.load(of_value, mask=seen[:, None] & (across < DIM)[None, :], other=0)
    return value


@triton.jit  # type: ignore[untyped-decorator]
def add_values(  # type: ignore[no-untyped-def]
    weights, faded, query, values, value_scales, at, place, seen,
    DIM: tl.constexpr, ACROSS: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`faded` and a tile's values times their `weights`, by products of the queries' number type;
    `at` and `place` as `load_keys` gives them.
    """
    value = _load_values(values, at, place, seen, DIM, ACROSS, PAGE)
    across = tl.arange(0, ACROSS)
    if values.dtype.element_ty == tl.uint8 and PAGE % KEYS == 0 and query.shape[0] <= _FEW:
        # a channel's range is one for the tile: it multiplies the sums of codes, which are exact
        inside = across < DIM * tl.max(seen.to(tl.int32), 0)  # of a page of nobody it may be NaN
        lowest, step = _ranges(value_scales, at, across, inside, DIM)
        middle, code = lowest + 8 * step, (value - 8).to(query.dtype)
        sums = tl.dot(weights.to(query.dtype), code, input_precision=PRECISION)
        mixed = faded + sums * step[None, :] + tl.sum(weights, 1)[:, None] * middle[None, :]
    else:
        if values.dtype.element_ty == tl.uint8:
            if PAGE % KEYS == 0:
                channels = (across < DIM)[None, :]
                lowest, step = _ranges(value_scales, at, across[None, :], channels, DIM)
            else:
                inside = seen[:, None] & (across < DIM)[None, :]
                lowest, step = _ranges(value_scales, at[:, None], across[None, :], inside, DIM)
            value = tl.where(seen[:, None], value * step + lowest, 0.0)
        elif values.dtype.element_ty == tl.int8:
            scale = tl.load(value_scales + at * PAGE + place, mask=seen, other=0.0)
            value = value.to(tl.float32)
            if query.dtype == tl.float16:  # whose small numbers lose bits below 6e-5
                scale, value = scale * _LIFT, value * (1 / _LIFT)
            weights = weights * scale[None, :]
        as_query = value.to(query.dtype)
        mixed = tl.dot(weights.to(query.dtype), as_query, faded, input_precision=PRECISION)
    return mixed
