"""CUDA's streams, events and graphs as they may turn out: what is queued is done when somebody
waits for it, not before. On a CPU, in place of `torch.cuda`.

What a side stream is given, and every copy to pinned memory, is late: its source is read when it is
done, its target holds rubbish until then. A stream that nothing waits for is never done.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

Work = Callable[[], None]


class Stream:
    """Work in order; `default` is done at once."""

    def __init__(self, device: Any = None, *, default: bool = False) -> None:
        self.default = default
        self._given: list[Work] = []
        self._done = 0
        self._lock = threading.RLock()

    def give(self, work: Work) -> None:
        with self._lock:
            self._given.append(work)
            if self.default:
                self.reach(len(self._given))

    @property
    def end(self) -> int:
        return len(self._given)

    def reach(self, place: int) -> None:
        """All up to there is done."""
        with self._lock:
            while self._done < place:
                self._done += 1
                self._given[self._done - 1]()

    def synchronize(self) -> None:
        self.reach(self.end)

    def wait_event(self, event: Event) -> None:
        self.give(event.synchronize)

    def wait_stream(self, other: Stream) -> None:
        end = other.end
        self.give(lambda: other.reach(end))


class Event:
    def __init__(self, late: LateCuda) -> None:
        self._late = late
        self._place: tuple[Stream, int] | None = None
        self._copies: list[Work] = []

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self._late.current_stream()
        self._place = stream, stream.end
        if stream.default:
            self._copies, self._late.copies = self._late.copies, []

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self._late.current_stream()).wait_event(self)

    def synchronize(self) -> None:
        assert self._place is not None
        stream, end = self._place
        stream.reach(end)
        while self._copies:
            self._copies.pop()()


class Graph:
    """As torch 2.11 has them: a pool dies with its last graph, and a failed capture never ends."""

    def __init__(self, late: LateCuda) -> None:
        self._late = late

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        late = self._late
        if late.broken:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        if late.pools.get(pool) == 0:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        assert not late.current_stream().default, "graphs are captured on a side stream"
        assert capture_error_mode == "thread_local", "loader threads copy meanwhile"
        late.pools[pool] = late.pools.get(pool, 0) + 1
        weakref.finalize(self, late.release, pool)
        late.capturing = True

    def capture_end(self) -> None:
        self._late.capturing = False
        if self._late.fails:
            self._late.broken = True
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self) -> None:
        self._late.replayed += 1


class LateCuda:
    """What of `torch.cuda` the engine uses."""

    def __init__(self) -> None:
        self.default = Stream(default=True)
        self.copies: list[Work] = []  # to pinned memory, behind no event yet
        self.pools: dict[int, int] = {}  # graphs in each
        self.capturing = self.fails = self.broken = False
        self.replayed = self.late = 0
        self._here = threading.local()
        self._pinned = set[int]()  # storages

    def release(self, pool: int) -> None:
        self.pools[pool] -= 1

    def current_stream(self, device: Any = None) -> Stream:
        return getattr(self._here, "stream", self.default)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._here.stream = self.current_stream(), stream
        yield
        self._here.stream = before

    def queued(
        self, work: Callable[..., None], rubbish: Callable[..., None]
    ) -> Callable[..., None]:
        """`work` as a launch: where a side stream is the current one, later, and rubbish now."""

        def launch(*args: Any) -> None:
            stream = self.current_stream()
            if not stream.default:
                self.late += 1
                rubbish(*args)
            stream.give(lambda: work(*args))

        return launch

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """In the place of torch's; pinned memory is ordinary memory that we know."""
        true_empty, true_copy = torch.empty, torch.Tensor.copy_

        def empty(*shape: Any, pin_memory: bool = False, **of: Any) -> torch.Tensor:
            made = true_empty(*shape, **of)
            if pin_memory:
                self._pinned.add(made.untyped_storage()._cdata)
            return made

        def copy(to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> Any:
            if not (non_blocking and to.untyped_storage()._cdata in self._pinned):
                return true_copy(to, source, non_blocking)
            self.late += 1
            to.fill_(-7)
            stream = self.current_stream()
            give = self.copies.append if stream.default else stream.give
            give(lambda: [true_copy(to, source)].clear())
            return to

        for name, stands in {
            "Stream": Stream, "Event": lambda **_: Event(self), "CUDAGraph": lambda: Graph(self),
            "stream": self.stream, "current_stream": self.current_stream,
            "graph_pool_handle": lambda: len(self.pools),
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, stands)
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch.Tensor, "copy_", copy)
