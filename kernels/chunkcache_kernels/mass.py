"""Where rows look: attention summed over segments of keys, or over rows.

The one twin of both is `attention_probabilities` in `reference.py`, summed as the names say.
"""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot

from chunkcache_kernels import products
from chunkcache_kernels.plan import cut_rows
from chunkcache_kernels.reference import attention_probabilities, rows_attention


def attention_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    q_positions: torch.Tensor,
    scale: float,
    segments: torch.Tensor,
    num_segments: int,
) -> torch.Tensor:
    """fp32 [R, num_segments]: how much of each row's attention falls on each segment.

    `q` [R, Hq, D], `k` [T, Hkv, D]; `segments` int64 [T] names the segment of every key; mean over
    query heads; rows sum to 1. It is attention over values that name their segment, so it costs
    what attention does. On the bf16 products each entry is good to 2 in 1000.
    """
    num_rows, num_heads, dim = q.shape
    kv_heads = k.shape[1]
    context = int(q_positions[-1]) + 1
    named = one_hot(segments[:context], num_segments)
    if products.pay(q.device, q.dtype, num_rows * num_heads // kv_heads, context):
        blocks = cut_rows(q_positions, dtype=q.dtype, device=q.device)
        mass = q.new_zeros((num_rows, num_segments), dtype=torch.float32)
        values = named.to(q.dtype)
        for block, _, weights in products.attention_weights(q, k, blocks, scale):
            part = (weights @ values[: block.context]).float()
            mass[block.rows] += part.view(num_heads // kv_heads, -1, num_segments).sum(0)
        return mass / mass.sum(-1, keepdim=True)
    q, k = q.float(), k[:context].float()
    parts = []
    for start in range(0, num_segments, dim):  # torch wants values as wide as keys
        chosen = named[:, start : start + dim]
        values = q.new_zeros((context, 1, dim))
        values[:, 0, : chosen.shape[1]] = chosen
        seen = rows_attention(q, k, values.expand(-1, kv_heads, -1), q_positions, scale)
        parts.append(seen[..., : chosen.shape[1]].mean(1))
    return torch.cat(parts, dim=1)


def attention_received(
    q: torch.Tensor, k: torch.Tensor, q_positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """fp32 [T']: what each key gets from all rows together, mean over query heads.

    `q` [R, Hq, D], `k` [T, Hkv, D]; T' = last position + 1; the entries sum to R. Cost: one
    explicit softmax per block of rows.
    """
    num_heads, kv_heads = q.shape[1], k.shape[1]
    context = int(q_positions[-1]) + 1
    blocks = cut_rows(q_positions, dtype=q.dtype, device=q.device)
    received = q.new_zeros(context, dtype=torch.float32)
    if products.pay(q.device, q.dtype, q.shape[0] * num_heads // kv_heads, context):
        for block, _, weights in products.attention_weights(q, k, blocks, scale):
            received[: block.context] += weights.sum(0, dtype=torch.float32)
        return received * (q.shape[0] / received.sum())
    for block in blocks:
        part = attention_probabilities(q[block.rows], k, q_positions[block.rows], scale)
        received[: block.context] += part.sum(dim=(0, 1))
    return received / num_heads
