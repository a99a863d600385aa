"""Which rows run in the next step. Pure: numbers in, numbers out.

Stall-free batching after Sarathi-Serve (OSDI'24, §4.2): every decoding request gets its row in
every step; what is left of the step's budget goes to prefill and repair rows, oldest request
first, split in position order. A step is never empty while something is pending that may run.

A request whose chunks are still coming up runs only when there is nothing else to run, and alone:
nobody else waits for its chunks, and nobody else's pass is given up with its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request with rows to run."""

    request_id: int  # increases with arrival
    pending_rows: int
    is_decode: bool
    is_arriving: bool = False  # not all layers of its chunks are there
    was_given_up: bool = False  # a pass, for lack of a layer: now it waits for all of them


@dataclass(frozen=True, slots=True)
class Share:
    """Rows a request gets in this step."""

    request_id: int
    rows: int


def schedule(candidates: Sequence[Candidate], step_rows: int) -> list[Share]:
    """Split a step's rows among the candidates.

    Decode rows may exceed `step_rows`; then prefill gets nothing in this step, and gets its turn
    as soon as fewer requests decode.
    """
    ready = [c for c in candidates if c.pending_rows and not c.is_arriving]
    if not ready:
        early = (c for c in candidates if c.pending_rows and not c.was_given_up)
        first = min(early, key=lambda c: c.request_id, default=None)
        return [Share(first.request_id, min(step_rows, first.pending_rows))] if first else []
    candidates = ready
    decoding = [c for c in candidates if c.is_decode and c.pending_rows]
    shares = [Share(c.request_id, c.pending_rows) for c in decoding]
    left = step_rows - sum(share.rows for share in shares)
    for candidate in sorted(candidates, key=lambda c: c.request_id):
        if candidate.is_decode or candidate.pending_rows == 0:
            continue
        if left <= 0:
            break
        rows = min(left, candidate.pending_rows)
        shares.append(Share(candidate.request_id, rows))
        left -= rows
    return shares
