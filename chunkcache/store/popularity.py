"""How much every record was wanted lately, those that left included. Pure: digests, no clock."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from math import exp2, log2
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_REMEMBERED_HALF_LIVES = 16  # a use that long ago weighs 2^-16: it is forgotten


class Popularity:
    """Uses of each record, decayed: one use weighs 2^(−age / half-life), age in uses of any record.

    Time is counted in uses so that a quiet night ages nothing. Because all weights decay alike,
    their order changes only when something is used: they are kept as logarithms which never need
    updating, and which grow without bound by 1 per half-life. Thread-safe; tiers may share one, so
    that a record coming down a tier is known there. `count`, `weights`: O(1). Memory: at most 16
    half-lives of records, some 300 bytes each.

    Args:
        half_life_uses: after so many uses of any record one weighs half.
        also: further digests that a tier may keep a record under, as many for each.
    """

    def __init__(
        self,
        half_life_uses: float = 8000,
        *,
        also: Callable[[bytes], Sequence[bytes]] = lambda _: (),
    ) -> None:
        self._half_life = half_life_uses
        self._also = also
        names = 1 + len(also(bytes(32)))
        self._limit = names * math.ceil(_REMEMBERED_HALF_LIVES * half_life_uses)
        self._lock = threading.Lock()
        self._now = 0
        self._weights: OrderedDict[bytes, float] = OrderedDict()  # least recently used first
        self._last: dict[bytes, int] = {}  # the number of each one's last use

    def count(self, digest: bytes) -> None:
        """A record was wanted, whether it was there or not."""
        with self._lock:
            self._now += 1
            self._add(digest)
            for other in self._also(digest):
                self._add(other)

    def introduce(self, digest: bytes) -> None:
        """A record came in under this digest: if nobody ever wanted it, that counts as a use."""
        if digest in self._weights:
            return
        with self._lock:
            if digest not in self._weights:
                self._now += 1
                self._add(digest)

    def follow(self, digest: bytes, to: bytes) -> None:
        """A record lies under another digest from now on: it was wanted as often; no use."""
        with self._lock:
            if digest in self._weights and to not in self._weights:
                self._weights[to], self._last[to] = self._weights[digest], self._last[digest]
                self._weights.move_to_end(to, last=False)
                self._forget_some()

    @property
    def counted(self) -> int:
        """Uses counted so far, of all records."""
        return self._now

    def last_use(self, digest: bytes) -> int:
        """What `counted` was when a record was wanted last; 0: unknown, or forgotten since."""
        return self._last.get(digest, 0)

    @property
    def weights(self) -> Mapping[bytes, float]:
        """log2 of the decayed number of uses, on a scale on which nothing decays; to be read."""
        return self._weights

    def _add(self, digest: bytes) -> None:
        now, weights = self._now, self._weights
        fresh = now / self._half_life
        old = weights.get(digest)
        self._last[digest] = now
        if old is None:
            weights[digest] = fresh
            self._forget_some()
        else:
            weights[digest] = fresh + log2(1.0 + exp2(old - fresh))
            weights.move_to_end(digest)

    def _forget_some(self) -> None:
        while len(self._weights) > self._limit:
            del self._last[self._weights.popitem(last=False)[0]]

    def uses(self, digest: bytes) -> float:
        """The decayed number of uses as of now."""
        with self._lock:
            return exp2(self._weights.get(digest, -math.inf) - self._now / self._half_life)
