"""What a sequence sees in every layer, against a table of who wrote which position last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chunkcache.chunk import ChunkKey
from chunkcache.engine.resident import Resident
from chunkcache.engine.sequence_kv import CHUNKS, OWN, PlacedChunk, SequenceKV
from chunkcache_kernels import HIDDEN

PAGE, LAYERS, LONGEST = 4, 5, 60
Seen = dict[int, tuple[int, int, int]]  # position: arena, slot, the position its page begins at


@dataclass
class Place:
    """A chunk of some tokens; its row 0 stands at `begin`, only rows `first..end` are used."""

    tokens: int
    begin: int
    first: int
    end: int


def resident(number: int, tokens: int) -> Resident:
    key = ChunkKey(b"%d" % number, tuple(range(tokens)))
    pages = np.arange(-(-tokens // PAGE), dtype=np.int32) * 7 + 100 * number
    stats: Any = None
    return Resident(key, stats, pages, 0, True)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, list[Place]]:
    """Pages of an exact prefix, and parts of chunks behind it, or where it ends."""
    prefix = draw(st.integers(0, 3))
    at, places = prefix * PAGE, []
    for tokens in draw(st.lists(st.sampled_from([1, 3, 4, 5, 9]), max_size=3)):
        at += draw(st.integers(0, 3))
        first = draw(st.integers(0, tokens - 1))
        end = draw(st.integers(first + 1, tokens))
        places.append(Place(tokens, at - first, first, end))  # begins before 0, maybe
        at += end - first
    return prefix, places


class SequenceMachine(RuleBasedStateMachine):
    """Rows are taken up to some layer, in any order and again; looked at in any order, too."""

    @initialize(layout=layouts(), data=st.data())
    def open(self, layout: tuple[int, list[Place]], data: st.DataObject) -> None:
        self.prefix, self.places = layout
        own = data.draw(st.permutations(range(20, 20 + LONGEST // PAGE)))
        self.own = list(own)
        self.shared = list(range(self.prefix))[::-1]
        self.run_to: dict[int, int] = {}  # by position, in the order they were taken
        self.slots: dict[int, int] = {}
        self.kv = SequenceKV(
            PAGE, LAYERS, LONGEST, prefix=self.shared, own=self.own,
            chunks=[
                PlacedChunk(resident(i, p.tokens), p.begin, p.first, p.end)
                for i, p in enumerate(self.places)
            ],
        )  # fmt: skip

    @rule(
        positions=st.sets(st.integers(0, LONGEST - 1), min_size=1, max_size=12),
        end_layer=st.integers(1, LAYERS),
        looks=st.lists(st.integers(1, LAYERS), max_size=3),
    )
    def take(self, positions: set[int], end_layer: int, looks: list[int]) -> None:
        rows = sorted(p for p in positions if p >= self.prefix * PAGE)
        if not rows:
            return
        slots = self.kv.take(np.array(rows), end_layer)
        assert slots.dtype == np.int32
        for position, slot in zip(rows, slots.tolist(), strict=True):
            assert self.slots.setdefault(position, slot) == slot, "a row moved"
            self.run_to[position] = max(end_layer, self.run_to.get(position, 0))
        for layer in looks:  # what was looked at once is kept; it must not grow old
            self.kv.segments(layer)

    def expected(self, layer: int) -> Seen:
        seen = {
            p: (OWN, self.shared[p // PAGE] * PAGE + p % PAGE, 0) for p in range(self.prefix * PAGE)
        }
        for number, place in enumerate(self.places):
            pages = resident(number, place.tokens).pages
            for i in range(place.first, place.end):
                slot = int(pages[i // PAGE]) * PAGE + i % PAGE
                seen[place.begin + i] = (CHUNKS, slot, place.begin)
        for position, run_to in self.run_to.items():
            if run_to > layer:
                seen[position] = (OWN, self.slots[position], 0)
        return seen

    @invariant()
    def every_layer_sees_what_ran_through_it(self) -> None:
        if not hasattr(self, "kv"):
            return
        for layer in range(LAYERS):
            seen: Seen = {}
            for segment in self.kv.segments(layer + 1):
                assert len(segment.key_positions) == len(segment.pages) * PAGE
                for i, position in enumerate(segment.key_positions.tolist()):
                    if position != HIDDEN:
                        assert position not in seen, "a position is seen twice"
                        slot = int(segment.pages[i // PAGE]) * PAGE + i % PAGE
                        seen[position] = (segment.arena, slot, segment.begin)
            assert seen == self.expected(layer), f"layer {layer}"

    @invariant()
    def edges_are_where_rows_end(self) -> None:
        if hasattr(self, "kv"):
            assert self.kv.edges() == set(self.run_to.values()) - {LAYERS}

    @invariant()
    def rows_fill_the_own_pages_in_the_order_they_are_taken(self) -> None:
        if not hasattr(self, "kv"):
            return
        assert len(set(self.slots.values())) == len(self.slots)
        filled = [page * PAGE + place for page in self.own for place in range(PAGE)]
        assert sorted(self.slots.values()) == sorted(filled[: len(self.slots)])

    @invariant()
    def tokens_in_order_lie_page_by_page(self) -> None:
        if not hasattr(self, "kv"):
            return
        pages, count = [*self.shared, *self.own], self.prefix * PAGE
        while self.slots.get(count) == pages[count // PAGE] * PAGE + count % PAGE:
            count += 1
            if count == LONGEST:
                break
        assert self.kv.tokens_in_order == count


TestSequence = SequenceMachine.TestCase
TestSequence.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)


def test_a_chunk_that_was_replaced_altogether_is_looked_at_no_more() -> None:
    chunk = PlacedChunk(resident(0, 6), 4, 0)
    kv = SequenceKV(PAGE, LAYERS, 20, prefix=(), own=[8, 9, 10], chunks=[chunk])
    kv.take(np.arange(4, 10), LAYERS - 1)
    assert [s.arena for s in kv.segments(LAYERS - 1)] == [OWN]
    assert [s.arena for s in kv.segments(LAYERS)] == [CHUNKS, OWN]


def shown(kv: SequenceKV) -> dict[int, int]:
    """Slots by position, of the own rows that are seen in the last layer."""
    segment = kv.segments(LAYERS)[-1]
    slots = [page * PAGE + place for page in segment.pages.tolist() for place in range(PAGE)]
    placed = zip(segment.key_positions.tolist(), slots, strict=True)
    seen = [(position, slot) for position, slot in placed if position != HIDDEN]
    assert len(dict(seen)) == len(seen), "a position is seen twice"
    return dict(seen)


def test_forks_see_the_rows_so_far_and_each_its_own_behind_them() -> None:
    kv = SequenceKV(PAGE, LAYERS, 20, prefix=(), own=[1, 2, 3], chunks=())
    kv.take(np.arange(6), LAYERS)
    so_far = shown(kv)  # what was looked at once is kept, by each for itself
    assert so_far == {position: 4 + position for position in range(6)}
    other = kv.fork([8, 9])
    assert other.edges() == set(), "no row of it ends below the last layer"
    assert kv.take(np.array([6]), LAYERS).tolist() == [10]
    assert other.take(np.array([6, 7]), LAYERS).tolist() == [32, 33]
    assert shown(kv) == {**so_far, 6: 10}
    assert shown(other) == {**so_far, 6: 32, 7: 33}


def test_one_sequence_hides_nothing_from_another() -> None:
    """The chunk's pages are everyone's; who replaces a row does so for itself."""
    chunk = resident(0, 6)
    first, second = (
        SequenceKV(PAGE, LAYERS, 20, prefix=(), own=own, chunks=[PlacedChunk(chunk, begin, 0)])
        for own, begin in (([8, 9], 4), ([10, 11], 0))
    )
    first.take(np.array([5, 6]), LAYERS)
    (whole,) = second.segments(LAYERS)
    assert whole.key_positions.tolist() == [0, 1, 2, 3, 4, 5, HIDDEN, HIDDEN]
    assert chunk.pages.tolist() == [0, 7]


def test_more_rows_than_were_reserved_are_a_fault_of_ours() -> None:
    kv = SequenceKV(PAGE, LAYERS, 20, prefix=(), own=[1], chunks=())
    kv.take(np.arange(4), LAYERS)
    with pytest.raises(AssertionError, match="more rows than were reserved"):
        kv.take(np.array([4]), LAYERS)
