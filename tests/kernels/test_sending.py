"""Numbers for the device arrive as they are, however their arrays lie in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chunkcache_kernels.sending import index_of, rows_of, sent

CPU = torch.device("cpu")


def test_arrays_of_any_layout_arrive_in_one_copy() -> None:
    whole = np.arange(24, dtype=np.int64).reshape(4, 6)
    arrays = {
        "backwards": whole[::-1, ::-2],
        "a column": whole[:, 3],
        "none": whole[:0],
        "negative": -whole[1:3],
        "narrow": whole.astype(np.int32),
        "one": np.array(7),
    }
    found = sent(arrays, CPU)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == torch.int32 and found[name].tolist() == array.tolist(), name
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1


def test_a_number_that_is_too_large_for_the_device_is_none() -> None:
    with pytest.raises(AssertionError):
        sent({"far": np.array([2**31])}, CPU)


@pytest.mark.parametrize("rows", [[], [3], [2, 3, 4], [0, 2, 5]])
def test_rows_are_those_asked_for(rows: list[int]) -> None:
    x = torch.arange(18).reshape(6, 3)
    index = np.array(rows, dtype=np.int64)
    assert rows_of(x, index).tolist() == x[rows].tolist()
    assert index_of(index[::-1], CPU).tolist() == rows[::-1]
