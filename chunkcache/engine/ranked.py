"""Rows to repair, chosen where their scores lie: only which rows they are comes to the host.

Plans are made on the host, so that much it has to know; before, it read every score and sorted them
while the device had nothing to do. Twin: `choose` and `weigh` of the policies, and `residual`, in
numpy (repair/select.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.repair.select import reusable_positions
from chunkcache_kernels.choice import topk_rows
from chunkcache_kernels.sending import pins, runs_triton, sent

if TYPE_CHECKING:
    from chunkcache.repair.base import RepairTask, RowSelection


def ranks_on(device: torch.device) -> bool:
    """Whether scores lie where the host would wait for them, and sums in fp64 are known there."""
    return pins(device)


def chosen(
    task: RepairTask, selection: RowSelection, scores: torch.Tensor
) -> tuple[np.ndarray, float]:
    """Positions as `RepairPolicy.choose` gives them, and what `residual` says of them.

    `scores` fp32 `[prompt tokens]`. Cost: some twenty small operations on the device, one read of
    as many numbers as rows are chosen.
    """
    found = _ranked(task, selection, scores).cpu().numpy()
    return reusable_positions(task)[found[:-1].astype(np.int64)], float(found[-1])


def _ranked(task: RepairTask, selection: RowSelection, scores: torch.Tensor) -> torch.Tensor:
    """fp64 `[rows + 1]`: the places of the largest among the reusable rows, then the residual."""
    device, lengths = scores.device, [chunk.num_tokens for chunk in task.chunks]
    ends = np.cumsum(lengths)
    there = sent(
        {
            "positions": reusable_positions(task),
            "first": np.repeat(ends - lengths, lengths),
            "end": np.repeat(ends, lengths),
        },
        device,
    )
    own = scores[there["positions"].long()]
    if selection.before or selection.after:
        own = _averaged(own, there["first"], there["end"], selection)
    count = min(selection.count, len(own))
    places = _largest(own, count)
    mass = torch.where(own.isfinite() & (own > 0), own, 0.0).double()
    left = 1.0 - mass[places.long()].sum() / mass.sum()
    left = torch.where(mass.sum() > 0, left.clamp(min=0.0), 0.0)
    return torch.cat([places.double(), left[None]])


def _averaged(
    own: torch.Tensor, first: torch.Tensor, end: torch.Tensor, selection: RowSelection
) -> torch.Tensor:
    """fp32 scores averaged in fp64 over neighbours from row `first` of its chunk to its `end`."""
    known = torch.where(own.isfinite(), own, 0.0).double()
    index = torch.arange(len(own), device=own.device)[:, None]
    at = index + torch.arange(-selection.before, selection.after + 1, device=own.device)
    inside = (at >= first[:, None]) & (at < end[:, None])
    windows = torch.where(inside, known[at.clamp(0, len(own) - 1)], 0.0)
    sums = windows[:, 0]
    for column in windows.unbind(1)[1:]:  # in this order, as on the host
        sums = sums + column
    return (sums / inside.sum(1)).float()


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """int32 `[count]`: the places of the largest, increasing."""
    counts = torch.full((1,), count, dtype=torch.int32, device=scores.device)
    topk = topk_rows
    if runs_triton(scores.device):
        from chunkcache_kernels import triton_choice

        topk = triton_choice.topk_rows
    return topk(scores[None], counts, count)[0]
