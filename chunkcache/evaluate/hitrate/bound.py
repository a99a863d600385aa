"""What the best placement with the whole future known would hit, for every size of a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.evaluate.hitrate.trace import RecordSizes, Trace


def best_hit_rates(
    trace: Trace,
    sizes: RecordSizes,
    memory_bytes: Sequence[int],
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Share of passage tokens that no policy could exceed, one tier of each size.

    Memory: all accesses. Time: seconds for 30,000 of them and one size, by HiGHS.

    Args:
        on_progress: told how many sizes are done.

    Raises:
        ConfigError: `highspy` is not installed.
    """
    from chunkcache.evaluate.hitrate.optimum import Intervals, best_placement

    numbers: dict[int | str, int] = {}
    chunks: list[int] = []
    tokens: list[int] = []
    requests: list[int] = []
    for number, request in enumerate(trace):
        for chunk, length in request.passages():
            chunks.append(numbers.setdefault(chunk, len(numbers)))
            tokens.append(length)
            requests.append(number)
    taken = [sizes.in_memory(length) for length in tokens]
    intervals = Intervals.of(chunks, taken, requests)
    saved = np.asarray(tokens, dtype=np.float64)[intervals.access]
    rates: list[float] = []
    for done, capacity in enumerate(memory_bytes, start=1):
        best = best_placement(intervals, saved, [capacity])
        rates.append(best.saved / max(1, sum(tokens)))
        on_progress(done)
    return rates
