"""What all layers of a step over slots share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache_kernels import products
from chunkcache_kernels.plan import RowPlan, check_rows, contiguous_run, cut_rows

if TYPE_CHECKING:
    import torch


def plan_rows(
    q_positions: torch.Tensor,
    slots: torch.Tensor,
    *,
    like: torch.Tensor,
    num_heads: int,
) -> RowPlan:
    """Resolve one sequence's rows once, for all layers of a step.

    Args:
        q_positions: int64 [R], R ≥ 1, strictly increasing, not negative.
        slots: int64, at least last position + 1 long: the key of position p is at `slots[p]`.
        like: a key pool [S, Hkv, D]; says device, number type and key heads.
        num_heads: query heads.

    Raises:
        ValueError: no rows, positions out of order, or fewer slots than positions.

    Cost: where torch's own attention will run, R · T · num_heads / Hkv numbers for masks.
    """
    context = check_rows(q_positions, slots)
    read, write = slots[:context], slots[q_positions]
    read_run, write_run = contiguous_run(read), contiguous_run(write)
    device, dtype = like.device, like.dtype
    group = num_heads // like.shape[1]
    masked = not products.pay(device, dtype, q_positions.shape[0] * group, context)
    blocks = cut_rows(q_positions, dtype=dtype, device=device, mask_group=group if masked else 0)
    return RowPlan(
        q_positions=q_positions.to(device),
        slots=read.to(device),
        context=context,
        read=read.to(device) if read_run is None else read_run,
        write=write.to(device) if write_run is None else write_run,
        blocks=blocks,
    )
