"""What the rows of one request look at: exact-prefix pages, chunk pages, and rows of its own.

A request owns its own rows alone: those that no cache holds, and those that are repaired. A
repaired row lies among them and hides the chunk's row at its position in the layers it has run
through; in the layers above, where rows were let go, the chunk's row is still the one to see.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chunkcache_kernels import HIDDEN, Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.engine.arrival import Arrival
    from chunkcache.engine.resident import Resident

OWN, CHUNKS = 0, 1  # indices of the two arenas
PATIENCE_S = 0.25  # how long a pass waits for one layer, with the engine, before it is given up


@dataclass(frozen=True, slots=True, eq=False)
class PlacedChunk:
    """A chunk whose row 0 stands at position `begin`, or would: of its rows some may not be used.

    Those below `first_row` are not, nor those from `end_row` on, if there is one. `begin` is below
    0 where so few tokens precede a passage that its record has more.
    """

    resident: Resident
    begin: int
    first_row: int
    end_row: int | None = None

    @property
    def rows(self) -> range:
        """The rows in use."""
        end = self.resident.num_tokens if self.end_row is None else self.end_row
        return range(self.first_row, end)


class SequenceKV:
    """Pages and visible keys of one sequence; owned by the engine thread.

    Args:
        page_tokens, num_layers: of the arenas and the model.
        max_tokens: the longest the sequence can become.
        prefix: pages of an exact prefix, positions 0 to `len(prefix) · page_tokens`.
        own: pages for the request's own rows, in the order they are first run.
        chunks: chunks it reads, by position.
    """

    def __init__(
        self,
        page_tokens: int,
        num_layers: int,
        max_tokens: int,
        *,
        prefix: Sequence[int],
        own: Sequence[int],
        chunks: Sequence[PlacedChunk],
    ) -> None:
        self._page_tokens = page_tokens
        self._num_layers = num_layers
        self._prefix_tokens = len(prefix) * page_tokens
        self._own = np.array(own, dtype=np.int32)
        self._index_of = np.full(max_tokens, -1, dtype=np.int32)  # of positions among own rows
        self._position_of = np.full(len(own) * page_tokens, HIDDEN, dtype=np.int32)
        self._run_to = np.zeros(len(self._position_of), dtype=np.int32)  # layers they are valid in
        self._used = 0
        self._in_chunk = np.zeros(max_tokens, dtype=bool)
        self._arriving: list[tuple[int, Arrival]] = []  # by the position of their first row
        self._followed: list[Arrival] = []  # all that may have to be
        self.waited_s = 0.0  # for layers of chunks
        self._fixed: list[Segment] = []
        if prefix:
            positions = np.arange(self._prefix_tokens, dtype=np.int32)
            self._fixed.append(Segment(OWN, np.array(prefix, np.int32), 0, positions))
        for chunk in chunks:
            pages, begin, rows = chunk.resident.pages, chunk.begin, chunk.rows
            segment = Segment.of_chunk(CHUNKS, pages, page_tokens, begin, rows.start, rows.stop)
            self._fixed.append(segment)
            self._in_chunk[begin + rows.start : begin + rows.stop] = True
            self._followed.append(chunk.resident.arrival)
            if not chunk.resident.arrival.is_whole:
                self._arriving.append((begin + rows.start, chunk.resident.arrival))
        self._seen: dict[int, tuple[list[Segment], np.ndarray]] = {}

    def fork(self, own: Sequence[int]) -> SequenceKV:
        """Another continuation of the same tokens, whose new rows go to the pages `own`.

        The rows taken so far are seen by both and must not be run again by either. The places left
        in their last page are this one's; the other begins with a page of its own.
        """
        used = -(-self._used // self._page_tokens)  # pages
        slots, new = used * self._page_tokens, len(own) * self._page_tokens
        other = copy.copy(self)
        other._own = np.concatenate([self._own[:used], np.array(own, dtype=np.int32)])
        other._index_of = self._index_of.copy()
        unused = np.full(new, HIDDEN, dtype=np.int32)
        other._position_of = np.concatenate([self._position_of[:slots], unused])
        not_run = np.zeros(new, dtype=np.int32)
        other._run_to = np.concatenate([self._run_to[:slots], not_run])
        other._run_to[self._used : slots] = self._num_layers  # nobody's rows end no layer
        other._used = slots
        other._seen = {}
        return other

    def take(self, positions: np.ndarray, end_layer: int) -> np.ndarray:
        """int32 slots (page · page_tokens + place) for rows about to run up to `end_layer`.

        From now on they are what is seen at their positions, in the layers below that.

        Args:
            positions: int64, increasing; those that have run before keep their slots.
        """
        index = self._index_of[positions]
        new = np.flatnonzero(index < 0)
        index[new] = np.arange(self._used, self._used + len(new))
        self._used += len(new)
        assert self._used <= len(self._position_of), "more rows than were reserved"
        self._index_of[positions] = index
        self._position_of[index] = positions
        grown = self._run_to[index] < end_layer
        self._run_to[index] = np.maximum(self._run_to[index], end_layer)
        if (grown & self._in_chunk[positions]).any():
            self._seen.clear()
        else:
            for layer, (_, shown) in self._seen.items():
                if layer <= end_layer:
                    shown[index] = positions
        pages, places = index // self._page_tokens, index % self._page_tokens
        slots: np.ndarray = self._own[pages] * self._page_tokens + places
        return slots.astype(np.int32)

    @property
    def is_arriving(self) -> bool:
        """Whether some layer of a chunk is not there yet."""
        self._arriving = [(at, arrival) for at, arrival in self._arriving if not arrival.is_whole]
        return bool(self._arriving)

    @property
    def has_lost_a_chunk(self) -> bool:
        """Whether some layer of a chunk will not come."""
        return any(arrival.failure is not None for _, arrival in self._arriving)

    def wait_for(self, layer: int, last_position: int) -> int:
        """Wait until a layer of every chunk that rows up to a position look at is there.

        Returns: up to which layer all of them can be seen.

        Raises:
            NotArrived: a layer will not come, or not soon.
        """
        end = self._num_layers
        if self.is_arriving:
            end = self._wait_for(layer, last_position)
        if self._followed:
            self._followed = [one for one in self._followed if not one.follow()]
        return end

    def _wait_for(self, layer: int, last_position: int) -> int:
        end = self._num_layers
        began = time.perf_counter()
        try:
            for first_row, arrival in self._arriving:
                if first_row <= last_position:
                    end = min(end, arrival.wait_for(layer, PATIENCE_S))
        finally:
            self.waited_s += time.perf_counter() - began
        return end

    def edges(self) -> set[int]:
        """Layers from which on some row is not valid any more."""
        return set(np.unique(self._run_to[: self._used]).tolist()) - {self._num_layers}

    def segments(self, end_layer: int) -> list[Segment]:
        """What is seen in the layers just below `end_layer`, above any edge below it."""
        known = self._seen.get(end_layer)
        if known is None:
            shown = np.where(self._run_to >= end_layer, self._position_of, HIDDEN)
            replaced = shown[shown < len(self._in_chunk)]
            replaced = replaced[self._in_chunk[replaced]]
            known = self._seen[end_layer] = (self._without(replaced), shown)
        fixed, shown = known
        pages = -(-self._used // self._page_tokens)
        if not pages:
            return fixed
        own = Segment(OWN, self._own[:pages], 0, shown[: pages * self._page_tokens])
        return [*fixed, own]

    def _without(self, replaced: np.ndarray) -> list[Segment]:
        if not len(replaced):
            return self._fixed
        kept = []
        for segment in self._fixed:
            positions = segment.key_positions.copy()
            one = Segment(segment.arena, segment.pages, segment.begin, positions)
            if segment.arena == CHUNKS:
                one.hide(replaced)
            if (positions != HIDDEN).any():
                kept.append(one)
        return kept

    @property
    def tokens_in_order(self) -> int:
        """Leading positions whose rows lie page by page in the prefix and the own pages."""
        index = self._index_of[self._prefix_tokens :]
        in_order = index == np.arange(len(index))
        run = len(index) if in_order.all() else int(in_order.argmin())
        return self._prefix_tokens + run
