"""Pages and rows whose offsets need more than 32 bits, as pools of large cards have them.

Where an offset lost its upper bits, pages of NaN would be read, or another row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from triton_problems import BF16, CHUNKS, INT4, INT8, LAYER, LONG, NAN, PAGES, PRIVATE, Maker, Shape

from chunkcache_kernels import lay_out
from chunkcache_kernels.arena import Arena, Segment
from chunkcache_kernels.layout import SequenceLayout
from chunkcache_kernels.records import Form

WRAPS = 2**32  # elements
Wide = Callable[[tuple[int, ...], torch.dtype, torch.device], torch.Tensor]


@pytest.fixture
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wide:
    """Tensors whose memory comes when it is touched: files with holes. A GPU has enough."""
    from triton.runtime import interpreter

    # the interpreter copies all that it was given to where it came from
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    numbers = count()

    def made(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        path = tmp_path / f"{next(numbers)}"
        flat = torch.from_file(str(path), shared=True, size=prod(shape), dtype=dtype)
        path.unlink()  # it stays while it is mapped
        return flat.view(shape)

    return made


def parts(arena: Arena) -> list[torch.Tensor]:
    every = (arena.keys, arena.values, arena.key_scales, arena.value_scales)
    return [part for part in every if part is not None]


def far_twin(wide: Wide, near: Arena, layer: int) -> tuple[Arena, int]:
    """An arena of one layer with the same pages behind 2^32 elements, NaN where 32 bits would look;
    and how many pages there are before them.
    """
    before = WRAPS // near.keys[0, 0].numel()
    twins = []
    for part in parts(near):
        twin = wide((1, before + near.num_pages, *part.shape[2:]), part.dtype, part.device)
        twin[0, before:] = part[layer]
        twin[0, : near.num_pages] = NAN if part.is_floating_point() else 77
        twins.append(twin)
    return Arena(*twins), before


@pytest.mark.parametrize("pages", [BF16, INT8, INT4], ids=str)
def test_pages_and_rows_behind_four_thousand_million_numbers(
    pages: torch.dtype, wide: Wide, device: torch.device
) -> None:
    from chunkcache_kernels.triton_pages import TritonStep

    shape = Shape((4, 1), 64, page_tokens=16, rows=BF16, arenas=(BF16, pages))
    problem = Maker(shape, device, True).make(LONG)
    (own, before), (chunks, of_chunks) = (far_twin(wide, a, LAYER) for a in problem.arenas)
    moved = {PRIVATE: before, CHUNKS: of_chunks}
    sequences = [
        SequenceLayout(s.positions, [replace_pages(of, moved[of.arena]) for of in s.segments])
        for s in problem.layout.sequences
    ]
    rows = len(problem.qkv)
    stride = WRAPS // (rows - 4)
    apart = wide((rows + 8, stride), BF16, device)[8:]  # rows 8 to 15 would be those before it
    apart[:, : problem.qkv.shape[1]] = problem.qkv
    layout = lay_out(sequences, page_tokens=16, group=4)
    step = TritonStep.bind(layout, [own, chunks], problem.heads, problem.rotary)
    qkv, slots = apart[:, : problem.qkv.shape[1]], problem.slots + np.int32(before * 16)
    step.write(0, qkv, slots, arena=PRIVATE)
    assert torch.equal(step.attend(0, qkv), problem.run())
    for twin, near in zip(parts(own), parts(problem.arenas[PRIVATE]), strict=True):
        assert torch.equal(twin[0, before:].nan_to_num(9), near[LAYER].nan_to_num(9))


def replace_pages(segment: Segment, before: int) -> Segment:
    return replace(segment, pages=segment.pages + np.int32(before))


@pytest.mark.parametrize("kept", [BF16, INT8, INT4], ids=str)
def test_records_come_to_pages_behind_them(
    kept: torch.dtype, wide: Wide, device: torch.device
) -> None:
    from chunkcache_kernels import triton_records

    form = Form(25, 1, 64, BF16)
    coded = torch.randn(1, form.layer_bytes // 2).to(device, BF16).view(torch.uint8)
    angles = torch.rand(2, 25, 64, device=device).unbind()
    near = Arena.empty(1, PAGES, 1, 64, 16, dtype=kept, device=device)
    for part in parts(near):
        part.fill_(5)
    far, before = far_twin(wide, near, 0)
    pages = np.array([7, 3])
    triton_records.promote(near, 0, coded, form, pages, angles)
    triton_records.promote(far, 0, coded, form, pages + before, angles)
    for twin, part in zip(parts(far), parts(near), strict=True):
        assert torch.equal(twin[0, before:], part[0])
