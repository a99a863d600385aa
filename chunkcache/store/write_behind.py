"""Writes off the request path: one thread, a bounded queue, in the order offered."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from chunkcache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.chunk import ChunkKV


class WriteQueue(Protocol):
    """Takes records and writes them, sooner or later; `WriteBehind` says what the verbs do."""

    def offer(self, record: ChunkKV, *, wait_for_place: bool) -> Future[bool] | None:
        """Take a record. None: there is no place."""
        ...

    def flush(self) -> None:
        """Wait until all that was taken is written."""
        ...

    def close(self) -> None:
        """Write what is left and take no more."""
        ...


class NewQueue(Protocol):
    """Makes the queue of one tier; `WriteBehind` says what the arguments are."""

    def __call__(
        self, write: Callable[[ChunkKV], bool], limit: int, limit_bytes: int, *, name: str
    ) -> WriteQueue: ...


class WriteBehind:
    """Calls `write` for each record offered, in a thread of its own. Thread-safe.

    Args:
        write: what it raises is handed to whoever waits for that record; the thread goes on.
        limit: records that may wait. They are held in memory.
        limit_bytes: KV that may wait; one record larger than that may wait alone.
        name: of the thread.
    """

    def __init__(
        self,
        write: Callable[[ChunkKV], bool],
        limit: int,
        limit_bytes: int,
        *,
        name: str = "chunkcache-writer",
    ) -> None:
        self._write = write
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[ChunkKV, Future[bool]]] = deque()
        self._waiting_bytes = 0
        self._offered = 0
        self._finished = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def offer(self, record: ChunkKV, *, wait_for_place: bool) -> Future[bool] | None:
        """Queue a record. None: the queue is full, and `wait_for_place` is False.

        Raises:
            StoreError: closed, or in a forked child, which has no such thread.
        """
        self._check_process()
        with self._changed:
            if wait_for_place:
                self._changed.wait_for(lambda: self._closed or self._has_place(record))
            if self._closed:
                raise StoreError("store: it is closed and takes no more records")
            if not self._has_place(record):
                return None
            done: Future[bool] = Future()
            self._waiting.append((record, done))
            self._waiting_bytes += record.size_bytes
            self._offered += 1
            self._changed.notify_all()
            return done

    def flush(self) -> None:
        """Wait until everything offered so far has been written or has failed.

        Raises:
            StoreError: in a forked child.
        """
        self._check_process()
        with self._changed:
            target = self._offered
            self._changed.wait_for(lambda: self._finished >= target)

    def close(self) -> None:
        """Write what is queued, take nothing more, end the thread. Idempotent.

        In a forked child: nothing, the queue is the parent's.
        """
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _has_place(self, record: ChunkKV) -> bool:
        return not self._waiting or (
            len(self._waiting) < self._limit
            and self._waiting_bytes + record.size_bytes <= self._limit_bytes
        )

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError("store: opened before a fork. Hint: open it in the child")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._waiting))
                if not self._waiting:
                    return
                record, done = self._waiting.popleft()
                self._waiting_bytes -= record.size_bytes
                self._changed.notify_all()
            try:
                done.set_result(self._write(record))
            except Exception as error:
                done.set_exception(error)  # one odd record must not stop all later writes
            del record, done  # not kept alive while the thread sleeps
            with self._changed:
                self._finished += 1
                self._changed.notify_all()


def any_written(queued: Sequence[Future[bool] | None]) -> bool:
    """Whether one of several was; waits. Raises `StoreError`: none was written, and one failed."""
    written, failure = False, None
    for done in queued:
        try:
            written = (done is not None and done.result()) or written
        except StoreError as error:
            failure = failure or error
    if failure is not None and not written:
        raise failure
    return written
