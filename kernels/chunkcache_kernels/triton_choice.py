"""The largest scores of rows on a GPU. Twin: `choice.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_SCORES = 4096  # of a row that are looked at together
_WARPS = 8


@triton.jit
def _ordered(scores, index, length):  # type: ignore[no-untyped-def]
    """Whole numbers in the order of fp32 scores; below all of them where there is none."""
    score = tl.load(scores + index, mask=index < length, other=0.0)
    score = tl.where(score != score, -float("inf"), score) + 0.0  # of two zeros one
    bits = score.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    return tl.where(index < length, order, -(1 << 40))


@triton.jit(do_not_specialize=["length", "most"])  # type: ignore[untyped-decorator]
def topk_kernel(  # type: ignore[no-untyped-def]
    scores, counts, chosen, length, most, stride_row, BLOCK: tl.constexpr
):
    """One row: its k-th largest number bit by bit, then the places of those not below it."""
    row = tl.program_id(0)
    scores += row.to(tl.int64) * stride_row
    chosen += row.to(tl.int64) * most
    count = tl.load(counts + row)
    least = tl.full((), -(1 << 31), tl.int64)
    for bit in range(32):
        tried = least + (tl.full((), 1, tl.int64) << (31 - bit))
        found = 0
        for start in range(0, length, BLOCK):
            order = _ordered(scores, start + tl.arange(0, BLOCK), length)
            found += tl.sum((order >= tried).to(tl.int32), 0)
        least = tl.where(found >= count, tried, least)
    above = 0
    for start in range(0, length, BLOCK):
        order = _ordered(scores, start + tl.arange(0, BLOCK), length)
        above += tl.sum((order > least).to(tl.int32), 0)
    equals = 0
    done = 0
    for start in range(0, length, BLOCK):
        index = start + tl.arange(0, BLOCK)
        order = _ordered(scores, index, length)
        equal = (order == least).to(tl.int32)
        number = equals + tl.cumsum(equal, 0)  # of equal scores the first ones
        taken = (order > least) | ((equal == 1) & (number <= count - above))
        place = done + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(chosen + place, index, mask=taken)
        equals += tl.sum(equal, 0)
        done += tl.sum(taken.to(tl.int32), 0)
    for start in range(0, most, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(chosen + place, -1, mask=(place >= count) & (place < most))


def topk_rows(scores: torch.Tensor, counts: torch.Tensor, most: int) -> torch.Tensor:
    """See `choice.topk_rows`. Cost: one launch; a row's scores are looked at 34 times, in L2."""
    assert scores.dtype is torch.float32 and scores.stride(1) == 1
    assert counts.dtype is torch.int32 and counts.shape == scores.shape[:1]
    chosen = torch.empty((len(scores), most), dtype=torch.int32, device=scores.device)
    topk_kernel[(len(scores),)](
        scores, counts, chosen, scores.shape[1], most, scores.stride(0),
        BLOCK=min(_SCORES, triton.next_power_of_2(scores.shape[1])), num_warps=_WARPS,
        enable_fp_fusion=False,  # which Triton warns about where a launch names no choice
    )  # fmt: skip
    return chosen
