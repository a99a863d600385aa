"""Many may pass together, or one alone: what closing and remapping an environment need."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType


class Turnstile:
    """Shared and exclusive passage. Thread-safe, not reentrant: a thread passes once at a time.

    Who waits to be alone keeps newcomers out, so that steady traffic cannot starve it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self._taken = False

    def passing(self) -> AbstractContextManager[None]:
        """Inside together with others, never with someone who is alone."""
        return _Passage(self)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside with nobody else; waits until all have left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken)
            self._taken = True
            self._changed.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


class _Passage:
    """No generator: it is entered for every layer that is read, when all that Python needs has left
    the processor's cache."""

    __slots__ = ("_of",)

    def __init__(self, of: Turnstile) -> None:
        self._of = of

    def __enter__(self) -> None:
        of = self._of
        with of._lock:
            while of._taken:
                of._changed.wait()
            of._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        of = self._of
        with of._lock:
            of._inside -= 1
            if of._taken:  # else nobody waits for it
                of._changed.notify_all()
