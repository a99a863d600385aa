"""Triton's programs over pages; `triton_pages.py` launches them.

Softmax runs online over tiles of keys (FlashAttention-2, arXiv 2307.08691). Scores are exponents of
2, which is what GPUs compute: their factor holds log2 e.
"""

from __future__ import annotations

import triton
import triton.language as tl

_HIDDEN = tl.constexpr(2**31 - 1)  # `arena.HIDDEN`: above every row
_NEVER = tl.constexpr(-1e30)  # the largest score of a row that has seen no key


@triton.jit  # type: ignore[untyped-decorator]
def _partner(cols, ROTARY: tl.constexpr):  # type: ignore[no-untyped-def]
    """The channel that each channel is turned with."""
    upper = tl.where(cols < ROTARY, cols - ROTARY // 2, cols)
    return tl.where(cols < ROTARY // 2, cols + ROTARY // 2, upper)


@triton.jit  # type: ignore[untyped-decorator]
def _turn(x, partner, cols, distance, real, cos, sin, ROTARY: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 `x` [n, channels] turned by `distance` [n]; `partner` is x at the partners' channels."""
    at = distance.to(tl.int64)[:, None] * ROTARY + cols[None, :]
    fits = real[:, None] & (cols < ROTARY)[None, :]
    across = tl.load(sin + at, mask=fits, other=0.0)
    across = tl.where((cols < ROTARY // 2)[None, :], -across, across)
    turned = x * tl.load(cos + at, mask=fits, other=1.0) + partner * across
    return tl.where(fits, turned, x)


@triton.jit  # type: ignore[untyped-decorator]
def _load_turned(  # type: ignore[no-untyped-def]
    x, begin, cols, distance, fits, real, cos, sin, ROTARY: tl.constexpr
):
    """fp32 [n, channels] of heads that begin at `begin` [n], turned by `distance` [n]."""
    own = tl.load(x + begin[:, None] + cols[None, :], mask=fits, other=0.0).to(tl.float32)
    if ROTARY > 0:
        other = x + begin[:, None] + _partner(cols, ROTARY)[None, :]
        partner = tl.load(other, mask=fits, other=0.0).to(tl.float32)
        own = _turn(own, partner, cols, distance, real, cos, sin, ROTARY)
    return own


@triton.jit
def _floor(position, window, block):  # type: ignore[no-untyped-def]
    """The last position that a row does not see, before those it sees."""
    return tl.maximum(position - window, position - position % block - 1)


@triton.jit  # type: ignore[untyped-decorator]
def bound_kernel(  # type: ignore[no-untyped-def]
    items, looks, row_positions, key_positions, bounds, window, block,
    PAGE: tl.constexpr, LOOKS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Which keys of each item's pages to go through: from the first to the last that a look of it
    sees; a row sees those up to its position, `window` of them, in its `block` of positions.
    """
    item = items + 4 * tl.program_id(0)
    number = tl.arange(0, LOOKS)
    real = number < tl.load(item + 3)
    look = looks + 4 * (tl.load(item + 2) + number)
    row = tl.load(look, mask=real, other=0)
    position = tl.load(row_positions + row, mask=real, other=-1)
    first_key = tl.load(look + 2, mask=real, other=0)
    num_keys = tl.load(item + 1) * PAGE
    floor = _floor(position, window, block)
    end = tl.zeros((LOOKS,), tl.int32)
    begin = tl.full((LOOKS,), _HIDDEN, tl.int32)
    for start in range(0, num_keys, KEYS):
        index = start + tl.arange(0, KEYS)
        there = real[:, None] & (index < num_keys)[None, :]
        stands = tl.load(key_positions + first_key[:, None] + index[None, :], there, other=_HIDDEN)
        sees = (stands <= position[:, None]) & (stands > floor[:, None])
        end = tl.maximum(end, tl.max(tl.where(sees, index[None, :] + 1, 0), 1))
        begin = tl.minimum(begin, tl.min(tl.where(sees, index[None, :], _HIDDEN), 1))
    tl.store(bounds + 2 * tl.program_id(0), tl.min(begin, 0))
    tl.store(bounds + 2 * tl.program_id(0) + 1, tl.max(end, 0))


@triton.jit
def _seen(  # type: ignore[no-untyped-def]
    key_positions, index, inside, position, floor, first_key, alike, any_first, last_row, lowest
):
    """Which of the keys at `index` each look sees, and which any of them does."""
    if alike:  # looks of one sequence see the same keys up to their row
        stands = tl.load(key_positions + any_first + index, inside, other=_HIDDEN)
        sees = (stands[None, :] <= position[:, None]) & (stands[None, :] > floor[:, None])
        seen = (stands <= last_row) & (stands > lowest)
    else:
        of_look = key_positions + first_key[:, None] + index[None, :]
        stand = tl.load(of_look, inside[None, :], other=_HIDDEN)
        sees = (stand <= position[:, None]) & (stand > floor[:, None])
        seen = tl.max(sees.to(tl.int32), 0) > 0
    return sees, seen


@triton.jit
def _capped(scores, cap):  # type: ignore[no-untyped-def]
    """cap tanh(s / cap) by e^(-2 |s| / cap), which cannot overflow."""
    small = tl.exp2(-2 * 1.4426950408889634 / cap * tl.abs(scores))
    bent = (1 - small) / (1 + small) * cap
    return tl.where(scores < 0, -bent, bent)


@triton.jit  # type: ignore[untyped-decorator]
def attend_kernel(  # type: ignore[no-untyped-def]
    qkv, keys, values, cos, sin, items, bounds, pages, looks, row_positions, key_positions,
    mixed_parts, top_parts, total_parts, stride_row, scale_log2, cap_log2, window, block,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    ROTARY: tl.constexpr, PAGE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """The parts of one item's looks, for the query heads of one key head."""
    item, kv_head = items + 4 * tl.program_id(0), tl.program_id(1)
    first_page, num_pages = tl.load(item), tl.load(item + 1)
    # the query heads of a group are rows of one tile, so that K and V are read once for all
    folded = tl.arange(0, QUERIES)
    real = folded < tl.load(item + 3) * GROUP
    look = looks + 4 * (tl.load(item + 2) + folded // GROUP)
    head = kv_head * GROUP + folded % GROUP
    row = tl.load(look, mask=real, other=0)
    position = tl.load(row_positions + row, mask=real, other=-1)
    first_key = tl.load(look + 2, mask=real, other=0)

    cols = tl.arange(0, DIM_PADDED)
    in_head = cols < DIM
    fits = real[:, None] & in_head[None, :]
    begin = row.to(tl.int64) * stride_row + head * DIM
    distance = position - tl.load(look + 1, mask=real, other=0)
    query = _load_turned(qkv, begin, cols, distance, fits, real, cos, sin, ROTARY)
    query = (query * scale_log2).to(tl.float32 if WIDE else keys.dtype.element_ty)

    # looks of one sequence see the same keys up to their row: one line of positions says it all
    any_first = tl.max(first_key)
    alike = tl.min(tl.where(real, first_key, any_first)) == any_first
    last_row, floor = tl.max(position), _floor(position, window, block)
    lowest = tl.min(tl.where(real, floor, last_row))
    top = tl.full((QUERIES,), _NEVER, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, DIM_PADDED), tl.float32)
    first, end = tl.load(bounds + 2 * tl.program_id(0)), tl.load(bounds + 2 * tl.program_id(0) + 1)
    for start in range(first // KEYS * KEYS, end, KEYS):
        index = start + tl.arange(0, KEYS)
        sees, seen = _seen(
            key_positions, index, index < end, position, floor, first_key, alike, any_first,
            last_row, lowest,
        )  # fmt: skip
        # whole pages are masked, not tokens, or a page's keys could not be loaded several at a time
        of_page = index // PAGE
        page = tl.load(pages + first_page + of_page, mask=of_page < num_pages, other=0)
        at = (page.to(tl.int64) * KV_HEADS + kv_head) * (DIM * PAGE)
        place = index % PAGE
        of_key = keys + (at + place)[None, :] + (cols * PAGE)[:, None]
        key = tl.load(of_key, mask=in_head[:, None], other=0.0)
        # a NaN in a key that nobody wrote is in its own column, which gives way as a whole
        scores = tl.dot(query, key.to(query.dtype), input_precision=PRECISION)
        if CAPPED:
            scores = _capped(scores, cap_log2)
        scores = tl.where(sees, scores, 2 * _NEVER)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(top - higher)
        # a value that nobody wrote would be NaN even times 0, so it is not loaded
        of_value = values + (at + place * DIM)[:, None] + cols[None, :]
        value = tl.load(of_value, mask=seen[:, None] & in_head[None, :], other=0.0)
        weights_as, faded = weights.to(query.dtype), mixed * fade[:, None]
        mixed = tl.dot(weights_as, value.to(query.dtype), faded, input_precision=PRECISION)
        total = total * fade + tl.sum(weights, 1)
        top = higher

    part = tl.load(look + 3, mask=real, other=0).to(tl.int64) * (KV_HEADS * GROUP) + head
    tl.store(mixed_parts + part[:, None] * DIM + cols[None, :], mixed, mask=fits)
    tl.store(top_parts + part, top, mask=real)
    tl.store(total_parts + part, total, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def merge_kernel(  # type: ignore[no-untyped-def]
    mixed_parts, top_parts, total_parts, row_parts, sinks, out,
    HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Some heads of one row out of their parts, and of what their sinks take."""
    row, head = tl.program_id(0), tl.program_id(1) * MERGED + tl.arange(0, MERGED)
    real = head < HEADS
    first = tl.load(row_parts + row)
    num_parts = tl.load(row_parts + row + 1) - first
    cols = tl.arange(0, DIM_PADDED)
    fits = real[:, None] & (cols < DIM)[None, :]
    top = tl.full((MERGED,), _NEVER, tl.float32)
    total = tl.zeros((MERGED,), tl.float32)
    if sinks is not None:
        top = tl.load(sinks + head, mask=real, other=0.0) * 1.4426950408889634
        total = total + 1.0
    mixed = tl.zeros((MERGED, DIM_PADDED), tl.float32)
    for number in range(0, num_parts):
        part = (first + number).to(tl.int64) * HEADS + head
        own = tl.load(top_parts + part, mask=real, other=_NEVER)
        higher = tl.maximum(top, own)
        fade, weight = tl.exp2(top - higher), tl.exp2(own - higher)
        total = total * fade + weight * tl.load(total_parts + part, mask=real, other=0.0)
        own_mixed = mixed_parts + part[:, None] * DIM + cols[None, :]
        own_mixed = tl.load(own_mixed, mask=fits, other=0.0)
        mixed = mixed * fade[:, None] + weight[:, None] * own_mixed
        top = higher
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    to = out + (row.to(tl.int64) * HEADS + head)[:, None] * DIM + cols[None, :]
    tl.store(to, mixed.to(out.dtype.element_ty), mask=fits)


@triton.jit  # type: ignore[untyped-decorator]
def _inverse_rms(x, eps, DIM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of fp32 rows [n, channels], whose channels behind DIM are 0, as [n, 1]."""
    return (1.0 / tl.sqrt(tl.sum(x * x, 1) / DIM + eps))[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def write_kernel(  # type: ignore[no-untyped-def]
    qkv, keys, values, cos, sin, slots, row_positions, query_norm, key_norm,
    num_rows, stride_row, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    ROTARY: tl.constexpr, PAGE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One key head of some rows to its pages; or, behind the key heads, one query head normed."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    kv_head = tl.program_id(1)
    real = row < num_rows
    cols = tl.arange(0, DIM_PADDED)
    in_head = cols < DIM
    fits = real[:, None] & in_head[None, :]
    begin = (row.to(tl.int64) * stride_row)[:, None]
    if kv_head < KV_HEADS:
        source = qkv + begin + (HEADS + kv_head) * DIM
        others = _partner(cols, ROTARY)
        key = tl.load(source + cols[None, :], mask=fits, other=0.0).to(tl.float32)
        partner = tl.load(source + others[None, :], mask=fits, other=0.0).to(tl.float32)
        if key_norm is not None:
            tl.debug_barrier()  # all have read their partners before anyone writes
            scale = _inverse_rms(key, eps, DIM)
            own = tl.load(key_norm + cols, mask=in_head, other=0.0)
            theirs = tl.load(key_norm + others, mask=in_head, other=0.0)
            normed = (key * scale * own[None, :]).to(qkv.dtype.element_ty)
            tl.store(source + cols[None, :], normed, mask=fits)
            key = normed.to(tl.float32)
            partner = (partner * scale * theirs[None, :]).to(qkv.dtype.element_ty).to(tl.float32)
        if ROTARY > 0:
            position = tl.load(row_positions + row, mask=real, other=0)
            key = _turn(key, partner, cols, position, real, cos, sin, ROTARY)
        slot = tl.load(slots + row, mask=real, other=-1)
        fits = (slot >= 0)[:, None] & in_head[None, :]
        at = ((slot // PAGE).to(tl.int64) * KV_HEADS + kv_head) * (DIM * PAGE)
        place = slot % PAGE
        to = keys + (at + place)[:, None] + (cols * PAGE)[None, :]
        tl.store(to, key.to(keys.dtype.element_ty), mask=fits)
        value = tl.load(source + KV_HEADS * DIM + cols[None, :], mask=fits, other=0.0)
        to = values + (at + place * DIM)[:, None] + cols[None, :]
        tl.store(to, value.to(values.dtype.element_ty), mask=fits)
    elif query_norm is not None:
        at_query = qkv + begin + (kv_head - KV_HEADS) * DIM + cols[None, :]
        query = tl.load(at_query, mask=fits, other=0.0).to(tl.float32)
        weight = tl.load(query_norm + cols, mask=in_head, other=0.0)
        query = query * _inverse_rms(query, eps, DIM) * weight[None, :]
        tl.store(at_query, query.to(qkv.dtype.element_ty), mask=fits)
