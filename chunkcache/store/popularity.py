"""How much every record was wanted lately, those that left included. Pure: digests, no clock."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from math import exp2, log2
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_REMEMBERED_HALF_LIVES = 16  # a use that long ago weighs 2^-16: it is forgotten


class Uses:
    """How much one record was wanted.

    `weight`: log2 of the decayed number of uses, on a scale on which nothing decays. `last`: what
    `Popularity.counted` was at the last use; 0: none is known, or it was forgotten.
    """

    __slots__ = ("digest", "last", "weight")

    def __init__(self, digest: bytes, weight: float = -math.inf, last: int = 0) -> None:
        self.digest = digest
        self.weight = weight
        self.last = last


class Popularity:
    """Uses of each record, decayed: one use weighs 2^(−age / half-life), age in uses of any record.

    Time is counted in uses so that a quiet night ages nothing. Because all weights decay alike,
    their order changes only when something is used: they are kept as logarithms which never need
    updating, and which grow without bound by 1 per half-life. Thread-safe; tiers may share one, so
    that a record coming down a tier is known there. `count`, `of`: O(1), amortised. Memory: at most
    16 half-lives of records, some 330 bytes each.

    Args:
        half_life_uses: after so many uses of any record one weighs half.
        also: further digests that a tier may keep a record under, as many for each.
    """

    def __init__(
        self,
        half_life_uses: float = 8000,
        *,
        also: Callable[[bytes], Sequence[bytes]] | None = None,
    ) -> None:
        self._half_life = half_life_uses
        self._also = also
        names = 1 + len(also(bytes(32)) if also else ())
        self._limit = names * math.ceil(_REMEMBERED_HALF_LIVES * half_life_uses)
        self._lock = threading.Lock()
        self._now = 0
        self._known: OrderedDict[bytes, Uses] = OrderedDict()  # used longest ago first

    def count(self, *digests: bytes) -> None:
        """Records were wanted one after another, whether they were there or not."""
        add, also = self._add, self._also
        with self._lock:
            for digest in digests:
                self._now += 1
                add(digest)
                if also is not None:
                    for other in also(digest):
                        add(other)
            self._forget_some()

    def introduce(self, digest: bytes) -> Uses:
        """A record came in under this digest: if nobody ever wanted it, that counts as a use."""
        uses = self._known.get(digest)
        if uses is None:
            with self._lock:
                uses = self._known.get(digest)
                if uses is None:
                    self._now += 1
                    uses = self._add(digest)
                    self._forget_some()
        return uses

    def follow(self, digest: bytes, to: bytes) -> None:
        """A record lies under another digest from now on: it was wanted as often; no use."""
        with self._lock:
            uses = self._known.get(digest)
            if uses is not None and to not in self._known:
                self._known[to] = Uses(to, uses.weight, uses.last)
                self._known.move_to_end(to, last=False)
                self._forget_some()

    @property
    def counted(self) -> int:
        """Uses counted so far, of all records."""
        return self._now

    def of(self, digest: bytes) -> Uses:
        """What is known of a record; to be read. It is that record's for as long as it is known."""
        return self._known.get(digest) or Uses(digest)

    def last_use(self, digest: bytes) -> int:
        """What `counted` was when a record was wanted last; 0: unknown, or forgotten since."""
        return self.of(digest).last

    def _add(self, digest: bytes) -> Uses:
        now = self._now
        fresh = now / self._half_life
        uses = self._known.get(digest)
        if uses is None:
            uses = self._known[digest] = Uses(digest, fresh, now)
        else:
            uses.weight = fresh + log2(1.0 + exp2(uses.weight - fresh))
            uses.last = now
            self._known.move_to_end(digest)
        return uses

    def _forget_some(self) -> None:
        """Those used longest ago."""
        while len(self._known) > self._limit:
            _, oldest = self._known.popitem(last=False)
            oldest.last = 0

    def uses(self, digest: bytes) -> float:
        """The decayed number of uses as of now."""
        with self._lock:
            return exp2(self.of(digest).weight - self._now / self._half_life)
