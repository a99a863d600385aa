"""The torch twins of every kernel: same signatures, same results, and the whole CPU path.

Shapes: R rows, T keys, Hq query heads, Hkv key heads, D head dimension, S slots in the pool.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

# Query rows per attention call. Small enough that little of the upper triangle is computed in
# vain, large enough that the products stay efficient; measured in benchmarks/bench_kernels.py.
ROW_BLOCK = 128
_MASS_FLOATS = 16 * 1024 * 1024  # bound on an explicit probability matrix: 64 MiB of fp32


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE, half-split layout: `x` [T, H, D], fp32 `cos`, `sin` [T, D] → like `x`.

    Multiplied in fp32 and cast once: rounding the angles or the products to bf16 costs accuracy.
    Source: RoFormer, arXiv 2104.09864, eq. 34, in the layout Hugging Face models use.
    """
    half = x.shape[-1] // 2
    wide = x.float()
    turned = torch.cat((-wide[..., half:], wide[..., :half]), dim=-1)
    return (wide * cos[:, None] + turned * sin[:, None]).to(x.dtype)


def place_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Rotate `k` [T, Hkv, D] and write it and `v` to `slots` int64 [T] of the pools [S, Hkv, D].

    Slot −1 skips the row. Cost: one pass over k and v.
    """
    turned = rotate(k, cos, sin).to(k_pool.dtype)
    values = v.to(v_pool.dtype)
    run = contiguous_run(slots)
    if run is not None:
        k_pool[run] = turned
        v_pool[run] = values
        return
    keep = slots >= 0
    if not bool(keep.all()):
        turned, values, slots = turned[keep], values[keep], slots[keep]
    k_pool.index_copy_(0, slots, turned)
    v_pool.index_copy_(0, slots, values)


def gather_kv(
    k_pool: torch.Tensor, v_pool: torch.Tensor, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [T, Hkv, D] at `slots`; a view of the pools when the slots are one run."""
    run = contiguous_run(slots)
    if run is not None:
        return k_pool[run], v_pool[run]
    return k_pool.index_select(0, slots), v_pool.index_select(0, slots)


def contiguous_run(slots: torch.Tensor) -> slice | None:
    """The slice `slots` stand for when they are n, n+1, n+2, …; else None."""
    count = slots.shape[0]
    if count == 0:
        return slice(0, 0)
    first = int(slots[0])
    if first < 0 or int(slots[-1]) - first != count - 1:
        return None
    if count > 2 and not bool((slots[1:] - slots[:-1] == 1).all()):
        return None
    return slice(first, first + count)


def paged_rows_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor,
    q_positions: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """`rows_attention` over keys in the pools: the key of position p is at `slots[p]`."""
    context = int(q_positions[-1]) + 1
    k, v = gather_kv(k_pool, v_pool, slots[:context])
    return rows_attention(q, k, v, q_positions, scale)


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
    """
    num_rows, num_heads, dim = q.shape
    kv_heads = k.shape[1]
    group = num_heads // kv_heads
    out = torch.empty_like(q)
    for start in range(0, num_rows, ROW_BLOCK):
        positions = q_positions[start : start + ROW_BLOCK]
        rows = positions.shape[0]
        context = int(positions[-1]) + 1
        # the query heads of a group become rows of one head, so K is never repeated
        folded = q[start : start + rows].view(rows, kv_heads, group, dim)
        folded = folded.permute(1, 2, 0, 3).reshape(1, kv_heads, group * rows, dim)
        mask = None
        if rows > 1:
            seen = torch.arange(context, device=q.device)[None] <= positions[:, None]
            mask = torch.zeros(rows, context, dtype=q.dtype, device=q.device)
            mask = mask.masked_fill_(~seen, float("-inf")).repeat(group, 1)
        part = scaled_dot_product_attention(
            folded,
            k[:context].transpose(0, 1)[None],
            v[:context].transpose(0, 1)[None],
            attn_mask=mask,
            scale=scale,
        )
        out[start : start + rows] = (
            part.view(kv_heads, group, rows, dim).permute(2, 0, 1, 3).reshape(rows, num_heads, dim)
        )
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


def attention_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    q_positions: torch.Tensor,
    scale: float,
    segments: torch.Tensor,
    num_segments: int,
) -> torch.Tensor:
    """fp32 [R, num_segments]: how much of each row's attention falls on each segment.

    `segments` int64 [T] names the segment of every key; mean over query heads; rows sum to 1.
    Cost: one explicit softmax, made in pieces of at most 64 MiB.
    """
    context = int(q_positions[-1]) + 1
    one_hot = torch.nn.functional.one_hot(segments[:context], num_segments).float()
    step = max(1, _MASS_FLOATS // (q.shape[1] * context))
    parts = [
        attention_probabilities(q[s : s + step], k, q_positions[s : s + step], scale).mean(0)
        for s in range(0, q.shape[0], step)
    ]
    return torch.cat([p @ one_hot[: p.shape[1]] for p in parts])


def attention_received(
    q: torch.Tensor, k: torch.Tensor, q_positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """fp32 [T']: what each key gets from all rows together, mean over query heads.

    T' = last position + 1; the entries sum to R.
    """
    context = int(q_positions[-1]) + 1
    received = torch.zeros(context, dtype=torch.float32, device=q.device)
    step = max(1, _MASS_FLOATS // (q.shape[1] * context))
    for start in range(0, q.shape[0], step):
        rows = slice(start, start + step)
        part = attention_probabilities(q[rows], k, q_positions[rows], scale).mean(0).sum(0)
        received[: part.shape[0]] += part
    return received
