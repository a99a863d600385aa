"""Programs of one launch in any order, and few at a time: parts of a row are merged in the launch
that makes them.

A program never waits for another one: who counts the last part of a row merges it. So no order and
no number of processors can stop a launch, and none may show in the answer.
"""

from __future__ import annotations

import pytest
import torch
from triton_orders import Interleaved
from triton_problems import BF16, LAYER, LONG, ONE_ROW, SHARED, Maker, Shape

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SCENES = {"runs that share": ([*ONE_ROW, *SHARED[1:2]], 8), "tiles that are cut": (LONG[:1], 8)}


@pytest.mark.parametrize(
    ("scene", "resident"), [("runs that share", 1), ("tiles that are cut", 99)]
)
def test_no_order_of_programs_shows(
    scene: str, resident: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type != "cpu":
        pytest.skip("a GPU has an order of its own")
    sequences, page = SCENES[scene]
    shape = Shape((4, 1), 16, page_tokens=page, rows=BF16, arenas=(BF16, BF16), has_sinks=True)
    problem = Maker(shape, device, True).make(sequences)
    in_order = problem.run()
    step = problem.bind()
    assert step.parts[1].numel() > 8, "several parts"
    orders = Interleaved(resident, seed=resident)
    orders.install(monkeypatch)
    for _ in range(2):  # the next layer, or the next replay of a graph, finds the counters at 0
        step.parts[0].fill_(torch.nan)  # a part that is read before it is written
        assert torch.equal(step.attend(LAYER, problem.qkv, sinks=problem.sinks()), in_order)
        assert not step.counters.any()
    assert orders.turns > 30
