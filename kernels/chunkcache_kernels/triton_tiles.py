"""Tiles of keys and values out of pages, as Triton's programs multiply them; `fours.py` says how
numbers of 4 bits lie. A tile lies in one page where that divides into tiles, else in several.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LIFT = tl.constexpr(64.0)  # the scale of 65504 stays in fp16, and so does 1 / 64
_FEW = tl.constexpr(32)  # queries, whose sums are fewer than the numbers of a tile
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # no sums in bf16 and no assembly


@triton.jit  # type: ignore[untyped-decorator]
def _woven(places, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which of SIZE numbers stands at each of `places` of a tile of 4 bits, along the axis that is
    summed over: what a thread has of an operand of `mma` (PTX ISA, m16n8k16) are then whole words,
    neighbours in memory.
    """
    LANES: tl.constexpr = min(4, SIZE // 8)
    word = places // 2 % LANES * (SIZE // 8 // LANES) + places // (8 * LANES)
    return 8 * word + places // (2 * LANES) % 4 * 2 + places % 2


@triton.jit  # type: ignore[untyped-decorator]
def _more(dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """What codes of 4 bits are increased by where they lie in the low bits of a number."""
    return tl.constexpr(128 if dtype == tl.bfloat16 else 1024 if dtype == tl.float16 else 0)


@triton.jit  # type: ignore[untyped-decorator]
def _codes(  # type: ignore[no-untyped-def]
    word, first_page, ROWS: tl.constexpr, SIZE: tl.constexpr, dtype: tl.constexpr
):
    """Codes [SIZE, ROWS], `_more` than they are, in the order of `_woven`, out of words [ROWS,
    SIZE / 8].

    Two at a time become the low bits of two numbers whose high bits say 128 in bf16, 1024 in fp16
    (Kim et al., "Who Says Elephants Can't Run", arXiv 2211.10017, §4).
    """
    LANES: tl.constexpr = min(4, SIZE // 8)
    HIGH: tl.constexpr = 0x43004300 if dtype == tl.bfloat16 else 0x64006400
    # made to look unknown: a constant would be loaded anew at each use, since an instruction takes
    # one, and HIGH is another (32 instructions of a tile)
    nibbles = 0x000F000F | (first_page >> 31)
    low = tl.join(word & nibbles, (word >> 4) & nibbles)
    pair = tl.join(low, tl.join((word >> 8) & nibbles, (word >> 12) & nibbles))
    if dtype != tl.float32:
        pair |= HIGH
    code = tl.join(pair.to(tl.int16), (pair >> 16).to(tl.int16))
    code = tl.reshape(code, (ROWS, LANES, SIZE // 8 // LANES, 2, 2, 2))
    code = tl.reshape(tl.permute(code, (2, 4, 3, 1, 5, 0)), (SIZE, ROWS))
    if dtype == tl.float32:
        code = code.to(tl.float32)
    else:
        code = code.to(dtype, bitcast=True)
        if not _INTERPRETED:
            # nothing is done: Triton lays a product's operands out otherwise when it sees that
            # they are joined, and queries and weights are then not read by `ldmatrix` (3.9)
            code = tl.inline_asm_elementwise(
                "mov.b32 $0, $1;", "=r,r", [code], code.dtype, is_pure=False, pack=2
            )
    return code


@triton.jit  # type: ignore[untyped-decorator]
def _range_pairs(  # type: ignore[no-untyped-def]
    ranges, at, DIM: tl.constexpr, ACROSS: tl.constexpr
):
    """Lowest numbers and steps of the channels of a page, two in a word."""
    pair = tl.arange(0, ACROSS // 2)
    of_pair, inside = ranges + at * DIM + pair, pair < DIM // 2
    lowest = tl.load(of_pair, mask=inside, other=0)
    return lowest, tl.load(of_pair + DIM // 2, mask=inside, other=0)


@triton.jit  # type: ignore[untyped-decorator]
def _woven_halves(pair, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """bf16 [SIZE, 1] in the order of `_woven` out of words [SIZE / 2]."""
    LANES: tl.constexpr = min(4, SIZE // 8)
    half = tl.join(pair.to(tl.int16), (pair >> 16).to(tl.int16)).to(tl.bfloat16, bitcast=True)
    half = tl.permute(tl.reshape(half, (LANES, SIZE // 8 // LANES, 4, 2)), (1, 2, 0, 3))
    return tl.reshape(half, (SIZE, 1))


@triton.jit  # type: ignore[untyped-decorator]
def _halves(pair, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 [1, SIZE] out of bf16 in words [SIZE / 2]."""
    return tl.reshape(tl.join(pair << 16, pair & -65536), (1, SIZE)).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _ranges(  # type: ignore[no-untyped-def]
    ranges, at, channel, inside, DIM: tl.constexpr
):
    """Lowest numbers and steps of channels in pages, in fp32."""
    of_pair, up = ranges + at * DIM + channel // 2, (1 - channel % 2) * 16
    lowest = tl.load(of_pair, mask=inside, other=0) << up
    step = tl.load(of_pair + DIM // 2, mask=inside, other=0) << up
    return (
        (lowest & -65536).to(tl.float32, bitcast=True),
        (step & -65536).to(tl.float32, bitcast=True),
    )


@triton.jit
def _widened(code, lowest, step):  # type: ignore[no-untyped-def]
    """lowest + code · step out of `_codes`, rounded once, in their number type."""
    if lowest.dtype == code.dtype and not _INTERPRETED:
        lowest, step = tl.broadcast_to(lowest, code.shape), tl.broadcast_to(step, code.shape)
        number = tl.fma(code - _more(code.dtype), step, lowest)
    else:
        wide = code.to(tl.float32) - _more(code.dtype)
        number = (wide * step.to(tl.float32) + lowest.to(tl.float32)).to(code.dtype)
    return number


@triton.jit  # type: ignore[untyped-decorator]
def _key_fours(  # type: ignore[no-untyped-def]
    keys, ranges, first_page, at, place, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    PAGE: tl.constexpr, KEYS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """A tile of keys of 4 bits; `at` is as in `load_keys`. Eight channels share a word."""
    across = tl.arange(0, DIM_PADDED // 8)
    begin = at * (PAGE * DIM // 8) + place * (DIM // 8)
    of_word = keys + begin[:, None] + across[None, :]
    NEAR: tl.constexpr = max(1, DIM_PADDED // 32)  # words that `_codes` lets a thread have
    of_word = tl.max_contiguous(of_word, (1, NEAR))
    word = tl.load(of_word, mask=(across < DIM // 8)[None, :], other=0)
    code = _codes(word, first_page, KEYS, DIM_PADDED, dtype)
    if PAGE % KEYS == 0:
        lowest, step = _range_pairs(ranges, at, DIM, DIM_PADDED)
        lowest, step = _woven_halves(lowest, DIM_PADDED), _woven_halves(step, DIM_PADDED)
    else:
        cols = _woven(tl.arange(0, DIM_PADDED), DIM_PADDED)[:, None]
        lowest, step = _ranges(ranges, at[None, :], cols, cols < DIM, DIM)
    return _widened(code, lowest, step)


@triton.jit  # type: ignore[untyped-decorator]
def key_order(keys, KEYS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The keys of a tile, in the order in which it has them."""
    order = tl.arange(0, KEYS)
    return _woven(order, KEYS) if keys.dtype.element_ty == tl.int32 else order


@triton.jit  # type: ignore[untyped-decorator]
def channel_order(arena, keys_0, keys_1, DIM_PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The channels of a tile of an arena's keys, in the order in which it has them."""
    order = tl.arange(0, DIM_PADDED)
    is_woven: tl.constexpr = keys_0.dtype.element_ty == tl.int32
    if keys_1 is not None:
        if keys_1.dtype.element_ty == tl.int32:
            if is_woven:
                order = _woven(order, DIM_PADDED)
            else:
                order = tl.where(arena == 1, _woven(order, DIM_PADDED), order)
        elif is_woven:
            order = tl.where(arena == 0, _woven(order, DIM_PADDED), order)
    elif is_woven:
        order = _woven(order, DIM_PADDED)
    return order


@triton.jit  # type: ignore[untyped-decorator]
def load_keys(  # type: ignore[no-untyped-def]
    keys, key_scales, like, pages, first_page, num_pages, start, kv_head,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr, PAGE: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """A tile of keys from `start` on [channels, KEYS], in the orders of `channel_order` and
    `key_order`: raw as they lie, int8 in fp32, of 4 bits in the number type of `like`.
    Beside it each key's page (one number if the tile lies in one) times heads, and its place.
    """
    cols = tl.arange(0, DIM_PADDED)
    in_head = cols < DIM
    index = start + key_order(keys, KEYS)
    place = index % PAGE
    if PAGE % KEYS == 0:
        page = tl.load(pages + first_page + start // PAGE)
    else:
        # whole pages are masked, not tokens, or a page's keys could not be loaded several at a time
        of_page = index // PAGE
        page = tl.load(pages + first_page + of_page, mask=of_page < num_pages, other=0)
    at = page.to(tl.int64) * KV_HEADS + kv_head
    if keys.dtype.element_ty == tl.int32:
        dtype: tl.constexpr = like.dtype.element_ty
        key = _key_fours(
            keys, key_scales, first_page, at, place, DIM, DIM_PADDED, PAGE, KEYS, dtype
        )
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
def load_ranges(  # type: ignore[no-untyped-def]
    values, ranges, at, DIM: tl.constexpr, ACROSS: tl.constexpr, PAGE: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """What `add_values` wants of the ranges of a tile in one page of 4 bits, else nothing: asked
    for before keys are multiplied, since Triton loads ahead only what goes into a product.
    """
    if values.dtype.element_ty == tl.int32 and PAGE % KEYS == 0:
        lowest, step = _range_pairs(ranges, at, DIM, ACROSS)
        return _halves(lowest, ACROSS), _halves(step, ACROSS)
    else:
        return None, None


@triton.jit
def weights_as_summed(weights, keys, query):  # type: ignore[no-untyped-def]
    """fp32 weights as products take them, where their sum must be that of the products."""
    if keys.dtype.element_ty == tl.int32:
        weights = weights.to(query.dtype).to(tl.float32)
    return weights


@triton.jit  # type: ignore[untyped-decorator]
def _add_fours(  # type: ignore[no-untyped-def]
    weights, total, faded, query, values, ranges, lowest, step, pages, first_page, num_pages, start,
    kv_head, at, seen,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, ACROSS: tl.constexpr, PAGE: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What `add_values` does, of 4 bits. Eight tokens of a channel share a word."""
    dtype: tl.constexpr = query.dtype
    across, eighth = tl.arange(0, ACROSS), start // 8 + tl.arange(0, KEYS // 8)
    channels = across < DIM
    of_word = values + (across * (PAGE // 8))[:, None] + (eighth % (PAGE // 8))[None, :]
    if PAGE % KEYS == 0:
        of_word += at * (PAGE * DIM // 8)
        NEAR: tl.constexpr = max(1, KEYS // 32)  # words that `_codes` lets a thread have
        of_word = tl.max_contiguous(of_word, (1, NEAR))
    else:
        inside = seen[:, None] & channels[None, :]
        lowest, step = _ranges(ranges, at[:, None], across[None, :], inside, DIM)
        of_page = eighth // (PAGE // 8)
        page = tl.load(pages + first_page + of_page, mask=of_page < num_pages, other=0)
        begin = (page.to(tl.int64) * KV_HEADS + kv_head) * (PAGE * DIM // 8)
        of_word += begin[None, :]
    word = tl.load(of_word, mask=channels[:, None], other=0)
    code = _codes(word, first_page, ACROSS, KEYS, dtype)
    if PAGE % KEYS == 0 and query.shape[0] <= _FEW:
        # a channel's range is one for the tile: it multiplies the sums of codes, which are exact
        sums = tl.dot(weights.to(dtype), code, input_precision=PRECISION)
        more = sums * step + total[:, None] * (lowest - _more(dtype) * step)
        mixed = faded + tl.where(total[:, None] > 0, more, 0.0)  # of a page of nobody it may be NaN
    else:
        value = tl.where(seen[:, None], _widened(code, lowest, step), 0.0)
        mixed = tl.dot(weights.to(dtype), value.to(dtype), faded, input_precision=PRECISION)
    return mixed


@triton.jit  # type: ignore[untyped-decorator]
def add_values(  # type: ignore[no-untyped-def]
    weights, total, faded, query, values, value_scales, lowest, step, pages, first_page, num_pages,
    start, kv_head, at, place, seen,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, ACROSS: tl.constexpr, PAGE: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`faded` and a tile's values times their `weights`, whose sums are `total`, by products of the
    queries' number type; `at` and `place` as `load_keys` gives them, `lowest` and `step` as
    `load_ranges` does.

    A value that nobody has `seen` may be NaN even times 0: it becomes 0.
    """
    if values.dtype.element_ty == tl.int32:
        mixed = _add_fours(
            weights, total, faded, query, values, value_scales, lowest, step, pages, first_page,
            num_pages, start, kv_head, at, seen, KV_HEADS, DIM, ACROSS, PAGE, KEYS, PRECISION,
        )  # fmt: skip
    else:
        across = tl.arange(0, ACROSS)
        of_value = values + (at * (PAGE * DIM) + place * DIM)[:, None] + across[None, :]
        value = tl.load(of_value, mask=seen[:, None] & (across < DIM)[None, :], other=0)
        if values.dtype.element_ty == tl.int8:
            scale = tl.load(value_scales + at * PAGE + place, mask=seen, other=0.0)
            value = value.to(tl.float32)
            if query.dtype == tl.float16:  # whose small numbers lose bits below 6e-5
                scale, value = scale * _LIFT, value * (1 / _LIFT)
            weights = weights * scale[None, :]
        as_query = value.to(query.dtype)
        mixed = tl.dot(weights.to(query.dtype), as_query, faded, input_precision=PRECISION)
    return mixed
