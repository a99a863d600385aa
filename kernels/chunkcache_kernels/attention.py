"""Triton: attention of chosen rows over paged KV, whatever their positions.

The only rule of visibility is key position ≤ row position. Nothing assumes that the rows are the
last ones: a triangle anchored at the bottom right shows scattered rows their future (CacheBlend
issue 21, LMCache issue 1152). Softmax runs online over tiles of keys (FlashAttention-2, arXiv
2307.08691); where rows are few and keys many, the keys are split between programs and the parts
merged by their log-sum-exp (LeanAttention, arXiv 2405.10480, §4.1).

Twin: `rows_attention` in `reference.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from chunkcache_kernels.strides import check_pools, packed

if TYPE_CHECKING:
    from chunkcache_kernels.plan import RowPlan

LOG2_E = math.log2(math.e)  # exp2 is what GPUs compute: exp(x) = exp2(x · log2 e)
_KEYS = 64  # keys per tile; half of that in fp32, to fit the shared memory of small GPUs
_FOLDED_ROWS = 64  # rows x query heads per key head and program; tl.dot wants at least 16
_SPLIT_KEYS = 512  # a split gets at least so many keys
_PROGRAMS = 256  # enough to fill a large GPU; splitting further only costs merging


@triton.jit  # type: ignore[untyped-decorator]
def _attend_kernel(  # type: ignore[no-untyped-def]
    q, k, v, slots, positions, out, lse, num_rows, split_keys, scale_log2,
    stride_qr, stride_qh, stride_ks, stride_kh, stride_vs, stride_vh,
    stride_os, stride_or, stride_oh, stride_ls, stride_lr,
    DIM: tl.constexpr, DIM_PADDED: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PAGED: tl.constexpr, PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    kv_head, split = tl.program_id(1), tl.program_id(2)
    # the query heads of a group are rows of one tile, so K and V are read once for all of them
    folded = tl.arange(0, ROWS * GROUP_PADDED)
    row = tl.program_id(0) * ROWS + folded // GROUP_PADDED
    member = folded % GROUP_PADDED
    head = kv_head * GROUP + member
    real = (row < num_rows) & (member < GROUP)
    # rows that only fill the tile stand at position 0, which every real row sees too
    position = tl.load(positions + row, mask=row < num_rows, other=0)
    cols = tl.arange(0, DIM_PADDED)
    in_head = cols < DIM
    at = row.to(tl.int64)[:, None] * stride_qr + head[:, None] * stride_qh + cols[None, :]
    query = tl.load(q + at, mask=real[:, None] & in_head[None, :], other=0.0)

    top = tl.full((ROWS * GROUP_PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS * GROUP_PADDED,), tl.float32)
    mixed = tl.zeros((ROWS * GROUP_PADDED, DIM_PADDED), tl.float32)
    context = tl.max(position) + 1
    begin = split * split_keys
    for start in range(begin, tl.minimum(begin + split_keys, context), KEYS):
        keys = (start + tl.arange(0, KEYS)).to(tl.int64)
        there = keys < context  # splits are whole tiles, so their end needs no mask
        slot = tl.load(slots + keys, mask=there, other=0) if PAGED else keys
        load = there[:, None] & in_head[None, :]
        key = tl.load(
            k + kv_head * stride_kh + slot[:, None] * stride_ks + cols[None, :], load, other=0.0
        )
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale_log2
        sees = there[None, :] & (keys[None, :] <= position[:, None])
        scores = tl.where(sees, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        # a row that has seen no key yet has no largest score; 0 keeps -inf minus -inf away
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - anchor[:, None])
        fade = tl.exp2(top - anchor)
        value = tl.load(
            v + kv_head * stride_vh + slot[:, None] * stride_vs + cols[None, :], load, other=0.0
        )
        mixed = tl.dot(
            weights.to(value.dtype), value, mixed * fade[:, None], input_precision=PRECISION
        )
        total = total * fade + tl.sum(weights, 1)
        top = higher

    to = row.to(tl.int64)[:, None] * stride_or + head[:, None] * stride_oh + cols[None, :]
    divisor = tl.where(total == 0.0, 1.0, total)
    mixed = (mixed / divisor[:, None]).to(out.dtype.element_ty)
    tl.store(out + split * stride_os + to, mixed, mask=real[:, None] & in_head[None, :])
    if SPLIT:
        seen = tl.where(total == 0.0, float("-inf"), top + tl.log2(divisor))
        tl.store(lse + split * stride_ls + row.to(tl.int64) * stride_lr + head, seen, mask=real)


def paged_rows_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor,
    q_positions: torch.Tensor,
    scale: float,
    *,
    plan: RowPlan | None = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    """[R, Hq, D] of rows `q` [R, Hq, D] over pools [S, Hkv, D]; position p is at `slots[p]`.

    `num_splits` is how many programs share one row's keys; None chooses it from the sizes. Cost:
    the keys up to the last row of a tile of rows are read once per tile and key head.
    """
    if plan is not None:
        slots, q_positions, context = plan.slots, plan.q_positions, plan.context
    else:
        context = int(q_positions[-1]) + 1
    assert slots.dtype == torch.int64 and slots.dim() == 1 and slots.shape[0] >= context
    check_pools(k_pool, v_pool)
    slots = slots.contiguous()
    return _attend(q, k_pool, v_pool, slots, q_positions, scale, context, num_splits)


def rows_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_positions: torch.Tensor,
    scale: float,
    *,
    num_splits: int | None = None,
) -> torch.Tensor:
    """`paged_rows_attention` over keys that lie in order: key t of `k` [T, Hkv, D] stands at t."""
    context = int(q_positions[-1]) + 1
    assert min(k.shape[0], v.shape[0]) >= context
    return _attend(q, packed(k), packed(v), None, q_positions, scale, context, num_splits)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor | None,
    q_positions: torch.Tensor,
    scale: float,
    context: int,
    num_splits: int | None,
) -> torch.Tensor:
    num_rows, num_heads, dim = q.shape
    kv_heads = k.shape[1]
    group = num_heads // kv_heads
    assert num_heads == group * kv_heads and k.shape[1:] == v.shape[1:] == (kv_heads, dim)
    assert q.dtype == k.dtype == v.dtype and q_positions.shape == (num_rows,)
    assert q_positions.dtype == torch.int64
    q, q_positions = packed(q), q_positions.contiguous()
    group_padded = triton.next_power_of_2(group)
    rows = max(16 // group_padded, min(_FOLDED_ROWS // group_padded, _power_of_2(num_rows)), 1)
    programs = triton.cdiv(num_rows, rows) * kv_heads
    if num_splits is None:
        num_splits = max(1, min(triton.cdiv(context, _SPLIT_KEYS), _PROGRAMS // programs))
    tile = _KEYS // 2 if q.dtype == torch.float32 else _KEYS
    split_keys = triton.cdiv(triton.cdiv(context, num_splits), tile) * tile
    part_dtype = q.dtype if num_splits == 1 else torch.float32
    out = torch.empty((num_splits, num_rows, num_heads, dim), dtype=part_dtype, device=q.device)
    lse = torch.empty((num_splits, num_rows, num_heads), dtype=torch.float32, device=q.device)
    _attend_kernel[(triton.cdiv(num_rows, rows), kv_heads, num_splits)](
        q, k, v, slots, q_positions, out, lse, num_rows, split_keys, scale * LOG2_E,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        out.stride(0), out.stride(1), out.stride(2), lse.stride(0), lse.stride(1),
        DIM=dim, DIM_PADDED=triton.next_power_of_2(dim), GROUP=group, GROUP_PADDED=group_padded,
        ROWS=rows, KEYS=tile, PAGED=slots is not None, SPLIT=num_splits > 1,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32", enable_fp_fusion=True,
    )  # fmt: skip
    if num_splits == 1:
        return out[0]
    shares = (lse / LOG2_E).softmax(dim=0)
    return (out * shares[..., None]).sum(dim=0).to(q.dtype)


def _power_of_2(number: int) -> int:
    rounded: int = triton.next_power_of_2(number)
    return rounded
