"""Launches as they come to be: Triton compiles another kernel for a number that is 1, for a pointer
that is none or at no multiple of 16; its interpreter knows no such kinds.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from triton_launches import Launches
from triton_problems import BF16, F16, F32, INT4, INT8, LAYER, PRIVATE, Maker, Shape

from chunkcache_kernels.arena import Arena
from chunkcache_kernels.records import Form

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled"
)


@pytest.fixture
def launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launches:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = Launches()
    made.install(monkeypatch, capability=80)
    return made


CPU = torch.device("cpu")


def test_steps_of_one_row_one_window_and_one_position(launches: Launches) -> None:
    from chunkcache_kernels.triton_pages import TritonStep
    from chunkcache_kernels.triton_weights import TritonWeights

    shape = Shape((1, 1), 16, page_tokens=8, rows=BF16, arenas=(BF16, INT8), window=1, block=1)
    problem = Maker(shape, CPU, True).make([([0], [])])
    of = problem.layout, problem.arenas, problem.heads, problem.rotary
    step = TritonStep.bind(*of)
    step.write(LAYER, problem.qkv, problem.slots, arena=PRIVATE)
    step.attend(LAYER, problem.qkv)
    weights = TritonWeights.bind(*of)
    weights.received(LAYER, problem.query(), torch.ones(1))
    names = [name for name, _ in launches.done]
    assert names == ["bound_kernel", "write_kernel", "attend_kernel", "bound_kernel",
                     "attend_kernel", "received_kernel"]  # fmt: skip


def test_no_number_of_rows_is_compiled_for(launches: Launches) -> None:
    """A second of compiling, in the middle of the answers of others."""
    from chunkcache_kernels.triton_pages import TritonStep

    for rows in (1, 16, 17):
        problem = Maker(Shape((1, 1), 16, page_tokens=8), CPU, True).make([([*range(rows)], [])])
        step = TritonStep(
            problem.arenas, problem.heads, problem.rotary, rows,
            {"items": torch.zeros(4), "row_positions": torch.zeros(rows, dtype=torch.int32)}, [],
            (problem.qkv,) * 3, problem.qkv,
        )  # fmt: skip
        step.write(LAYER, problem.qkv, problem.slots)
    assert len({id(made) for _, made in launches.done}) == 1 and len(launches.done) == 3


def test_records_of_one_token_and_scores_of_one_column(launches: Launches) -> None:
    from chunkcache_kernels import triton_choice, triton_records

    for bits, kept in ((0, F16), (8, INT8), (4, INT4)):
        form = Form(1, 1, 16, F32, bits, 1 if bits else 0)
        arena = Arena.empty(1, 1, 1, 16, 8, dtype=kept, device=CPU)
        coded = torch.zeros((1, form.layer_bytes), dtype=torch.uint8)
        angles = torch.zeros(1, 16), torch.zeros(1, 16)
        triton_records.promote(arena, 0, coded, form, np.zeros(1, np.int64), angles)
    triton_records.quantise(torch.zeros(1, 2, 1, 1, 16), form)
    for columns, most in ((1, 1), (17, 1)):
        triton_choice.topk_rows(torch.zeros(2, columns), torch.ones(2, dtype=torch.int32), most)
    assert len(launches.done) == 6 and all("cubin" in made.asm for _, made in launches.done)
