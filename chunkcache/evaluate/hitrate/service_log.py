"""The service's own log of look-ups as a trace, and the sizing curve it leads to."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import structlog

from chunkcache.console.lookup_log import FILE_NAME, OLDER_NAME
from chunkcache.console.sizing import Sizing, SizingPoint, write_sizing
from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.hitrate.json_lines import Line, json_lines
from chunkcache.evaluate.hitrate.prompts import chunk_request, log_sizes
from chunkcache.evaluate.hitrate.trace import Trace, TracedRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from chunkcache.evaluate.hitrate.curve import Point
    from chunkcache.evaluate.hitrate.trace import RecordSizes

log = structlog.get_logger(__name__)


def read_service_log(home: Path) -> Trace:
    """The requests logged in a home folder, the older file first.

    Raises:
        InvalidRequest: there is no log, or nothing in it.
    """
    files = [home / name for name in (OLDER_NAME, FILE_NAME) if (home / name).exists()]
    if not files:
        raise InvalidRequest.of(
            "trace", str(home), "a home folder whose service has answered from passages",
            "name a trace, or let the service run with store.lookup_log_bytes above 0",
        )  # fmt: skip
    sizes, count = _scan(files)
    if sizes is None or not count:
        raise InvalidRequest.of("trace", FILE_NAME, "of one request at least", "it is empty")
    return Trace(f"{count} requests of this service", partial(_requests, files), sizes, count)


def _scan(files: Sequence[Path]) -> tuple[RecordSizes | None, int]:
    sizes, count = None, 0
    for line in _lines(files):
        if "log" in line.fields:
            sizes = log_sizes(line)  # the last one: the model that is served now
        else:
            count += 1
    return sizes, count


def _requests(files: Sequence[Path]) -> Iterator[TracedRequest]:
    last_s = 0.0
    sizes: dict[int | str, int] = {}
    for line in _lines(files):
        if "log" in line.fields:
            continue
        request = chunk_request(line)
        last_s = max(last_s, request.at_s)  # clocks are set back, and processes write in turns
        tokens = [sizes.setdefault(c, n) for c, n in zip(request.ids, request.tokens, strict=True)]
        yield TracedRequest(last_s, request.ids, tokens, request.is_passage)


def _lines(files: Sequence[Path]) -> Iterator[Line]:
    """A line that a crash tore is left out with a warning."""
    for path in files:
        yield from json_lines(path, skip=_warn)


def _warn(error: InvalidRequest) -> None:
    log.warning("lookup_log_line_damaged", reason=error.message, effect="it is left out")


def keep_sizing(home: Path, trace: Trace, points: Sequence[Point]) -> Path:
    """Leave the curve where the service's page looks for it. Returns: the file.

    Args:
        points: two at least, of memory alone, with the policy the service has.
    """
    rates = {point.memory_bytes: point.replay.hit_rate for point in points}
    curve = [
        SizingPoint(capacity_bytes=size, hit_rate=round(rate, 4))
        for size, rate in sorted(rates.items())
    ]
    return write_sizing(home, Sizing(made_at=time.time(), trace=trace.name[:200], points=curve))
