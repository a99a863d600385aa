"""What every layer of a step would otherwise work out again: where rows read, write and look.

A plan is made once per step and sequence (`dispatch.plan_rows`). It turns positions and slots into
plain numbers, slices and masks, so that no layer compares slots, builds a mask or waits for a
device to say a position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

# Query rows per attention call. Small enough that little of the upper triangle is computed in
# vain, large enough that the products stay efficient; measured in benchmarks/bench_kernels.py.
ROW_BLOCK = 128


@dataclass(frozen=True, slots=True, eq=False)
class RowBlock:
    """Neighbouring rows that one attention call computes.

    Keys below `shared` are seen by every row of the block; those in `[shared, context)` by some.
    """

    rows: slice
    shared: int
    context: int
    ragged: torch.Tensor | None  # [rows, context - shared], 0 or -inf; None for a single row
    mask: torch.Tensor | None = None  # [group * rows, context], the same for all keys, made ahead

    def full_mask(self, group: int) -> torch.Tensor | None:
        """[group · rows, context] to add to the scores; None when the block hides nothing.

        Cost: group · rows · context numbers written, unless `mask` was made ahead.
        """
        if self.mask is not None or self.ragged is None:
            return self.mask
        mask = self.ragged.new_zeros((self.ragged.shape[0], self.context))
        mask[:, self.shared :] = self.ragged
        return mask.repeat(group, 1)


@dataclass(frozen=True, slots=True, eq=False)
class RowPlan:
    """The rows of one sequence in one step, resolved on the device of the pools."""

    q_positions: torch.Tensor  # int64 [R], increasing
    slots: torch.Tensor  # int64 [context]: the slot of every position up to the last row's
    context: int
    read: torch.Tensor | slice  # `slots`, or the run they are: what `gather_kv` takes
    write: torch.Tensor | slice  # the slots of the rows themselves: what `place_kv` takes
    blocks: tuple[RowBlock, ...]  # empty where a Triton kernel does without


def check_rows(q_positions: torch.Tensor, slots: torch.Tensor) -> int:
    """The context (last position + 1) of rows that make sense.

    Raises:
        ValueError: they do not; the message names the field, its value and the limit.
    """
    if q_positions.numel() == 0:
        raise ValueError("q_positions: got 0 rows, need at least 1. Hint: skip empty sequences.")
    first, last = int(q_positions[0]), int(q_positions[-1])
    if first < 0 or not bool((q_positions[1:] > q_positions[:-1]).all()):
        raise ValueError(
            f"q_positions: {first}..{last} must be strictly increasing from 0 or more. "
            "Hint: sort the rows by position and drop duplicates."
        )
    if last >= slots.shape[0]:
        raise ValueError(
            f"slots: got {slots.shape[0]}, need {last + 1} for a row at position {last}. "
            "Hint: reserve blocks for the rows before planning them."
        )
    return last + 1


def cut_rows(
    q_positions: torch.Tensor, *, dtype: torch.dtype, device: torch.device, mask_group: int = 0
) -> tuple[RowBlock, ...]:
    """Blocks of at most `ROW_BLOCK` rows with what each may see.

    `mask_group` > 0 makes the full masks ahead for that many query heads per key head.
    """
    cut = []
    for start in range(0, q_positions.shape[0], ROW_BLOCK):
        positions = q_positions[start : start + ROW_BLOCK]
        rows = slice(start, start + positions.shape[0])
        shared, context = int(positions[0]) + 1, int(positions[-1]) + 1
        ragged = None
        if positions.shape[0] > 1:
            keys = torch.arange(shared, context, device=positions.device)
            hidden = (keys[None] > positions[:, None]).to(device)
            ragged = torch.zeros(hidden.shape, dtype=dtype, device=device)
            ragged.masked_fill_(hidden, float("-inf"))
        block = RowBlock(rows, shared, context, ragged)
        if mask_group:
            block = replace(block, mask=block.full_mask(mask_group))
        cut.append(block)
    return tuple(cut)


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
