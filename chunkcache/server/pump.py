"""From a blocking iterator of events to the event loop: bounded read-ahead, cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from chunkcache.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Receive

    from chunkcache.protocol import AnswerEvent
    from chunkcache.server.backend import RunningAnswer

READ_AHEAD: Final = 32
"""Events handed over and not yet sent; a slow reader holds the thread here, not memory."""


class AnswerPump:
    """Starts and reads one answer in a thread of its own; iterates over its events on the loop.

    A thread per answer and not a pool: the service's own queue limit bounds their number, and a
    full pool would turn its 429 into a silent wait. Least of all the server's shared pool: an
    answer may wait for the model before it starts, and other routes must not wait with it. The pump
    also listens for the client going away, in either response form, and cancels the answer then.

    Must be created on a running loop, and closed on it. A finished answer is never cancelled.
    """

    def __init__(self, start: Callable[[threading.Event], RunningAnswer], receive: Receive) -> None:
        """`start` is called in the thread, with what is set when nobody waits any more."""
        self._start = start
        self._answer: RunningAnswer | None = None
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[AnswerEvent | Exception | None] = asyncio.Queue()
        self._room = threading.Semaphore(READ_AHEAD)
        self._closed = threading.Event()
        self._ended = False
        self._listener = self._loop.create_task(self._listen(receive))
        read = partial(contextvars.copy_context().run, self._read)  # logs name the request
        threading.Thread(target=read, name="answer-pump", daemon=True).start()

    def __aiter__(self) -> AsyncIterator[AnswerEvent]:
        return self

    async def __anext__(self) -> AnswerEvent:
        """The next event. Raises what the answer raised, or Cancelled after `close`."""
        if self._ended:
            raise StopAsyncIteration
        item = await self._queue.get()
        self._room.release()
        if item is None:
            self._ended = True
            raise StopAsyncIteration
        if isinstance(item, Exception):
            self._ended = True
            raise item
        return item

    def close(self) -> None:
        """Cancel the answer unless it has ended. A second call does nothing."""
        self._listener.cancel()
        if self._closed.is_set():
            return
        self._closed.set()
        if not self._ended:
            if self._answer is not None:  # else the thread sees `_closed` when it has one
                self._answer.cancel()
            self._queue.put_nowait(Cancelled("The client went away."))
        self._room.release()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self.close()

    def _read(self) -> None:
        try:
            answer = self._answer = self._start(self._closed)
            if self._closed.is_set():
                answer.cancel()
            for event in answer.events():
                if not self._hand_over(event):
                    return
            self._hand_over(None)
        except Exception as error:
            self._hand_over(error)

    def _hand_over(self, item: AnswerEvent | Exception | None) -> bool:
        """False: nobody reads any more."""
        self._room.acquire()
        if self._closed.is_set() or self._loop.is_closed():
            return False
        self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        return True
