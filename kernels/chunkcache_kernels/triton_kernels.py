"""Triton's programs that turn rows and write them to pages; `triton_pages.py` launches them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def partner_of(cols, ROTARY: tl.constexpr):  # type: ignore[no-untyped-def]
    """The channel that each channel is turned with."""
    upper = tl.where(cols < ROTARY, cols - ROTARY // 2, cols)
    return tl.where(cols < ROTARY // 2, cols + ROTARY // 2, upper)


@triton.jit  # type: ignore[untyped-decorator]
def turn(x, partner, cols, distance, real, cos, sin, ROTARY: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 `x` [n, channels] turned by `distance` [n]; `partner` is x at the partners' channels."""
    at = distance.to(tl.int64)[:, None] * ROTARY + cols[None, :]
    fits = real[:, None] & (cols < ROTARY)[None, :]
    across = tl.load(sin + at, mask=fits, other=0.0)
    across = tl.where((cols < ROTARY // 2)[None, :], -across, across)
    turned = x * tl.load(cos + at, mask=fits, other=1.0) + partner * across
    return tl.where(fits, turned, x)


@triton.jit
def floor_of(position, window, block):  # type: ignore[no-untyped-def]
    """The last position that a row does not see, before those it sees."""
    return tl.maximum(position - window, position - position % block - 1)


@triton.jit  # type: ignore[untyped-decorator]
def load_turned(  # type: ignore[no-untyped-def]
    x, begin, cols, distance, fits, real, cos, sin, ROTARY: tl.constexpr
):
    """fp32 [n, channels] of heads that begin at `begin` [n], turned by `distance` [n]."""
    own = tl.load(x + begin[:, None] + cols[None, :], mask=fits, other=0.0).to(tl.float32)
    if ROTARY > 0:
        other = x + begin[:, None] + partner_of(cols, ROTARY)[None, :]
        partner = tl.load(other, mask=fits, other=0.0).to(tl.float32)
        own = turn(own, partner, cols, distance, real, cos, sin, ROTARY)
    return own


@triton.jit  # type: ignore[untyped-decorator]
def _inverse_rms(x, eps, DIM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of fp32 rows [n, channels], whose channels behind DIM are 0, as [n, 1]. Rounded once at each
    step: `/` and `tl.sqrt` are a GPU's approximations.
    """
    root = tl.math.sqrt_rn(tl.math.div_rn(tl.sum(x * x, 1), DIM * 1.0) + eps)
    return tl.math.div_rn(tl.full(root.shape, 1.0, tl.float32), root)[:, None]


# how many rows there are changes no program: one serves all
@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
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
        others = partner_of(cols, ROTARY)
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
            key = turn(key, partner, cols, position, real, cos, sin, ROTARY)
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
