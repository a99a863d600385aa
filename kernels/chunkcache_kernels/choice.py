"""The largest scores of rows, so that a choice of rows to repair never leaves the device."""

from __future__ import annotations

import torch


def topk_rows(scores: torch.Tensor, counts: torch.Tensor, most: int) -> torch.Tensor:
    """int32 `[n, most]`: of each row of fp32 `scores` `[n, columns]` the places of the `counts`
    (int32 `[n]`, at most `most` and the columns) largest, increasing; -1 behind them.

    Of equal scores the first ones; NaN comes last.
    """
    known = torch.where(scores.isnan(), -torch.inf, scores)
    order = known.sort(dim=1, descending=True, stable=True).indices
    nowhere = scores.shape[1]
    number = torch.arange(nowhere, device=scores.device)
    chosen = order.masked_fill(number[None] >= counts[:, None], nowhere).sort(dim=1).values
    chosen = torch.nn.functional.pad(chosen[:, :most], (0, max(0, most - nowhere)), value=nowhere)
    return chosen.masked_fill(chosen == nowhere, -1).int()
