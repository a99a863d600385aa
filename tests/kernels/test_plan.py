"""Plans: what all layers of a step share, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import chunkcache_kernels as kernels
from chunkcache_kernels.plan import ROW_BLOCK, contiguous_run, cut_rows

POOL = torch.zeros(600, 3, 16)


@given(st.lists(st.integers(-1, 40), max_size=12) | st.integers(0, 30).map(lambda n: [*range(n)]))
@example([4, 9, 6])  # as far apart as a run, and none
@settings(deadline=None, max_examples=60)
def test_a_run_is_recognised_exactly_when_the_slots_count_up(slots: list[int]) -> None:
    run = contiguous_run(torch.tensor(slots, dtype=torch.int64))
    counts_up = all(slot >= 0 for slot in slots) and slots == [
        *range(slots[0] if slots else 0, (slots[0] if slots else 0) + len(slots))
    ]
    assert (run is not None) == counts_up
    if run is not None:
        assert [*range(run.start, run.stop)] == slots


@given(st.sets(st.integers(0, 500), min_size=1, max_size=300), st.sampled_from([0, 3]))
@settings(deadline=None, max_examples=25)
def test_blocks_hide_exactly_the_future(chosen: set[int], mask_group: int) -> None:
    positions = torch.tensor(sorted(chosen))
    blocks = cut_rows(
        positions, dtype=torch.float32, device=torch.device("cpu"), mask_group=mask_group
    )
    covered = 0
    for block in blocks:
        assert block.rows.start == covered and block.rows.stop - covered <= ROW_BLOCK
        covered = block.rows.stop
        rows = positions[block.rows]
        assert block.context == int(rows[-1]) + 1
        mask = block.full_mask(3)
        if mask is None:
            assert len(rows) == 1
            continue
        sees = torch.arange(block.context)[None] <= rows.repeat(3)[:, None]
        assert torch.equal(mask == 0, sees) and torch.equal(mask == -torch.inf, ~sees)
        assert (block.mask is not None) == bool(mask_group)
    assert covered == len(positions)


@pytest.mark.parametrize("scattered", [False, True], ids=["one run", "scattered"])
def test_a_plan_says_where_rows_read_and_write(scattered: bool) -> None:
    slots = torch.randperm(600)[:50] if scattered else torch.arange(100, 150)
    positions = torch.tensor([3, 4, 5, 30])
    plan = kernels.plan_rows(positions, slots, like=POOL, num_heads=9)
    assert plan.context == 31 and torch.equal(plan.slots, slots[:31])
    numbers = torch.arange(600)
    read = plan.read if isinstance(plan.read, torch.Tensor) else numbers[plan.read]
    assert isinstance(plan.read, slice) != scattered
    assert torch.equal(read, slots[:31])
    assert isinstance(plan.write, torch.Tensor) and torch.equal(plan.write, slots[positions])


def test_a_plan_for_rows_in_a_row_writes_one_slice() -> None:
    plan = kernels.plan_rows(torch.arange(7, 12), torch.arange(40, 60), like=POOL, num_heads=3)
    assert plan.write == slice(47, 52)


@pytest.mark.parametrize(
    ("positions", "num_slots", "message"),
    [
        ([], 5, r"q_positions: got 0 rows, need at least 1"),
        ([3, 3], 5, r"q_positions: 3\.\.3 must be strictly increasing"),
        ([4, 2, 6], 9, r"q_positions: 4\.\.6 must be strictly increasing"),
        ([-1, 2], 5, r"q_positions: -1\.\.2 must be strictly increasing"),
        ([1, 5], 5, r"slots: got 5, need 6 for a row at position 5"),
    ],
    ids=["no rows", "a duplicate", "out of order", "negative", "a slot too few"],
)
def test_rows_that_make_no_sense_are_refused(
    positions: list[int], num_slots: int, message: str
) -> None:
    rows = torch.tensor(positions, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        kernels.plan_rows(rows, torch.arange(num_slots), like=POOL, num_heads=9)
