"""What programs of a GPU are given: every row walks along every key it may see, once."""

from __future__ import annotations

import numpy as np
import pytest

from chunkcache_kernels import Segment, SequenceLayout, lay_out

PAGE = 8
pytest.importorskip("triton")


def drawn(seed: int) -> list[SequenceLayout]:
    """Sequences that share chunks; some have few rows, some many."""
    draw, sequences = np.random.default_rng(seed), []
    for rows in draw.choice([1, 2, 7, 40, 90], size=draw.integers(1, 5)):
        at, segments = int(draw.integers(0, 9)), []
        for chunk in draw.choice(4, size=draw.integers(0, 4)):  # some stand there twice
            length = int(chunk) * 90 + 5
            pages = np.arange(-(-length // PAGE), dtype=np.int32) + 100 * chunk
            segments.append(Segment.of_chunk(1, pages, PAGE, at, 0, length))
            at += length
        positions = np.sort(draw.choice(at + 90, size=rows, replace=False))
        own = np.arange(1000, 1000 + -(-rows // PAGE), dtype=np.int32)
        shown = np.full(len(own) * PAGE, 2**31 - 1, dtype=np.int32)
        shown[:rows] = positions
        sequences.append(SequenceLayout(positions, [*segments, Segment(0, own, 0, shown)]))
    return sequences


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("shared_rows", "items"), [(4, 1), (0, 1), (2, 7), (0, 50)])
def test_every_row_walks_along_every_key_once(seed: int, shared_rows: int, items: int) -> None:
    from chunkcache_kernels.triton_plan import plan

    sequences = drawn(seed)
    layout = lay_out(sequences, page_tokens=PAGE, group=3)
    made = plan(layout, page_tokens=PAGE, group=3, shared_rows=shared_rows, chained_rows=16,
                items=items)  # fmt: skip
    walked: list[list[tuple[int, int, int, int]]] = [[] for _ in range(layout.num_rows)]
    parts: list[list[int]] = [[] for _ in range(layout.num_rows)]
    for number, (entry, rows, first, count) in enumerate(made.items.tolist()):
        limit = (shared_rows or 1) if number < made.num_shared else 16
        assert 1 <= rows <= limit
        for place, (row, part) in enumerate(made.entries[entry : entry + rows].tolist()):
            parts[row].append(part)
            for stretch in made.stretches[first : first + count].tolist():
                page, pages, look, is_shared, arena, of = stretch
                assert of == number
                begin, first_key = made.looks[look + is_shared * place].tolist()
                first_key = first_key if is_shared else page * PAGE
                for at in range(pages):
                    key = first_key + at * PAGE
                    walked[row].append((arena, int(made.pages[page + at]), begin, key))
    positions = layout.key_positions
    first_row = first_key = 0
    for sequence in sequences:
        of_rows = range(first_row, first_row + len(sequence.positions))
        for row, position in zip(of_rows, sequence.positions, strict=True):
            expected, key = set(), first_key
            for segment in sequence.segments:
                for page in segment.pages.tolist():
                    if (positions[key : key + PAGE] <= position).any():
                        expected.add((segment.arena, page, segment.begin, key))
                    key += PAGE
            assert expected <= set(walked[row]) and len(set(walked[row])) == len(walked[row])
            assert {k for *_, k in walked[row]} <= set(range(first_key, key)), "another's keys"
            assert sorted(parts[row]) == [*range(*made.row_parts[row : row + 2].tolist())]
        first_row, first_key = of_rows.stop, key
    assert sorted(made.entries[:, 1].tolist()) == [*range(len(made.entries))]


def test_few_tiles_are_cut_along_their_pages_evenly() -> None:
    from chunkcache_kernels.triton_plan import plan

    pages = np.arange(300, dtype=np.int32)
    segment = Segment(0, pages, 0, np.arange(2400, dtype=np.int32))
    layout = lay_out([SequenceLayout(np.arange(2380, 2400), [segment])], page_tokens=PAGE, group=4)
    made = plan(layout, page_tokens=PAGE, group=4, shared_rows=16, chained_rows=32, items=7)
    assert made.num_shared == 0 and made.stretches[:, 1].tolist() == [42, 43, 43, 43, 43, 43, 43]
    many = plan(layout, page_tokens=PAGE, group=4, shared_rows=16, chained_rows=32, items=900)
    assert len(many.items) == 300 // 16, "none smaller than a run"
