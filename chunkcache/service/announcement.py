"""What a request that waits will want, told to the tiers so that it is there when its turn comes.

A request announces its chunks once its prompt is known. From then on they leave a tier only if
nothing else can (`Policy.on_wait`), until it begins to run, ends, or comes to nothing.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from chunkcache.chunk import ChunkKey


class Told(Protocol):
    """Who is told: the pages of chunks, and the store for its tiers. Neither verb raises."""

    def on_wait(self, keys: Sequence[ChunkKey]) -> None:
        """A request that waits will want these."""
        ...

    def on_wait_over(self, keys: Sequence[ChunkKey]) -> None:
        """It does not wait any more."""
        ...


class Announcement:
    """One request's; withdrawn at the end of the `with`, unless it was passed on. Thread-safe."""

    def __init__(self, told: Sequence[Told]) -> None:
        self._told = told
        self._lock = threading.Lock()
        self._keys: list[ChunkKey] = []
        self._passed_on = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._passed_on:
            self.withdraw()

    def of(self, keys: Sequence[ChunkKey]) -> None:
        """Announce chunks; one that stands twice in a prompt is wanted once."""
        distinct = list(dict.fromkeys(keys))
        if not distinct:
            return
        with self._lock:
            self._keys += distinct
        for one in self._told:
            one.on_wait(distinct)

    def pass_on(self) -> Callable[[], None]:
        """Somebody else withdraws it from here on: what to call, once or more often."""
        self._passed_on = True
        return self.withdraw

    def withdraw(self) -> None:
        """The request waits no more. Again: nothing."""
        with self._lock:
            keys, self._keys = self._keys, []
        if keys:
            for one in self._told:
                one.on_wait_over(keys)
