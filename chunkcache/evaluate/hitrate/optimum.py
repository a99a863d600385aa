"""The best that any placement could have done, by a linear programme over reuse intervals.

Between two uses a chunk may lie in a tier, for the whole time, or in none. What lies in a tier at
any moment must fit it; a use saves what its tier saves beside computing the chunk again. With one
tier this is the bound of Berger, Beckmann and Harchol-Balter (2018); with several, the load of the
tier that a chunk lay in is paid at its next use, movement is free, and nothing is prefetched.
Fractions are allowed, so that no real policy does better. Needs `highspy` (extra `hitrate`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chunkcache.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Intervals:
    """The times between two uses of one chunk, each an entry of arrays of one length.

    A use within the same request as the one before takes no place in any tier (`start == end`).
    """

    start: NDArray[np.int64]  # number of the request that used the chunk, counted from 0
    end: NDArray[np.int64]  # number of the request that used it next
    access: NDArray[np.int64]  # index of that next use in the trace
    size: NDArray[np.float64]
    num_requests: int

    @classmethod
    def of(cls, chunks: ArrayLike, sizes: ArrayLike, requests: ArrayLike) -> Intervals:
        """From a trace: one entry of each argument per access, in order of time.

        Args:
            chunks: which chunk it is, any numbers.
            sizes: of the chunk, in any unit.
            requests: which request it belongs to, increasing numbers.
        """
        chunk = np.unique(np.asarray(chunks), return_inverse=True)[1].reshape(-1)
        request = np.unique(np.asarray(requests), return_inverse=True)[1].reshape(-1)
        order = np.argsort(chunk, kind="stable")
        is_reuse = chunk[order][1:] == chunk[order][:-1]
        before, after = order[:-1][is_reuse], order[1:][is_reuse]
        by_time = np.argsort(after)
        before, after = before[by_time], after[by_time]
        size = np.asarray(sizes, dtype=np.float64)[after]
        count = int(request.max()) + 1 if request.size else 0
        return cls(request[before], request[after], after, size, count)


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best placement.

    `share[i, k]` is how much of interval `i` lies in tier `k`; all but a few are 0 or 1.
    """

    saved: float
    share: NDArray[np.float64]


def best_placement(intervals: Intervals, saved: ArrayLike, capacities: Sequence[float]) -> Optimum:
    """What may be saved at most, and how.

    Args:
        saved: `[intervals, tiers]`, what the use at the end of each interval saves when the chunk
            lay in that tier; `[intervals]` if there is one tier.
        capacities: of each tier, in the unit of the chunks' sizes.

    Cost: 30,000 intervals of 5,600 requests take seconds for one tier, a minute for three.

    Raises:
        ConfigError: `highspy` is not installed.
        ValueError: the shapes do not fit, or HiGHS found no optimum.
    """
    gain = np.asarray(saved, dtype=np.float64)
    gain = gain[:, None] if gain.ndim == 1 else gain
    if gain.shape != (intervals.size.size, len(capacities)):
        wanted = f"[{intervals.size.size}, {len(capacities)}]"
        raise ValueError(f"saved: got shape {list(gain.shape)}, must be {wanted}")
    if not gain.size:
        return Optimum(0.0, gain)
    share = _solve(intervals, gain, np.asarray(capacities, dtype=np.float64))
    return Optimum(float((gain * share).sum()), share)


def _solve(
    intervals: Intervals, gain: NDArray[np.float64], capacities: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Columns: `share` by interval and tier, then bytes used by tier and moment.

    Rows: shares of an interval add up to at most 1; what a tier holds after a request is what it
    held before, and what came, less what went.
    """
    highspy = _highs()
    count, tiers = gain.shape
    moments = intervals.num_requests
    model = highspy.HighsLp()
    model.num_col_ = count * tiers + moments * tiers
    model.num_row_ = count + moments * tiers
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_ = np.concatenate([gain.ravel(), np.zeros(moments * tiers)])
    model.col_lower_ = np.zeros(model.num_col_)
    model.col_upper_ = np.concatenate([np.ones(count * tiers), np.repeat(capacities, moments)])
    model.row_lower_ = np.concatenate(
        [np.full(count, -highspy.kHighsInf), np.zeros(moments * tiers)]
    )
    model.row_upper_ = np.concatenate([np.ones(count), np.zeros(moments * tiers)])
    rows, columns, values = _matrix(intervals, tiers)
    order = np.lexsort((rows, columns))
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_ = np.searchsorted(columns[order], np.arange(model.num_col_ + 1))
    model.a_matrix_.index_ = rows[order]
    model.a_matrix_.value_ = values[order]
    solver = highspy.Highs()
    solver.silent()
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("solver", "ipm")
    solver.passModel(model)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise ValueError(f"HiGHS: {solver.modelStatusToString(solver.getModelStatus())}")
    found = np.asarray(solver.getSolution().col_value)[: count * tiers]
    return found.reshape(count, tiers).clip(0.0, 1.0)


def _matrix(
    intervals: Intervals, tiers: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Row, column and value of every coefficient."""
    count, moments = intervals.size.size, intervals.num_requests
    interval = np.repeat(np.arange(count), tiers)
    tier = np.tile(np.arange(tiers), count)
    column = np.arange(count * tiers)
    lies = np.repeat(intervals.start < intervals.end, tiers)
    size = np.repeat(intervals.size, tiers)[lies]
    first = count + tier * moments  # row of the tier's first moment
    comes = (first + np.repeat(intervals.start, tiers))[lies]
    goes = (first + np.repeat(intervals.end, tiers))[lies]
    used = np.arange(moments * tiers)
    later = used[used % moments != 0]
    rows = [interval, comes, goes, count + used, count + later]
    columns = [column, column[lies], column[lies], count * tiers + used, count * tiers + later - 1]
    values = [np.ones(column.size), -size, size, np.ones(used.size), -np.ones(later.size)]
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)


def _highs() -> ModuleType:
    try:
        import highspy
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the offline optimum needs highspy. Hint: pip install 'chunkcache[hitrate]'"
        ) from error
    return highspy
