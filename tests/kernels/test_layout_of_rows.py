"""The arrays of a step against a list, made by hand, of which row looks at which key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache_kernels import HIDDEN, Segment, SequenceLayout, lay_out
from chunkcache_kernels.layout import ITEM_QUERIES

PAGE = 8


@st.composite
def steps(draw: st.DrawFn) -> list[SequenceLayout]:
    """Sequences over a few runs of pages, which several of them may read at different places."""
    shared = [np.arange(9 * i, 9 * i + n, dtype=np.int32) for i, n in enumerate((1, 2, 40))]
    sequences = []
    for number in range(draw(st.integers(1, 3))):
        rows = sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=50)))
        segments = []
        for pages in draw(st.lists(st.sampled_from(shared), max_size=3)):
            begin = draw(st.integers(-30, 70))  # below 0 where a record has more before a passage
            keys = np.arange(begin, begin + len(pages) * PAGE, dtype=np.int32)
            gone = draw(st.sets(st.integers(0, len(keys) - 1), max_size=len(keys)))
            keys[sorted(gone)] = HIDDEN
            keys[keys < 0] = HIDDEN
            segments.append(Segment(1, pages, begin, keys))
        own = np.full(8 * PAGE, HIDDEN, dtype=np.int32)
        own[draw(st.permutations(range(8 * PAGE)))[: len(rows)]] = rows
        pages = np.arange(200 + 8 * number, 208 + 8 * number, dtype=np.int32)
        sequences.append(SequenceLayout(np.array(rows), [*segments, Segment(0, pages, 0, own)]))
    return sequences


def seen_by_hand(sequences: list[SequenceLayout]) -> list[list[tuple[int, int, int, int]]]:
    """For each row, sorted: arena, slot, turn and position of every key it sees."""
    return [
        sorted(
            (segment.arena, int(segment.pages[i // PAGE]) * PAGE + i % PAGE,
             int(position) - segment.begin, int(key))
            for segment in sequence.segments
            for i, key in enumerate(segment.key_positions)
            if key <= position
        )
        for sequence in sequences
        for position in sequence.positions
    ]  # fmt: skip


def seen_in_arrays(layout: Any) -> list[list[tuple[int, int, int, int]]]:
    seen: list[list[tuple[int, int, int, int]]] = [[] for _ in range(layout.num_rows)]
    for run, first_look, count in layout.items.tolist():
        arena, first_page, num_pages = layout.runs[run].tolist()
        for row, turn, first_key, _ in layout.looks[first_look : first_look + count].tolist():
            position = int(layout.row_positions[row])
            for i in range(num_pages * PAGE):
                key = int(layout.key_positions[first_key + i])
                if key <= position:
                    slot = int(layout.pages[first_page + i // PAGE]) * PAGE + i % PAGE
                    seen[row].append((arena, slot, position - turn, key))
    return [sorted(keys) for keys in seen]


@given(sequences=steps(), group=st.sampled_from([1, 3, 7, 40]))
@settings(max_examples=60, deadline=None)
def test_every_row_looks_at_its_keys_and_no_other(
    sequences: list[SequenceLayout], group: int
) -> None:
    layout = lay_out(sequences, page_tokens=PAGE, group=group)
    assert seen_in_arrays(layout) == seen_by_hand(sequences)
    rows = np.concatenate([s.positions for s in sequences])
    assert layout.row_positions.tolist() == rows.tolist()
    # no turn is negative: such an angle is in no table
    turns = layout.row_positions[layout.looks[:, 0]] - layout.looks[:, 1]
    assert turns.min() >= 0
    assert layout.longest_turn >= max(turns.max(), rows.max())


@given(sequences=steps(), group=st.sampled_from([1, 3, 7, 40]))
@settings(max_examples=60, deadline=None)
def test_looks_are_in_one_item_and_have_one_part(
    sequences: list[SequenceLayout], group: int
) -> None:
    layout = lay_out(sequences, page_tokens=PAGE, group=group)
    taken = [i for _, first, count in layout.items.tolist() for i in range(first, first + count)]
    assert sorted(taken) == list(range(len(layout.looks)))
    assert layout.items[:, 2].max() <= max(1, ITEM_QUERIES // group)
    parts = layout.looks[:, 3]
    assert sorted(parts.tolist()) == list(range(len(parts)))
    for row in range(layout.num_rows):  # those of a row lie side by side
        mine = sorted(parts[layout.looks[:, 0] == row].tolist())
        assert mine == list(range(layout.row_parts[row], layout.row_parts[row + 1]))
    arrays = (layout.row_positions, layout.runs, layout.pages, layout.looks, layout.key_positions,
              layout.items, layout.row_parts)  # fmt: skip
    assert all(a.dtype == np.int32 and a.flags.c_contiguous for a in arrays)


def test_sequences_that_read_the_same_pages_share_their_runs() -> None:
    pages = np.arange(4, dtype=np.int32)

    def sequence(begin: int, own: int) -> SequenceLayout:
        chunk = Segment.of_chunk(1, pages, PAGE, begin, 0, 30)
        end = begin + 30
        keys = np.arange(end, end + PAGE, dtype=np.int32)
        return SequenceLayout(
            np.array([end]), [chunk, Segment(0, np.array([own], np.int32), 0, keys)]
        )

    layout = lay_out([sequence(5, 0), sequence(90, 1)], page_tokens=PAGE, group=3)
    assert len(layout.runs) == 3 and len(layout.pages) == 4 + 2
    shared = layout.items[layout.runs[layout.items[:, 0], 0] == 1]
    assert shared.tolist() == [[0, 0, 2]]  # both rows in one product
    assert layout.looks[:2, 1].tolist() == [5, 90]


def test_a_row_without_a_key_is_a_fault_of_ours() -> None:
    nothing = Segment.of_chunk(1, np.array([0], np.int32), PAGE, 20, 0, 8)
    with pytest.raises(AssertionError, match="sees no key"):
        lay_out([SequenceLayout(np.array([3, 25]), [nothing])], page_tokens=PAGE, group=1)
