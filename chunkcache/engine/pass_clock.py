"""How long passes take, for whoever weighs loading against computing.

On a CPU a pass is over when it returns. On a GPU it is only queued then: events are recorded around
it, and read when the device has come past them, so that nobody waits to know.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.engine.attention import SequenceRows

_MANY_ROWS = 64  # below that a pass is bound by reading the weights and says little of prefill


@dataclass(frozen=True, slots=True)
class PassSize:
    """Rows of a pass, and how many pairs of a row and a key it looks at."""

    rows: int
    pairs: int

    @classmethod
    def of(cls, batch: Sequence[SequenceRows]) -> PassSize | None:
        """Of a pass of many rows through all layers; of any other, None: it is not measured."""
        rows = sum(map(len, batch))
        if rows < _MANY_ROWS or any(g.end_layer is not None or g.first_layer for g in batch):
            return None
        return cls(rows, sum(int(group.positions.sum()) + len(group) for group in batch))


class TimedEvent(Protocol):
    """A place among what is queued on a device, and when it came there: `torch.cuda.Event`."""

    def record(self) -> None:
        """It stands behind all that is queued."""
        ...

    def query(self) -> bool:
        """Whether the device has come there."""
        ...

    def elapsed_time(self, end_event: Any, /) -> float:
        """Milliseconds from here to another one; both must have been reached."""
        ...


class PassClock(Protocol):
    """Measures passes, one after the other."""

    def begin(self) -> None:
        """A pass begins; tells of those that have ended meanwhile."""
        ...

    def end(self, size: PassSize | None, waited_s: float) -> None:
        """It has been run, or queued. `size` is None for one that is not worth measuring; of its
        time it waited `waited_s` for layers of chunks.
        """
        ...


class HostClock:
    """Passes that are over when they return."""

    def __init__(self, on_pass: Callable[[int, int, float], None]) -> None:
        self._on_pass = on_pass
        self._began = 0.0

    def begin(self) -> None:
        """See `PassClock`."""
        self._began = time.perf_counter()

    def end(self, size: PassSize | None, waited_s: float) -> None:
        """See `PassClock`."""
        if size is not None:
            self._on_pass(size.rows, size.pairs, time.perf_counter() - self._began - waited_s)


class EventClock:
    """Passes on a device; one that waited for the host is left out, for the device stood still.

    Args:
        on_pass: told of rows, pairs and seconds, in the thread that begins passes.
        new_event: makes what `torch.cuda.Event(enable_timing=True)` is.
    """

    def __init__(
        self,
        on_pass: Callable[[int, int, float], None],
        new_event: Callable[[], TimedEvent],
    ) -> None:
        self._on_pass = on_pass
        self._new_event = new_event
        self._began: TimedEvent | None = None
        self._queued: deque[tuple[PassSize, TimedEvent, TimedEvent]] = deque()

    def begin(self) -> None:
        """See `PassClock`."""
        while self._queued and self._queued[0][2].query():
            size, began, ended = self._queued.popleft()
            self._on_pass(size.rows, size.pairs, began.elapsed_time(ended) / 1e3)
        self._began = self._new_event()
        self._began.record()

    def end(self, size: PassSize | None, waited_s: float) -> None:
        """See `PassClock`."""
        assert self._began is not None, "ended before it began"
        if size is not None and waited_s == 0.0:
            ended = self._new_event()
            ended.record()
            self._queued.append((size, self._began, ended))


def timed(
    clock: PassClock,
    batch: Sequence[SequenceRows],
    run: Callable[[], list[torch.Tensor | None]],
) -> list[torch.Tensor | None]:
    """Run a pass of these rows, and measure it."""
    kvs = {group.kv for group in batch}
    waited_s = sum(kv.waited_s for kv in kvs)
    clock.begin()
    found = run()
    clock.end(PassSize.of(batch), sum(kv.waited_s for kv in kvs) - waited_s)
    return found


def pass_clock(device: torch.device, on_pass: Callable[[int, int, float], None]) -> PassClock:
    """The clock for passes on that device."""
    if device.type == "cuda":
        return EventClock(on_pass, partial(torch.cuda.Event, enable_timing=True))
    return HostClock(on_pass)
