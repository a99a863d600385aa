"""Pages by head: full lists for retrieval heads, first and last positions for streaming ones."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from triton_problems import (
    BF16,
    CHUNKS,
    F16,
    INT8,
    LAYER,
    NAN,
    PRIVATE,
    Maker,
    Passage,
    Problem,
    Shape,
)

from chunkcache_kernels import lay_out
from chunkcache_kernels.arena import HIDDEN, Segment
from chunkcache_kernels.head_lists import Kind, PortableHeads, check_kinds, streamed
from chunkcache_kernels.layout import SequenceLayout

if TYPE_CHECKING:
    from chunkcache_kernels.portable import Heads

pytestmark = pytest.mark.usefixtures("poisoned_empty")

FIRST, LAST = 9, 12
RETRIEVAL, STREAMING = (1,), (2, 0)  # key heads
# rows enough for tiles of their own; replaced rows among the first, the last and between
ROWS = [*range(130, 150), *range(159, 166)]
PASSAGES = [Passage(0, 120, 6, 0, (1, 50, 119)), Passage(1, 9, 150)]
SMALL = [20, 21], [Passage(1, 9, 0), Passage(1, 9, 10, 2)]


def shown(sequence: SequenceLayout) -> list[int]:
    at = np.concatenate([segment.key_positions for segment in sequence.segments])
    return sorted(at[at != HIDDEN].tolist())


def kinds_of(problem: Problem) -> list[Kind]:
    page, group = problem.shape.page_tokens, problem.heads.heads // problem.heads.kv_heads
    near = [streamed(s, first=FIRST, last=LAST) for s in problem.layout.sequences]
    short = lay_out(near, page_tokens=page, group=group)
    assert len(short.pages) < len(problem.layout.pages) * 2 / 3
    return [Kind(RETRIEVAL, problem.layout), Kind(STREAMING, short)]


def poison_unlisted(problem: Problem, short: Kind) -> None:
    """NaN for what streaming heads have in pages that are not in their list."""
    for number, arena in enumerate(problem.arenas):
        listed = [
            segment.pages
            for sequence in short.layout.sequences
            for segment in sequence.segments
            if segment.arena == number
        ]
        others = np.setdiff1d(np.arange(arena.num_pages), np.concatenate(listed))
        for head in short.kv_heads:
            if arena.key_scales is not None and arena.value_scales is not None:
                arena.key_scales[:, others, head] = NAN
                arena.value_scales[:, others, head] = NAN
            else:
                arena.keys[:, others, head] = NAN
                arena.values[:, others, head] = NAN


def few(heads: Heads, of: tuple[int, ...]) -> list[int]:
    """The query heads of some key heads."""
    group = heads.heads // heads.kv_heads
    return [head * group + n for head in of for n in range(group)]


SHAPES = {
    "fp16": Shape((6, 3), 16, page_tokens=8, rows=F16, arenas=(F16, F16), has_sinks=True),
    "bf16 over int8": Shape((6, 3), 24, page_tokens=8, rows=BF16, arenas=(BF16, INT8)),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_each_head_sees_its_own_pages_and_reads_no_other(
    shape: Shape, device: torch.device
) -> None:
    """Tiles of rows beside rows that share."""
    from chunkcache_kernels.triton_heads import TritonHeads

    problem = Maker(shape, device, True).make([(ROWS, PASSAGES), SMALL])
    problem.run_twin()
    sinks, kinds = problem.sinks(), kinds_of(problem)
    whole = problem.bind().attend(LAYER, problem.qkv, sinks=sinks)
    poison_unlisted(problem, kinds[1])
    of = problem.arenas, problem.heads, problem.rotary
    ours = TritonHeads.bind(kinds, *of)
    answer = ours.attend(LAYER, problem.qkv, sinks=sinks)
    twin = PortableHeads.bind(kinds, *of).attend(LAYER, problem.qkv, sinks=sinks)
    close = 8 * torch.finfo(shape.rows).eps  # as far as what rounds elsewhere may be
    torch.testing.assert_close(answer, twin, rtol=close, atol=close)
    same = (answer == whole).unflatten(1, (problem.heads.heads, -1)).all(2)
    assert same[:, few(problem.heads, RETRIEVAL)].all(), "retrieval heads look at everything"
    assert not same[ROWS.index(165), few(problem.heads, STREAMING)].any(), "the others do not"
    assert not any(step.counters.any() for step in ours.steps)


def test_the_twin_is_what_is_defined(device: torch.device) -> None:
    """One row: the definition, in fp64, over a problem that has nothing else in its prompt."""
    shape = Shape((6, 3), 16, page_tokens=8, has_sinks=True)
    problem = Maker(shape, device, True).make([([165], PASSAGES)])
    problem.run_twin()
    kinds, sinks = kinds_of(problem), problem.sinks()
    assert sinks is not None
    of = problem.arenas, problem.heads, problem.rotary
    answer = PortableHeads.bind(kinds, *of).attend(LAYER, problem.qkv, sinks=sinks)
    at, _, values = problem.truth[0]
    scores = problem.scores(0)  # [heads, 1, keys]
    near = torch.from_numpy((at < FIRST) | (at >= 165 - LAST))
    streaming = few(problem.heads, STREAMING)
    scores[streaming] = scores[streaming].masked_fill(~near, -torch.inf)
    weights = torch.cat([scores, sinks.double()[:, None, None]], dim=-1).softmax(-1)[..., :-1]
    wide = values.double().repeat_interleave(2, dim=1)
    exact = torch.einsum("hrt,thd->rhd", weights, wide).flatten(1)
    torch.testing.assert_close(answer.double(), exact, rtol=1e-5, atol=1e-6)


def test_the_list_of_a_streaming_head() -> None:
    pages = np.arange(6, dtype=np.int32)
    chunk = Segment.of_chunk(CHUNKS, pages, 8, 3, 1, 45)  # positions 4 to 47
    chunk.hide(np.array([5, 40, *range(43, 48)]))  # the last page as a whole
    own = Segment(PRIVATE, pages[:1], 0, np.array([0, 1, 2, 5, 40, 46, 48, 49], np.int32))
    sequence = SequenceLayout(np.array([46, 48, 49]), [chunk, own])
    near = streamed(sequence, first=5, last=7)
    assert shown(near) == [0, 1, 2, 4, 39, 40, 41, 42, 46, 48, 49], "40 and 46 are its own"
    assert near.segments[0].pages.tolist() == [0, 4], "whole pages of nobody are left out"
    assert len(near.segments[0].key_positions) == 16 and near.segments[0].begin == 3
    alone = streamed(SequenceLayout(np.array([49]), [own]), first=0, last=0)
    assert shown(alone) == [49], "a row sees itself"
    assert shown(streamed(sequence, first=99, last=0)) == shown(sequence)
    assert shown(sequence)[:3] == [0, 1, 2], "the whole list is as it was"


def test_kinds_that_are_none_are_refused(device: torch.device) -> None:
    problem = Maker(Shape((6, 3), 16, page_tokens=8), device, True).make([SMALL])
    other = deepcopy(problem.layout)
    other.row_positions[0] -= 1
    for kinds in (
        [Kind((0, 1), problem.layout)],
        [Kind((0, 1, 2), problem.layout), Kind((2,), problem.layout)],
        [Kind((0, 1, 2), problem.layout), Kind((), problem.layout)],
        [Kind((0, 1), problem.layout), Kind((2,), other)],
    ):
        with pytest.raises(AssertionError):
            check_kinds(kinds, problem.heads)
