"""What Triton's kernels ask of strides: the numbers of a head are neighbours in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def packed(rows: torch.Tensor) -> torch.Tensor:
    """`rows` [T, H, D] with the numbers of a head side by side; a copy only where they are not."""
    return rows if rows.stride(2) == 1 else rows.contiguous()


def check_pools(*pools: torch.Tensor) -> None:
    """Refuse pools [S, H, D] that a kernel would read or write elsewhere; they are never copied.

    Raises:
        ValueError: the numbers of a head are not neighbours.
    """
    for pool in pools:
        if pool.stride(2) != 1:
            raise ValueError(
                f"pool: its strides are {pool.stride()}, the last must be 1. Hint: allocate pools "
                "as [slots, heads, dim]; views of their slots or heads are fine."
            )
