"""The torch twins of every kernel: same signatures, same results, and the whole CPU path.

Shapes: R rows, T keys, Hq query heads, Hkv key heads, D head dimension, S slots in the pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from chunkcache_kernels import products
from chunkcache_kernels.plan import contiguous_run, cut_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache_kernels.plan import RowBlock, RowPlan


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE, half-split layout: `x` [T, H, D], fp32 `cos`, `sin` [T, D] → like `x`.

    Multiplied in fp32 and cast once: rounding the angles or the products to bf16 costs accuracy.
    Source: RoFormer, arXiv 2104.09864, eq. 34, in the layout Hugging Face models use.
    """
    return _turned(x, cos, sin).to(x.dtype)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    wide = x.float()
    swapped = torch.cat((-wide[..., half:], wide[..., :half]), dim=-1)
    return wide * cos[:, None] + swapped * sin[:, None]


def place_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor | slice,
) -> None:
    """Rotate `k` [T, Hkv, D] and write it and `v` to `slots` of the pools [S, Hkv, D].

    `slots` is int64 [T], or the slice they are (`RowPlan.write`). Slot −1 skips the row. Cost: one
    pass over k and v; keys are cast once, to the pool's number type.
    """
    turned = _turned(k, cos, sin).to(k_pool.dtype)
    values = v.to(v_pool.dtype)
    run = slots if isinstance(slots, slice) else contiguous_run(slots)
    if run is not None:
        k_pool[run] = turned
        v_pool[run] = values
        return
    assert isinstance(slots, torch.Tensor)
    keep = slots >= 0
    if not bool(keep.all()):
        turned, values, slots = turned[keep], values[keep], slots[keep]
    k_pool.index_copy_(0, slots, turned)
    v_pool.index_copy_(0, slots, values)


def gather_kv(
    k_pool: torch.Tensor, v_pool: torch.Tensor, slots: torch.Tensor | slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [T, Hkv, D] at `slots`; a view of the pools when the slots are one run.

    `slots` is int64 [T], or the slice they are (`RowPlan.read`). Cost: none for a run, else one
    copy of T keys and values.
    """
    run = slots if isinstance(slots, slice) else contiguous_run(slots)
    if run is not None:
        return k_pool[run], v_pool[run]
    assert isinstance(slots, torch.Tensor)
    return k_pool.index_select(0, slots), v_pool.index_select(0, slots)


def paged_rows_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor,
    q_positions: torch.Tensor,
    scale: float,
    *,
    plan: RowPlan | None = None,
) -> torch.Tensor:
    """`rows_attention` over keys in the pools: the key of position p is at `slots[p]`.

    With a `plan` of these rows, slots and positions are not looked at again.
    """
    if plan is None:
        k, v = gather_kv(k_pool, v_pool, slots[: int(q_positions[-1]) + 1])
        return rows_attention(q, k, v, q_positions, scale)
    k, v = gather_kv(k_pool, v_pool, plan.read)
    blocks = plan.blocks or cut_rows(plan.q_positions, dtype=q.dtype, device=q.device)
    return _attend(q, k, v, blocks, scale)


def rows_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of rows over one sequence: a row sees the keys at positions ≤ its own.

    Args:
        q: [R, Hq, D], after RoPE; row r stands at `q_positions[r]`, increasing, gaps allowed.
        k, v: [T, Hkv, D]; key t stands at position t. Keys above the last row are never read.
        scale: multiplies q·k.

    Returns:
        [R, Hq, D]. Cost: each block of rows touches the keys up to its own last position only.
        The values of keys that only some rows of a block see must be finite numbers.
    """
    return _attend(q, k, v, cut_rows(q_positions, dtype=q.dtype, device=q.device), scale)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: Sequence[RowBlock], scale: float
) -> torch.Tensor:
    num_rows, num_heads, dim = q.shape
    kv_heads = k.shape[1]
    group = num_heads // kv_heads
    assert blocks[-1].rows.stop == num_rows, "the plan is of other rows"
    if products.pay(q.device, q.dtype, num_rows * group, blocks[-1].context):
        return products.rows_attention(q, k, v, blocks, scale)
    out = torch.empty_like(q)
    for block in blocks:
        rows = block.rows.stop - block.rows.start
        # the query heads of a group become rows of one head, so K is never repeated
        folded = q[block.rows].view(rows, kv_heads, group, dim)
        folded = folded.permute(1, 2, 0, 3).reshape(1, kv_heads, group * rows, dim)
        part = scaled_dot_product_attention(
            folded,
            k[: block.context].transpose(0, 1)[None],
            v[: block.context].transpose(0, 1)[None],
            attn_mask=block.full_mask(group),
            scale=scale,
        )
        unfolded = part.view(kv_heads, group, rows, dim).permute(2, 0, 1, 3)
        out[block.rows] = unfolded.reshape(rows, num_heads, dim)
    return out


def rows_attention_naive(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """The slow twin of `rows_attention`: one explicit fp32 softmax matrix."""
    probabilities = attention_probabilities(q, k, q_positions, scale)
    group = q.shape[1] // k.shape[1]
    values = v[: probabilities.shape[-1]].float().repeat_interleave(group, dim=1)
    return torch.einsum("hrt,thd->rhd", probabilities, values).to(q.dtype)


def attention_probabilities(
    q: torch.Tensor, k: torch.Tensor, q_positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """fp32 softmax [Hq, R, T'] with T' = last position + 1."""
    context = int(q_positions[-1]) + 1
    num_rows, num_heads, dim = q.shape
    kv_heads = k.shape[1]
    folded = q.float().view(num_rows, kv_heads, num_heads // kv_heads, dim)
    scores = torch.einsum("rkgd,tkd->kgrt", folded, k[:context].float()) * scale
    hidden = torch.arange(context, device=q.device)[None] > q_positions[:, None]
    scores = scores.masked_fill_(hidden, float("-inf"))
    return scores.softmax(dim=-1).view(num_heads, num_rows, context)
