"""Triton's program of attention over pages; `triton_pages.py` launches it.

Softmax runs online over tiles of keys (FlashAttention-2, arXiv 2307.08691). Scores are exponents of
2, which is what GPUs compute: their factor holds log2 e. `triton_plan.py` says what items, entries,
stretches and looks are. The last program to finish a part of a row merges all of the row's parts:
who is the last, a counter of each row and head tells.
"""

from __future__ import annotations

import triton
import triton.language as tl

from chunkcache_kernels.triton_kernels import floor_of, load_turned
from chunkcache_kernels.triton_tiles import (
    add_values,
    channel_order,
    key_order,
    load_keys,
    load_ranges,
    weights_as_summed,
)

_HIDDEN = tl.constexpr(2**31 - 1)  # `arena.HIDDEN`: above every row
_NEVER = tl.constexpr(-1e30)  # the largest score of a row that has seen no key
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit  # type: ignore[untyped-decorator]
def bound_kernel(  # type: ignore[no-untyped-def]
    items, entries, stretches, looks, row_positions, key_positions, bounds, counts, window, block,
    PAGE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Which keys of each stretch to go through: from the first to the last that a row of it sees;
    a row sees those up to its position, `window` of them, in its `block` of positions.

    A program has one stretch, or its share of as many as `counts` [2] says second.
    """
    last, step = tl.program_id(0) + 1, 1
    if counts is not None:
        last, step = tl.load(counts + 1), tl.num_programs(0)
    for which in range(tl.program_id(0), last, step):
        stretch = stretches + 6 * which
        item = items + 4 * tl.load(stretch + 5)
        number = tl.arange(0, ROWS)
        real = number < tl.load(item + 1)
        row = tl.load(entries + 2 * (tl.load(item) + number), mask=real, other=0)
        position = tl.load(row_positions + row, mask=real, other=-1)
        floor = floor_of(position, window, block)
        is_shared = tl.load(stretch + 3)
        num_keys = tl.load(stretch + 1) * PAGE
        end = 0
        begin = num_keys
        if is_shared == 1:
            look = looks + 2 * (tl.load(stretch + 2) + number)
            first_key = tl.load(look + 1, mask=real, other=0)
            for start in range(0, num_keys, KEYS):
                index = start + tl.arange(0, KEYS)
                there = real[:, None] & (index < num_keys)[None, :]
                of_key = key_positions + first_key[:, None] + index[None, :]
                stands = tl.load(of_key, mask=there, other=_HIDDEN)
                sees = (stands <= position[:, None]) & (stands > floor[:, None])
                seen = tl.max(sees.to(tl.int32), 0) > 0
                end = tl.maximum(end, tl.max(tl.where(seen, index + 1, 0), 0))
                begin = tl.minimum(begin, tl.min(tl.where(seen, index, num_keys), 0))
        else:
            last_row = tl.max(position, 0)
            lowest = tl.min(tl.where(real, floor, last_row), 0)
            of_keys = key_positions + tl.load(stretch) * PAGE
            for start in range(0, num_keys, KEYS):
                index = start + tl.arange(0, KEYS)
                stands = tl.load(of_keys + index, mask=index < num_keys, other=_HIDDEN)
                seen = (stands <= last_row) & (stands > lowest)
                end = tl.maximum(end, tl.max(tl.where(seen, index + 1, 0), 0))
                begin = tl.minimum(begin, tl.min(tl.where(seen, index, num_keys), 0))
        tl.store(bounds + 2 * which, begin)
        tl.store(bounds + 2 * which + 1, end)


@triton.jit  # type: ignore[untyped-decorator]
def _seen(  # type: ignore[no-untyped-def]
    key_positions, index, inside, position, floor, first_key, any_first, last_row, lowest,
    SHARED: tl.constexpr, LIMITED: tl.constexpr,
):  # fmt: skip
    """Which of the keys at `index` each row sees, and which any of them does."""
    if not SHARED:  # rows of one sequence see the same keys up to their own
        stands = tl.load(key_positions + any_first + index, inside, other=_HIDDEN)
        sees, seen = stands[None, :] <= position[:, None], stands <= last_row
        if LIMITED:
            sees = sees & (stands[None, :] > floor[:, None])
            seen = seen & (stands > lowest)
    else:
        of_row = key_positions + first_key[:, None] + index[None, :]
        stand = tl.load(of_row, inside[None, :], other=_HIDDEN)
        sees = stand <= position[:, None]
        if LIMITED:
            sees = sees & (stand > floor[:, None])
        seen = tl.max(sees.to(tl.int32), 0) > 0
    return sees, seen


@triton.jit
def capped(scores, cap):  # type: ignore[no-untyped-def]
    """cap tanh(s / cap) by e^(-2 |s| / cap), which cannot overflow."""
    small = tl.exp2(-2 * 1.4426950408889634 / cap * tl.abs(scores))
    bent = (1 - small) / (1 + small) * cap
    return tl.where(scores < 0, -bent, bent)


@triton.jit  # type: ignore[untyped-decorator]
def _walk(  # type: ignore[no-untyped-def]
    query, top, total, mixed, like, keys, values, key_scales, value_scales, edges, pages,
    key_positions, first_page, num_pages, first, end, position, floor, first_key,
    kv_head, cap_log2,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, CAPPED: tl.constexpr, SHARED: tl.constexpr, LIMITED: tl.constexpr,
):  # fmt: skip
    """Online softmax of turned fp32 queries over the keys of a stretch from `first` to `end`."""
    if key_scales is None:
        query = query.to(tl.float32 if WIDE else keys.dtype.element_ty)
    else:
        query = query.to(like.dtype.element_ty)
    across = tl.arange(0, WIDTH_PADDED)
    last_row = tl.max(position)
    lowest = tl.min(tl.where(position >= 0, floor, last_row))
    for start in range(first // KEYS * KEYS, end, KEYS):
        index = start + key_order(keys, KEYS)
        sees, seen = _seen(
            key_positions, index, index < end, position, floor, first_key,
            first_page * PAGE, last_row, lowest, SHARED, LIMITED,
        )  # fmt: skip
        key, at, place = load_keys(
            keys, key_scales, like, pages, first_page, num_pages, start, kv_head,
            KV_HEADS, DIM, DIM_PADDED, PAGE, KEYS,
        )  # fmt: skip
        lowest_value, step = load_ranges(values, value_scales, at, DIM, WIDTH_PADDED, PAGE, KEYS)
        # a NaN in a key that nobody wrote is in its own column, which gives way as a whole
        scores = tl.dot(query, key.to(query.dtype), input_precision=PRECISION)
        if CAPPED:
            scores = capped(scores, cap_log2)
        scores = tl.where(sees, scores, 2 * _NEVER)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        if edges is None:
            weights = weights_as_summed(weights, keys, query)
        fade = tl.exp2(top - higher)
        of_tile = tl.sum(weights, 1)
        total = total * fade + of_tile
        top = higher
        faded = mixed * fade[:, None]
        if edges is not None:  # how much falls between edges, instead of values: sums of 0 and 1
            stands = tl.load(key_positions + first_page * PAGE + index, index < end, other=0)
            edge = tl.load(edges + across, mask=across < WIDTH - 1, other=_HIDDEN)
            between = tl.sum((stands[:, None] >= edge[None, :]).to(tl.int32), 1)
            named = (between[:, None] == across[None, :]).to(tl.float32)
            mixed = tl.dot(weights, named, faded, input_precision="ieee")
        else:
            mixed = add_values(
                weights, of_tile, faded, query, values, value_scales, lowest_value, step, pages,
                first_page, num_pages, start, kv_head, at, place, seen,
                KV_HEADS, DIM, WIDTH_PADDED, PAGE, KEYS, PRECISION,
            )  # fmt: skip
    return top, total, mixed


@triton.jit  # type: ignore[untyped-decorator]
def _finish(  # type: ignore[no-untyped-def]
    top, total, mixed, sinks, out, lse, row, head, real, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
):  # fmt: skip
    """Rows out of all their keys, and of what their sinks take."""
    across = tl.arange(0, WIDTH_PADDED)
    to = row.to(tl.int64) * HEADS + head
    if lse is not None:
        tl.store(lse + to, (top + tl.log2(tl.where(total > 0, total, 1.0))) / _LOG2_E, mask=real)
    if sinks is not None:
        sink = tl.load(sinks + head, mask=real, other=0.0) * _LOG2_E
        higher = tl.maximum(top, sink)
        fade = tl.exp2(top - higher)
        total = total * fade + tl.exp2(sink - higher)
        mixed = mixed * fade[:, None]
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    fits = real[:, None] & (across < WIDTH)[None, :]
    at = out + to[:, None] * WIDTH + across[None, :]
    tl.store(at, mixed.to(out.dtype.element_ty), mask=fits)


@triton.jit  # type: ignore[untyped-decorator]
def _merge(  # type: ignore[no-untyped-def]
    mixed_parts, top_parts, total_parts, first_part, num_parts, head, top, total, mixed,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_PADDED: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Rows out of their parts, `AT_ONCE` on their way at a time; `num_parts` is 0 for no row."""
    across = tl.arange(0, WIDTH_PADDED)
    for start in range(0, tl.max(num_parts), AT_ONCE):
        for ahead in tl.static_range(AT_ONCE):
            there = start + ahead < num_parts
            part = (first_part + start + ahead).to(tl.int64) * HEADS + head
            # others wrote them: from L2, where all see the same
            own = tl.load(top_parts + part, there, other=_NEVER, cache_modifier=".cg")
            their = tl.load(total_parts + part, there, other=0.0, cache_modifier=".cg")
            of_part = mixed_parts + part[:, None] * WIDTH + across[None, :]
            fits = there[:, None] & (across < WIDTH)[None, :]
            value = tl.load(of_part, mask=fits, other=0.0, cache_modifier=".cg")
            higher = tl.maximum(top, own)
            fade, weight = tl.exp2(top - higher), tl.exp2(own - higher)
            total = total * fade + weight * their
            mixed = mixed * fade[:, None] + weight[:, None] * value
            top = higher
    return top, total, mixed


@triton.jit  # type: ignore[untyped-decorator]
def _deliver(  # type: ignore[no-untyped-def]
    top, total, mixed, entry, row_parts, mixed_parts, top_parts, total_parts, counters, sinks, out,
    lse, row, head, real,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, WIDTH: tl.constexpr, WIDTH_PADDED: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Rows of one part are finished. Of others the part is kept, and who keeps the last merges."""
    across = tl.arange(0, WIDTH_PADDED)
    first_part = tl.load(row_parts + row, mask=real, other=0)
    num_parts = tl.load(row_parts + row + 1, mask=real, other=0) - first_part
    if tl.max(num_parts) <= 1:
        _finish(top, total, mixed, sinks, out, lse, row, head, real, HEADS, WIDTH, WIDTH_PADDED)
    else:
        part = tl.load(entry + 1, mask=real, other=0).to(tl.int64) * HEADS + head
        of_part = mixed_parts + part[:, None] * WIDTH + across[None, :]
        tl.store(of_part, mixed, mask=real[:, None] & (across < WIDTH)[None, :])
        tl.store(top_parts + part, top, mask=real)
        tl.store(total_parts + part, total, mask=real)
        tl.debug_barrier()  # all threads have written the part before one of them says so
        counter = counters + row * HEADS + head
        before = tl.atomic_add(counter, 1, mask=real, sem="acq_rel")
        tl.debug_barrier()
        last = real & (before == num_parts - 1)
        if tl.max(last.to(tl.int32)) > 0:
            tl.store(counter, 0, mask=last)  # for the next layer
            top = tl.full((QUERIES,), _NEVER, tl.float32)
            total = tl.zeros((QUERIES,), tl.float32)
            mixed = tl.zeros((QUERIES, WIDTH_PADDED), tl.float32)
            top, total, mixed = _merge(
                mixed_parts, top_parts, total_parts, first_part, tl.where(last, num_parts, 0),
                head, top, total, mixed, HEADS, WIDTH, WIDTH_PADDED, AT_ONCE,
            )  # fmt: skip
            _finish(top, total, mixed, sinks, out, lse, row, head, last, HEADS, WIDTH, WIDTH_PADDED)


@triton.jit  # type: ignore[untyped-decorator]
def attend_kernel(  # type: ignore[no-untyped-def]
    qkv, keys_0, values_0, key_scales_0, value_scales_0, keys_1, values_1, key_scales_1,
    value_scales_1, edges, cos, sin, kv_heads, items, counts, entries, stretches, bounds, looks,
    pages, row_positions, key_positions, row_parts, mixed_parts, top_parts, total_parts, counters,
    sinks, out, lse, stride_row, scale_log2, cap_log2, window, block,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    WIDTH: tl.constexpr, WIDTH_PADDED: tl.constexpr, ROTARY: tl.constexpr, PAGE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    CAPPED: tl.constexpr, SHARED: tl.constexpr, LIMITED: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Items for the query heads of one key head: one, or a program's share of as many as `counts`
    says first, so that one launch serves plans of any size.
    """
    kv_head = tl.program_id(1)
    if kv_heads is not None:
        kv_head = tl.load(kv_heads + kv_head)
    last, step = tl.program_id(0) + 1, 1
    if counts is not None:
        last, step = tl.load(counts), tl.num_programs(0)
    for which in range(tl.program_id(0), last, step):
        item = items + 4 * which
        # the query heads of a group are rows of one tile, so that K and V are read once for all
        folded = tl.arange(0, QUERIES)
        real = folded < tl.load(item + 1) * GROUP
        entry = entries + 2 * (tl.load(item) + folded // GROUP)
        head = kv_head * GROUP + folded % GROUP
        row = tl.load(entry, mask=real, other=0)
        position = tl.load(row_positions + row, mask=real, other=-1)
        floor = floor_of(position, window, block)
        begin = row.to(tl.int64) * stride_row + head * DIM
        top, total = tl.full((QUERIES,), _NEVER, tl.float32), tl.zeros((QUERIES,), tl.float32)
        mixed = tl.zeros((QUERIES, WIDTH_PADDED), tl.float32)
        first_stretch = tl.load(item + 2)
        for number in range(first_stretch, first_stretch + tl.load(item + 3)):
            stretch = stretches + 6 * number
            look = looks + 2 * tl.load(stretch + 2)
            if SHARED:
                look = look + 2 * (folded // GROUP)
                of_segment = tl.load(look, mask=real, other=0)
                first_key = tl.load(look + 1, mask=real, other=0)
            else:
                of_segment = tl.load(look)
                first_key = 0
            # a row before a segment sees none of it, however it is turned
            distance = tl.maximum(position - of_segment, 0)
            cols = channel_order(tl.load(stretch + 4), keys_0, keys_1, DIM_PADDED)
            fits = real[:, None] & (cols < DIM)[None, :]
            query = load_turned(qkv, begin, cols, distance, fits, real, cos, sin, ROTARY)
            query = query * scale_log2
            first_page, num_pages = tl.load(stretch), tl.load(stretch + 1)
            first, end = tl.load(bounds + 2 * number), tl.load(bounds + 2 * number + 1)
            if tl.load(stretch + 4) == 0:
                top, total, mixed = _walk(
                    query, top, total, mixed, qkv, keys_0, values_0, key_scales_0, value_scales_0,
                    edges, pages, key_positions, first_page, num_pages, first, end, position, floor,
                    first_key, kv_head, cap_log2, KV_HEADS, DIM, DIM_PADDED, WIDTH,
                    WIDTH_PADDED, PAGE, KEYS, WIDE, PRECISION, CAPPED, SHARED, LIMITED,
                )  # fmt: skip
            elif keys_1 is not None:
                top, total, mixed = _walk(
                    query, top, total, mixed, qkv, keys_1, values_1, key_scales_1, value_scales_1,
                    edges, pages, key_positions, first_page, num_pages, first, end, position, floor,
                    first_key, kv_head, cap_log2, KV_HEADS, DIM, DIM_PADDED, WIDTH,
                    WIDTH_PADDED, PAGE, KEYS, WIDE, PRECISION, CAPPED, SHARED, LIMITED,
                )  # fmt: skip
        _deliver(
            top, total, mixed, entry, row_parts, mixed_parts, top_parts, total_parts, counters,
            sinks, out, lse, row, head, real, KV_HEADS * GROUP, QUERIES, WIDTH, WIDTH_PADDED,
            AT_ONCE,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _votes(  # type: ignore[no-untyped-def]
    qkv, keys, key_scales, cos, sin, tile, pages, key_positions, row_positions, votes, lse,
    received, kv_head, num_rows, num_positions, stride_row, scale_log2, cap_log2, window,
    block,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    ROTARY: tl.constexpr, PAGE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """What a tile of keys gets from all rows; see `received_kernel`."""
    first_page, num_pages, start = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    index = start + key_order(keys, KEYS)
    of_key = key_positions + first_page * PAGE + index
    stands = tl.load(of_key, mask=index < num_pages * PAGE, other=_HIDDEN)
    key, _, _ = load_keys(
        keys, key_scales, qkv, pages, first_page, num_pages, start, kv_head,
        KV_HEADS, DIM, DIM_PADDED, PAGE, KEYS,
    )  # fmt: skip
    if key_scales is not None:
        key = key.to(qkv.dtype.element_ty)
    elif WIDE:
        key = key.to(tl.float32)
    cols = channel_order(0, keys, keys, DIM_PADDED)
    sums = tl.zeros((KEYS,), tl.float32)
    for first in range(0, num_rows * GROUP, QUERIES):
        folded = first + tl.arange(0, QUERIES)
        row, head = folded // GROUP, kv_head * GROUP + folded % GROUP
        real = row < num_rows
        fits = real[:, None] & (cols < DIM)[None, :]
        position = tl.load(row_positions + row, mask=real, other=-1)
        distance = tl.maximum(position - tl.load(tile + 3), 0)
        begin = row.to(tl.int64) * stride_row + head * DIM
        query = load_turned(qkv, begin, cols, distance, fits, real, cos, sin, ROTARY) * scale_log2
        scores = tl.dot(query.to(key.dtype), key, input_precision=PRECISION)
        if CAPPED:
            scores = capped(scores, cap_log2)
        sum_log2 = tl.load(lse + row * (KV_HEADS * GROUP) + head, mask=real, other=0.0) * _LOG2_E
        vote = tl.load(votes + row, mask=real, other=0.0)
        sees = stands[None, :] <= position[:, None]
        sees = sees & (stands[None, :] > floor_of(position, window, block)[:, None])
        weights = tl.exp2(tl.where(sees, scores - sum_log2[:, None], 2 * _NEVER))
        sums += tl.sum(weights * vote[:, None], 0)
    to = received + kv_head.to(tl.int64) * num_positions + stands
    tl.store(to, sums / (KV_HEADS * GROUP), mask=stands < num_positions)


@triton.jit(do_not_specialize=["num_rows", "num_positions"])  # type: ignore[untyped-decorator]
def received_kernel(  # type: ignore[no-untyped-def]
    qkv, keys_0, key_scales_0, keys_1, key_scales_1, cos, sin, tiles, pages, key_positions,
    row_positions, votes, lse, received, num_rows, num_positions, stride_row, scale_log2, cap_log2,
    window, block,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    ROTARY: tl.constexpr, PAGE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Softmax weights of all rows times their votes, summed for every key of a tile.

    `tiles` int32 [tiles, 5]: first page, pages of its segment, first key in the segment, where that
    begins, arena. A position is written once for each key head: no atomics, the same every time.
    """
    tile, kv_head = tiles + 5 * tl.program_id(0), tl.program_id(1)
    if tl.load(tile + 4) == 0:
        _votes(
            qkv, keys_0, key_scales_0, cos, sin, tile, pages, key_positions, row_positions,
            votes, lse, received, kv_head, num_rows, num_positions, stride_row, scale_log2,
            cap_log2, window, block, KV_HEADS, GROUP, DIM, DIM_PADDED, ROTARY, PAGE, QUERIES,
            KEYS, WIDE, PRECISION, CAPPED,
        )  # fmt: skip
    elif keys_1 is not None:
        _votes(
            qkv, keys_1, key_scales_1, cos, sin, tile, pages, key_positions, row_positions,
            votes, lse, received, kv_head, num_rows, num_positions, stride_row, scale_log2,
            cap_log2, window, block, KV_HEADS, GROUP, DIM, DIM_PADDED, ROTARY, PAGE, QUERIES,
            KEYS, WIDE, PRECISION, CAPPED,
        )  # fmt: skip
