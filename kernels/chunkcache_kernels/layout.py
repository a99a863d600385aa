"""The rows of a step over the segments of their sequences, as arrays: made once, for all layers.

A *run* is a piece of a segment's pages. Rows of all sequences that look at the same pages *look*
together: they become queries of one product, each with its own turn and its own visible keys
(shared-prefix attention, Hydragen, arXiv 2402.05099, for passages at any place). Each look gives a
*part* of its row's attention; a row's parts are merged by their largest scores and sums
(log-sum-exp, FlashAttention, arXiv 2205.14135, §3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache_kernels.arena import Segment

RUN_PAGES = 16  # a run of few queries has at most so many pages, so that a team can share it
ITEM_QUERIES = 48  # rows times query heads per key head that one product takes


@dataclass(slots=True, eq=False)
class SequenceLayout:
    """Rows of one sequence: `positions` int64 `[R]`, increasing, and the segments they look at."""

    positions: np.ndarray
    segments: Sequence[Segment]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Arrays of a step, int32 and contiguous; rows are numbered through all sequences."""

    sequences: tuple[SequenceLayout, ...]
    row_positions: np.ndarray  # [rows]
    runs: np.ndarray  # [runs, 3]: arena, first of its pages in `pages`, how many
    run_looks: np.ndarray  # [runs, 2]: first look, how many
    pages: np.ndarray
    looks: np.ndarray  # [looks, 4]: row, turn, first key position, part
    key_positions: np.ndarray
    items: np.ndarray  # [items, 3]: run, first look, how many looks
    row_parts: np.ndarray  # [rows + 1]

    @property
    def num_rows(self) -> int:
        """Rows of all sequences."""
        return len(self.row_positions)

    @property
    def longest_turn(self) -> int:
        """The largest distance of a row to 0 or to a segment's begin, which may be below 0."""
        return max(
            int(s.positions[-1]) - min(0, min(segment.begin for segment in s.segments))
            for s in self.sequences
        )


def lay_out(sequences: Sequence[SequenceLayout], *, page_tokens: int, group: int) -> Layout:
    """Arrays for the rows of some sequences; `group` is query heads per key head.

    Every row must see at least one key (its own). Cost: numpy, a few steps for each segment.
    """
    runs: dict[tuple[int, bytes], _Run] = {}
    first_row = 0
    key_parts: list[np.ndarray] = []
    num_keys = 0
    for sequence in sequences:
        rows = np.arange(first_row, first_row + len(sequence.positions), dtype=np.int32)
        first_row += len(rows)
        few = len(rows) * group < ITEM_QUERIES
        for segment in sequence.segments:
            step = RUN_PAGES if few else len(segment.pages)
            key_parts.append(segment.key_positions)
            # rows before the segment see nothing of it
            seeing = rows[np.searchsorted(sequence.positions, segment.begin) :]
            for start in range(0, len(segment.pages) if len(seeing) else 0, step):
                pages = segment.pages[start : start + step]
                run = runs.setdefault((segment.arena, pages.tobytes()), _Run(pages))
                run.looks.append((seeing, segment.begin, num_keys + start * page_tokens))
            num_keys += len(segment.key_positions)
    return _arrays(sequences, runs, key_parts, group)


class _Run:
    """Pages, and who looks at them: rows, their turn, where their key positions begin."""

    def __init__(self, pages: np.ndarray) -> None:
        self.pages = pages
        self.looks: list[tuple[np.ndarray, int, int]] = []


def _arrays(
    sequences: Sequence[SequenceLayout],
    runs: dict[tuple[int, bytes], _Run],
    key_parts: list[np.ndarray],
    group: int,
) -> Layout:
    positions = np.concatenate([s.positions for s in sequences]).astype(np.int32)
    looks = np.empty((sum(len(r) for run in runs.values() for r, _, _ in run.looks), 4), np.int32)
    run_rows: list[tuple[int, int, int]] = []
    run_looks: list[tuple[int, int]] = []
    items: list[tuple[int, int, int]] = []
    first_page = first_look = 0
    most = max(1, ITEM_QUERIES // group)
    for number, ((arena, _), run) in enumerate(runs.items()):
        run_rows.append((arena, first_page, len(run.pages)))
        first_page += len(run.pages)
        begin = first_look
        for rows, turn, first_key in run.looks:
            part = looks[first_look : first_look + len(rows)]
            part[:, 0], part[:, 1], part[:, 2] = rows, turn, first_key
            first_look += len(rows)
        run_looks.append((begin, first_look - begin))
        items += [(number, at, min(most, first_look - at)) for at in range(begin, first_look, most)]
    order = np.argsort(looks[:, 0], kind="stable")
    looks[order, 3] = np.arange(len(looks), dtype=np.int32)
    counts = np.bincount(looks[:, 0], minlength=len(positions))
    assert counts.min() > 0, "a row sees no key"
    return Layout(
        sequences=tuple(sequences),
        row_positions=positions,
        runs=np.array(run_rows, dtype=np.int32),
        run_looks=np.array(run_looks, dtype=np.int32),
        pages=np.concatenate([run.pages for run in runs.values()]).astype(np.int32),
        looks=looks,
        key_positions=np.ascontiguousarray(np.concatenate(key_parts), dtype=np.int32),
        items=np.array(items, dtype=np.int32),
        row_parts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    )
