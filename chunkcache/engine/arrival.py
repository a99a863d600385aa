"""Which layers of a chunk have come up: loaders say so, the engine waits for the one it needs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chunkcache.engine.lane import Mark


class NotArrived(Exception):
    """A pass needs a layer that will not come, or not soon: what has run of it is in vain."""


class Arrival:
    """The layers of one chunk on their way up, in any order. Thread-safe.

    It is settled once all of them have come (`is_whole`) or the rest will not (`failure` says why).
    On a GPU a layer has come once its way up is queued: the engine's stream is to `follow`.
    """

    def __init__(self, num_layers: int) -> None:
        self._changed = threading.Condition()
        self._here = [False] * num_layers
        self._missing = num_layers
        self.is_whole = num_layers == 0
        self.failure: str | None = None
        self._marks: list[Mark] = []  # behind layers that have come, not followed yet

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will come."""
        return self.is_whole or self.failure is not None

    def came(self, first: int, end: int, mark: Mark | None = None) -> None:
        """Layers `first` up to but not including `end` are in their pages, on the device from
        `mark` on.
        """
        with self._changed:
            if mark is not None:
                self._marks.append(mark)
            self._missing -= self._here[first:end].count(False)
            self._here[first:end] = [True] * (end - first)
            self.is_whole = self._missing == 0
            self._changed.notify_all()

    def follow(self) -> bool:
        """What this thread queues on the device from now on comes after the layers that are there.

        All who read them queue on one and the same stream. Returns: whether all layers are there.
        """
        with self._changed:
            for mark in self._marks:
                mark.wait()
            self._marks.clear()
            return self.is_whole

    def fail(self, reason: str) -> None:
        """What has not come will not come any more; of a whole one, nothing."""
        with self._changed:
            if not self.is_whole and self.failure is None:
                self.failure = reason
                self._changed.notify_all()

    def wait_for(self, layer: int, patience_s: float) -> int:
        """Wait until a layer is there. Returns: the first layer above it that is not.

        Raises:
            NotArrived: it will not come, or has not within `patience_s`.
        """
        if self.is_whole:
            return len(self._here)
        with self._changed:
            self._changed.wait_for(
                lambda: self._here[layer] or self.failure is not None, patience_s
            )
            if not self._here[layer]:
                raise NotArrived(f"layer {layer}: {self.failure or 'late'}")
            end = layer + 1
            while end < len(self._here) and self._here[end]:
                end += 1
            return end
