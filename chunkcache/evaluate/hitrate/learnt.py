"""A small learnt policy: how many hits per byte and moment a chunk of such an age and use earned.

A table by age (uses of any chunk since its own last one) and by decayed number of uses, counted on
one part of a trace: in each cell, over several horizons, the chunks that were used again within it
divided by the time they lay there, the best horizon counts (after LHD, Beckmann et al., NSDI 2018).
It stands beside `WindowedFrequencyPolicy` to be measured, and is not shipped: see decision 30.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_AGES, _COUNTS = 24, 20  # cells by age and by count
_PER_DOUBLING = 1.5  # cells for each doubling of either
_HORIZONS = (50, 100, 200, 400, 800, 1600)  # uses of any chunk
_OLDEST = 8000  # uses: older chunks are not counted
_PRIOR = 20.0  # samples that a cell's neighbours are worth to it
_UNKNOWN = 10**8  # uses until a next one that never comes


class _Known:
    """Age and decayed uses of every chunk as of now."""

    def __init__(self, num_chunks: int, half_life_uses: float) -> None:
        self.last = np.full(num_chunks, -1, dtype=np.int64)
        self._count = np.zeros(num_chunks)
        self._half_life = half_life_uses
        self.now = 0

    def use(self, chunk: int) -> None:
        age = self.now - self.last[chunk]
        self._count[chunk] = self._count[chunk] * 0.5 ** (age / self._half_life) + 1.0
        self.last[chunk] = self.now
        self.now += 1

    def cells(self, chunks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the table's cell for each chunk."""
        age = self.now - self.last[chunks]
        count = self._count[chunks] * 0.5 ** (age / self._half_life)
        by_age = np.log2(age + 1) * _PER_DOUBLING
        by_count = (np.log2(count + 1e-9) + 6) * _PER_DOUBLING
        column = by_count.astype(np.int64).clip(0, _COUNTS - 1)
        row = by_age.astype(np.int64).clip(0, _AGES - 1)
        return np.asarray(row * _COUNTS + column, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class HitDensity:
    """The table, `[age, count]`: hits per use of any chunk; to be divided by a chunk's size."""

    table: NDArray[np.float64]
    half_life_uses: float

    @classmethod
    def learn(
        cls, chunks: ArrayLike, requests: ArrayLike, *, half_life_uses: float = 3000
    ) -> HitDensity:
        """Count on a trace: one entry per use, as for `Intervals.of`."""
        chunk = np.unique(np.asarray(chunks), return_inverse=True)[1].reshape(-1)
        begins = np.flatnonzero(np.diff(np.asarray(requests), prepend=-1))
        following = _next_uses(chunk)
        known = _Known(int(chunk.max()) + 1, half_life_uses)
        shape = (len(_HORIZONS), _AGES * _COUNTS)
        hits, time = np.zeros(shape), np.zeros(shape)
        for begin, end in zip(begins, [*begins[1:], chunk.size], strict=True):
            there = np.flatnonzero((known.last >= 0) & (known.now - known.last < _OLDEST))
            wait = following[known.last[there]] - known.now
            cells = known.cells(there)
            for row, horizon in enumerate(_HORIZONS):
                hits[row] += np.bincount(cells, wait < horizon, shape[1])
                time[row] += np.bincount(cells, np.minimum(wait + 1, horizon), shape[1])
            for each in chunk[begin:end].tolist():
                known.use(each)
        best = [_smoothed(*pair) for pair in zip(hits, time, _HORIZONS, strict=True)]
        return cls(np.max(best, axis=0), half_life_uses)


def replay_learnt(
    chunks: ArrayLike, sizes: ArrayLike, capacity: float, density: HitDensity
) -> NDArray[np.bool_]:
    """Which uses of a trace a cache of `capacity` would serve that evicts by hits per byte.

    Every chunk is taken in, and whoever is worth least leaves, which may be the newcomer.
    """
    chunk = np.unique(np.asarray(chunks), return_inverse=True)[1].reshape(-1)
    size = np.zeros(int(chunk.max()) + 1)
    size[chunk] = np.asarray(sizes)
    known = _Known(size.size, density.half_life_uses)
    worth_of = density.table.reshape(-1)
    is_held = np.zeros(size.size, dtype=bool)
    is_hit = np.zeros(chunk.size, dtype=bool)
    used = 0.0
    for place, each in enumerate(chunk.tolist()):
        known.use(each)
        is_hit[place] = is_held[each]
        if is_held[each]:
            continue
        is_held[each] = True
        used += size[each]
        while used > capacity:
            held = np.flatnonzero(is_held)
            worst = held[np.argmin(worth_of[known.cells(held)] / size[held])]
            is_held[worst] = False
            used -= size[worst]
    return is_hit


def _next_uses(chunk: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the next use of the same chunk, for every use."""
    following = np.full(chunk.size, _UNKNOWN)
    order = np.argsort(chunk, kind="stable")
    again = chunk[order][1:] == chunk[order][:-1]
    following[order[:-1][again]] = order[1:][again]
    return following


def _smoothed(
    hits: NDArray[np.float64], time: NDArray[np.float64], horizon: int
) -> NDArray[np.float64]:
    """Hits by time, cells with few samples drawn to their age's, and that to the whole table's."""
    weight = _PRIOR * horizon * 0.3
    hits, time = hits.reshape(_AGES, _COUNTS), time.reshape(_AGES, _COUNTS)
    whole = hits.sum() / max(time.sum(), 1.0)
    of_age = (hits.sum(1, keepdims=True) + weight * whole) / (time.sum(1, keepdims=True) + weight)
    return np.asarray((hits + weight * of_age) / (time + weight))
