"""What each program of a GPU's attention does, out of a layout: numpy, once for all layers.

An *item* is the work of one program for each key head: some rows, and the *stretches* of pages that
they walk along, one after another; each item gives one *part* of its rows' attention. Two kinds:

- *shared*: rows of any sequences that look at one run of pages, each with its own turn. A decoding
  row is spread over as many items as it has runs, so that one row alone keeps the GPU busy
  (LeanAttention, arXiv 2405.10480), and a page is loaded once for all rows that look at it.
- *chained*: a tile of one sequence's rows walks along all its segments and is turned anew at each.
  Its pages are shared out among several items only where there are fewer tiles than programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chunkcache_kernels.layout import ITEM_QUERIES, RUN_PAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache_kernels.layout import Layout, SequenceLayout


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Arrays of int32, contiguous."""

    items: np.ndarray  # [items, 4]: first entry, how many, first stretch, how many
    entries: np.ndarray  # [entries, 2]: row, part
    # [stretches, 6]: first page, how many, first look, 1 if each row has a look of its own, arena,
    # item; else all have the first look, and key positions are those of the pages
    stretches: np.ndarray
    looks: np.ndarray  # [looks, 2]: where the segment begins, first key position
    pages: np.ndarray  # of all segments; page n has key positions from n · page_tokens on
    row_parts: np.ndarray  # [rows + 1]
    num_shared: int  # items before the chained ones

    @property
    def most_rows(self) -> tuple[int, int]:
        """Rows of the largest shared and of the largest chained item; 0 for none."""
        shared, chained = np.split(self.items[:, 1], [self.num_shared])
        return int(shared.max(initial=0)), int(chained.max(initial=0))

    @property
    def is_merged(self) -> bool:
        """Whether any row has several parts."""
        return bool((np.diff(self.row_parts) > 1).any())


@dataclass(slots=True, eq=False)
class _Work:
    """Items of one kind, numbered from 0: counts of what belongs to each, and what it is."""

    rows: np.ndarray  # of the entries
    num_rows: np.ndarray  # [items]
    num_stretches: np.ndarray  # [items]
    stretches: np.ndarray  # [stretches, 5]: as in the plan, without the item
    looks: np.ndarray


def plan(
    layout: Layout, *, page_tokens: int, group: int, shared_rows: int, chained_rows: int, items: int
) -> Plan:
    """Items for a layout.

    Args:
        layout: of `lay_out`, with the same `page_tokens` and `group`.
        shared_rows, chained_rows: most rows of an item of either kind; 0 shared: all are chained.
        items: as many keep the GPU busy; chained rows are cut along their pages up to that number.
    """
    most = ITEM_QUERIES if shared_rows else 0
    few = [len(s.positions) * group < most for s in layout.sequences]
    parts = [_shared(layout, few, page_tokens, max(1, shared_rows))]
    first_row = first_page = 0
    for sequence, is_few in zip(layout.sequences, few, strict=True):
        if not is_few:
            work = _chained(sequence, first_row, first_page, chained_rows, items)
            parts.append(work)
        first_row += len(sequence.positions)
        first_page += sum(len(segment.pages) for segment in sequence.segments)
    pages = [segment.pages for s in layout.sequences for segment in s.segments]
    return _joined(parts, np.concatenate(pages), layout.num_rows)


def _shared(layout: Layout, few: Sequence[bool], page_tokens: int, most: int) -> _Work:
    """The runs of sequences with few rows."""
    lengths = [len(s.positions) for s in layout.sequences]
    run = np.repeat(np.arange(len(layout.runs)), layout.run_looks[:, 1])
    kept = np.repeat(few, lengths)[layout.looks[:, 0]]
    looks, run = layout.looks[kept], run[kept]
    count = np.bincount(run, minlength=len(layout.runs))
    pieces = -(-count // most)
    of = np.repeat(np.arange(len(pieces)), pieces)  # the run of each item
    done = (np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * most
    first = (np.cumsum(count) - count)[of] + done
    arena, num_pages = layout.runs[of, 0], layout.runs[of, 2]
    ones = np.ones(len(of), np.int64)
    stretches = np.stack([looks[first, 2] // page_tokens, num_pages, first, ones, arena], axis=1)
    return _Work(looks[:, 0], np.minimum(most, count[of] - done), ones, stretches, looks[:, 1:3])


def _chained(
    sequence: SequenceLayout, first_row: int, first_page: int, most: int, items: int
) -> _Work:
    """Tiles of one sequence's rows, the last rows first: they see most and take longest."""
    segments, count = sequence.segments, len(sequence.positions)
    begins = np.array([segment.begin for segment in segments])
    num_pages = np.array([len(segment.pages) for segment in segments])
    first_pages = first_page + np.cumsum(num_pages) - num_pages
    looks = np.stack([begins, np.zeros_like(begins)], axis=1)
    arenas = [segment.arena for segment in segments]
    starts = np.arange(0, count, most)[::-1]
    sizes = np.minimum(most, count - starts)
    last = sequence.positions[starts + sizes - 1]
    tile, seen = np.nonzero(begins[None] <= last[:, None])
    whole = np.stack(
        [first_pages[seen], num_pages[seen], seen, np.zeros_like(seen), np.array(arenas)[seen]],
        axis=1,
    )
    per_tile = np.bincount(tile, minlength=len(starts))
    pieces = max(1, items // len(starts))
    if pieces > 1:
        tiles = np.split(whole, np.cumsum(per_tile)[:-1])
        cut = [_cut(tile, pieces) for tile in tiles]
        repeats = [len(parts) for parts in cut]
        starts, sizes = np.repeat(starts, repeats), np.repeat(sizes, repeats)
        per_tile = np.array([len(part) for parts in cut for part in parts])
        whole = np.concatenate([part for parts in cut for part in parts])
    rows = [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    return _Work(first_row + np.concatenate(rows), sizes, per_tile, whole, looks)


def _cut(stretches: np.ndarray, pieces: int) -> list[np.ndarray]:
    """One tile's stretches in pieces of equally many pages, none smaller than a run."""
    ends = np.cumsum(stretches[:, 1])
    pieces = max(1, min(pieces, int(ends[-1]) // RUN_PAGES))
    cuts = ends[-1] * np.arange(1, pieces) // pieces
    edges = np.unique(np.concatenate([[0], ends, cuts]))
    starts = edges[:-1]
    of = np.searchsorted(ends, starts, side="right")
    parts = stretches[of]
    parts[:, 0] += starts - (ends - stretches[:, 1])[of]
    parts[:, 1] = np.diff(edges)
    return np.split(parts, np.searchsorted(starts, cuts))


def _joined(parts: Sequence[_Work], pages: np.ndarray, num_rows: int) -> Plan:
    """All items in one numbering, and the parts of every row side by side."""
    rows = np.concatenate([work.rows for work in parts])
    sizes = np.concatenate([work.num_rows for work in parts])
    counts = np.concatenate([work.num_stretches for work in parts])
    items = np.stack([np.cumsum(sizes) - sizes, sizes, np.cumsum(counts) - counts, counts], axis=1)
    looks_before = np.cumsum([0, *(len(work.looks) for work in parts)])
    stretches = np.concatenate([work.stretches for work in parts])
    of_work = np.repeat(np.arange(len(parts)), [len(work.stretches) for work in parts])
    stretches[:, 2] += looks_before[of_work]
    of_item = np.repeat(np.arange(len(items)), counts)
    order = np.argsort(rows, kind="stable")
    entries = np.empty((len(rows), 2), np.int32)
    entries[:, 0] = rows
    entries[order, 1] = np.arange(len(rows))
    per_row = np.bincount(rows, minlength=num_rows)
    assert per_row.min() > 0, "a row is in no item"
    return Plan(
        items=items.astype(np.int32),
        entries=entries,
        stretches=np.column_stack([stretches, of_item]).astype(np.int32),
        looks=np.concatenate([work.looks for work in parts]).astype(np.int32),
        pages=pages.astype(np.int32),
        row_parts=np.concatenate([[0], np.cumsum(per_row)]).astype(np.int32),
        num_shared=len(parts[0].num_rows),
    )
