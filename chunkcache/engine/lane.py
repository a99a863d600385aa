"""Where chunks are brought up: beside the engine's own work on the device, and in order with it.

On a GPU that is a stream of its own. Copies out of pinned memory, rotation and laying out into
pages are queued there; a mark behind them is what the engine's stream waits for, layer by layer,
without the host. A page that is given away is written when all is done that might still read it.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

_PINNED_BUFFERS = 3  # of a thread: one is filled while others are copied


class Mark(Protocol):
    """A place in a lane's work."""

    def wait(self) -> None:
        """What the calling thread queues from now on runs when the device has come past it."""
        ...

    def synchronize(self) -> None:
        """The calling thread waits until the device has come past it."""
        ...


class Lane(Protocol):
    """Work beside the engine's. Thread-safe."""

    def new_ring(self) -> StagingRing:
        """Where one thread reads to what it gives to the lane."""
        ...

    def work(self) -> AbstractContextManager[None]:
        """Within, what is given to the device goes to the lane."""
        ...

    def mark(self) -> Mark | None:
        """Behind all that has been given to the lane; None: it is done already."""
        ...

    def pages_freed(self) -> None:
        """Pages may be written again once what the calling thread has queued so far is done."""
        ...


class HostLane:
    """On a CPU: everything is done when it returns."""

    def new_ring(self) -> StagingRing:
        """See `Lane`."""
        return StagingRing(1, pinned=False)

    def work(self) -> AbstractContextManager[None]:
        """See `Lane`."""
        return nullcontext()

    def mark(self) -> None:
        """See `Lane`."""

    def pages_freed(self) -> None:
        """See `Lane`."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamMark:
    """A place in a CUDA stream, for the stream of its device that others queue on."""

    event: torch.cuda.Event
    device: torch.device

    def wait(self) -> None:
        """See `Mark`."""
        self.event.wait(torch.cuda.current_stream(self.device))

    def synchronize(self) -> None:
        """See `Mark`."""
        self.event.synchronize()


class StreamLane:
    """A CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._freed: torch.cuda.Event | None = None

    def new_ring(self) -> StagingRing:
        """See `Lane`."""
        return StagingRing(_PINNED_BUFFERS, pinned=True)

    @contextmanager
    def work(self) -> Iterator[None]:
        """See `Lane`."""
        freed = self._freed
        with torch.cuda.stream(self._stream):
            if freed is not None:
                self._stream.wait_event(freed)
            yield

    def mark(self) -> Mark:
        """See `Lane`."""
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return StreamMark(event, self._device)

    def pages_freed(self) -> None:
        """See `Lane`."""
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._freed = event


def has_streams(device: torch.device) -> bool:
    """Whether work is queued there, and done later."""
    return device.type == "cuda"


def use_device(device: torch.device) -> None:
    """What the calling thread launches goes there: Triton asks the thread, not its tensors."""
    if has_streams(device):
        torch.cuda.set_device(device)


def lane_for(device: torch.device) -> Lane:
    """The lane of a device."""
    return StreamLane(device) if has_streams(device) else HostLane()


class StagingRing:
    """Buffers that one thread reads layers into, used in turn: while one is being copied to the
    device, the next is filled.

    Args:
        count: how many there are.
        pinned: their memory is, so that copies out of it are queued.
    """

    def __init__(self, count: int, *, pinned: bool) -> None:
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * count
        self._marks: list[Mark | None] = [None] * count
        self._pinned = pinned
        self._at = 0

    def take(self, size_bytes: int) -> torch.Tensor:
        """uint8 `[size_bytes]`: the next buffer, once the device has done with it."""
        mark = self._marks[self._at]
        if mark is not None:
            mark.synchronize()
            self._marks[self._at] = None
        if len(self._buffers[self._at]) < size_bytes:
            self._buffers[self._at] = torch.empty(
                size_bytes, dtype=torch.uint8, pin_memory=self._pinned
            )
        return self._buffers[self._at][:size_bytes]

    def pass_on(self, mark: Mark | None) -> None:
        """The buffer taken last is read by the device up to `mark`."""
        self._marks[self._at] = mark
        self._at = (self._at + 1) % len(self._buffers)
