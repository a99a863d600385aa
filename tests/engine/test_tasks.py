"""How many layers a loader's thread brings up at a time."""

from __future__ import annotations

import pytest

from chunkcache.engine.loader import end_of_task


@pytest.mark.parametrize(("layer_bytes", "ends"), [
    (98_304, [10, 30]), (196_608, [5, 15, 30]), (393_216, [2, 6, 16, 26, 30]), (9 << 20, None),
    (1, [30]), (0, [30]),
])  # fmt: skip
def test_tasks_grow_and_leave_no_small_rest(layer_bytes: int, ends: list[int] | None) -> None:
    found = [end_of_task(0, layer_bytes, 30)]
    while found[-1] < 30:
        found.append(end_of_task(found[-1], layer_bytes, 30))
    assert found == (ends or [*range(1, 31)])
