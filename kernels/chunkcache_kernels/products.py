"""Row attention in bf16 on processors with bf16 products: two plain matrix products per head.

Torch's own CPU attention multiplies bf16 at the speed of fp32 where there is no AMX; its plain
matrix products run four times as fast there (benchmarks/bench_kernels.py). What they lack is an
fp32 result: a score of 20 comes back rounded to steps of 1/8. Softmax only sees differences to
the row's largest score, so the product is made twice, first to learn that score and then with it
subtracted inside the fp32 accumulator. The scores that matter are then near zero, where bf16 is
fine, and the error no longer grows with a bias that all keys share.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from chunkcache_kernels.plan import ROW_BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chunkcache_kernels.plan import RowBlock

# Below this many scores per key head, starting three products costs more than they save.
MIN_SCORES = 100_000


@functools.cache
def has_bf16_products() -> bool:
    """Whether this processor multiplies bf16 natively."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def pay(device: torch.device, dtype: torch.dtype, folded_rows: int, context: int) -> bool:
    """Whether so many rows per key head over so many keys are attended faster here.

    `folded_rows` is rows times query heads per key head.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return folded_rows * context >= MIN_SCORES and has_bf16_products()


def rows_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: Sequence[RowBlock], scale: float
) -> torch.Tensor:
    """[R, Hq, D] of bf16 `q` [R, Hq, D] over `k`, `v` [T, Hkv, D], block by block.

    Cost per key head: three products (two of them the scores) and one softmax in place.
    """
    num_rows, num_heads, dim = q.shape
    kv_heads = k.shape[1]
    group = num_heads // kv_heads
    out = torch.empty_like(q)
    folded_out = q.new_empty((kv_heads, group * min(ROW_BLOCK, num_rows), dim))
    for block, head, weights in attention_weights(q, k, blocks, scale):
        part = folded_out[:, : weights.shape[0]]
        torch.mm(weights, v[: block.context, head], out=part[head])
        if head == kv_heads - 1:
            unfolded = part.view(kv_heads, group, -1, dim).permute(2, 0, 1, 3)
            out[block.rows].view(-1, kv_heads, group, dim).copy_(unfolded)
    return out


def attention_weights(
    q: torch.Tensor, k: torch.Tensor, blocks: Sequence[RowBlock], scale: float
) -> Iterator[tuple[RowBlock, int, torch.Tensor]]:
    """Per block and key head: bf16 softmax weights [group · rows, block.context].

    Rows are ordered query head of the group first. The tensor is overwritten by the next step.
    """
    num_rows, num_heads, dim = q.shape
    kv_heads = k.shape[1]
    group = num_heads // kv_heads
    most_rows, longest = min(ROW_BLOCK, num_rows), blocks[-1].context
    scratch = q.new_empty(group * most_rows * longest)
    for block in blocks:
        rows = block.rows.stop - block.rows.start
        folded = q[block.rows].view(rows, kv_heads, group, dim).permute(1, 2, 0, 3)
        folded = folded.reshape(kv_heads, group * rows, dim)
        scores = scratch[: group * rows * block.context].view(group * rows, block.context)
        for head in range(kv_heads):
            keys = k[: block.context, head].t()
            torch.mm(folded[head], keys, out=scores)
            _hide(scores, block, group)
            torch.addmm(row_max(scores), folded[head], keys, beta=-scale, alpha=scale, out=scores)
            _hide(scores, block, group)
            yield block, head, torch.softmax(scores, -1, out=scores)


def _hide(scores: torch.Tensor, block: RowBlock, group: int) -> None:
    if block.ragged is not None:
        scores.view(group, -1, block.context)[..., block.shared :].add_(block.ragged)


def row_max(scores: torch.Tensor) -> torch.Tensor:
    """`scores.amax(-1, keepdim=True)` of bf16 [n, T], at the speed of integers.

    The bits of bf16, read as int16, order like the numbers where those are positive and the other
    way round where they are negative: the largest number is the largest integer if that is
    positive, else the smallest. Torch's bf16 maximum widens to fp32 and takes eight times as long.
    """
    bits = scores.view(torch.int16)
    largest = bits.amax(-1, keepdim=True)
    smallest = bits.amin(-1, keepdim=True)
    return torch.where(largest >= 0, largest, smallest).view(torch.bfloat16)
