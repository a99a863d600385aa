"""`Lane`: how many requests work in threads at once, so that none of them waits for a free thread.

Synchronous routes share one pool of threads. Those that compute or write (uploads, embeddings,
searches) would fill it, and a look at the list of files then waits for an ingest. They go through a
lane that is narrower than the pool; in front of it they wait on the event loop, in order.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, cast

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from chunkcache.errors import Overloaded
from chunkcache.pace import Pace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_LOOKS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_MOST_WAITING: Final = 256


class Lane:
    """So many at once, the others wait in order; of one event loop. `waiting`: how many do."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._places = asyncio.Semaphore(width)
        self.waiting = 0
        self._pace = Pace()

    @asynccontextmanager
    async def place(self, request: Request) -> AsyncIterator[None]:
        """A place in the lane.

        Raises:
            Overloaded: too many wait already.
            ClientDisconnect: the client has gone while its request waited.
        """
        if self.waiting >= _MOST_WAITING:
            raise Overloaded(
                f"{self.waiting} requests wait to be worked on, the limit is {_MOST_WAITING}",
                retry_after_s=self._pace.wait_s(self.waiting + 1, self._width),
            )
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        began_s = time.monotonic()
        try:
            if await request.is_disconnected():
                raise ClientDisconnect
            yield
        finally:
            self._pace.observe(time.monotonic() - began_s)
            self._places.release()


async def _place(request: Request) -> AsyncIterator[None]:
    works = not inspect.iscoroutinefunction(request.scope["endpoint"])
    if not works or request.method in _LOOKS:
        yield
        return
    async with cast("Lane", request.app.state.lane).place(request):
        yield


LANE = Depends(_place, scope="function")
"""For every router: the route is held to the lane, if it is one of those that work."""
