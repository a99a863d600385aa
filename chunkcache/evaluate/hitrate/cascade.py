"""Tiers that give what they evict to the next one down, driven by real policies, priced.

What `optimum.py` bounds: every use brings its chunk to the first tier, movement is free, and a use
pays the load of the tier it found its chunk in, or for computing it again. Requests that wait may
be told to the policies before their turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chunkcache.store.policy import Entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from chunkcache.store.policy import Policy


@dataclass(frozen=True, slots=True)
class CascadeTier:
    """A tier: its room, what loading one unit of size from it costs, and who leaves it."""

    capacity: int
    load_cost: float
    policy: Policy


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay cost, and by tier the share of sizes and of uses found there."""

    cost: float  # relative to computing every chunk at every use
    size_found: tuple[float, ...]
    uses_found: tuple[float, ...]

    @property
    def object_miss(self) -> float:
        """Share of uses found in no tier."""
        return 1.0 - sum(self.uses_found)


class _Tier:
    def __init__(self, spec: CascadeTier, compute_cost: float, by_size: bool) -> None:
        self.spec = spec
        self._saves = compute_cost - spec.load_cost
        self._by_size = by_size
        self.sizes: dict[bytes, int] = {}
        self.used = 0

    def put(self, digest: bytes, size: int) -> list[bytes]:
        """Who must go further down for it: those evicted, or itself."""
        entry = Entry(size, self._saves * size if self._by_size else self._saves)
        excess = self.used + size - self.spec.capacity
        evicted = self.spec.policy.admit(digest, entry, excess)
        if evicted is None:
            return [digest]
        for victim in evicted:
            self.remove(victim)
        self.spec.policy.on_put(digest, entry)
        self.sizes[digest] = size
        self.used += size
        return evicted

    def remove(self, digest: bytes) -> None:
        self.used -= self.sizes.pop(digest)
        self.spec.policy.on_delete(digest)


def replay_cascade(
    chunks: ArrayLike,
    sizes: ArrayLike,
    requests: ArrayLike,
    tiers: Sequence[CascadeTier],
    *,
    compute_cost: float,
    look_ahead: int = 0,
    shares_popularity: bool = False,
    saves_by_size: bool = True,
) -> ReplayResult:
    """Replay a trace, given as for `Intervals.of`, with whole numbers as sizes.

    Args:
        tiers: from the first one down.
        compute_cost: of one unit of size.
        look_ahead: requests behind the present one that the policies are told of.
        saves_by_size: policies are told that a hit saves more of a larger chunk; False: as much
            of any, for those who count objects.
        shares_popularity: the policies count uses in one place, so only the first one is told.
    """
    queue = _by_request(chunks, sizes, requests)
    held = [_Tier(spec, compute_cost, saves_by_size) for spec in tiers]
    policies = [tier.policy for tier in tiers]
    told = policies[:1] if shares_popularity else policies
    size_of: dict[bytes, int] = {}
    found_size, found_uses, total, uses = np.zeros(len(tiers)), np.zeros(len(tiers)), 0, 0
    for place, wanted in enumerate(queue):
        for request in queue[1 : look_ahead + 1] if place == 0 else queue[place + look_ahead :][:1]:
            if look_ahead:
                for policy in policies:
                    policy.on_wait(digest for digest, _ in request)
        for policy in policies if look_ahead and place else ():
            policy.on_wait_over(digest for digest, _ in wanted)
        for digest, size in wanted:
            size_of[digest] = size
            total, uses = total + size, uses + 1
            for policy in told:
                policy.on_use(digest)
            where = next((k for k, tier in enumerate(held) if digest in tier.sizes), None)
            if where is not None:
                found_size[where] += size
                found_uses[where] += 1
            if where != 0:
                if where is not None:
                    held[where].remove(digest)
                going_down = [digest]
                for tier in held:
                    going_down = [
                        further for each in going_down for further in tier.put(each, size_of[each])
                    ]
    saved = sum(
        (compute_cost - tier.load_cost) * size for tier, size in zip(tiers, found_size, strict=True)
    )
    cost = 1.0 - saved / (compute_cost * total) if total else 0.0
    return ReplayResult(cost, tuple(found_size / max(1, total)), tuple(found_uses / max(1, uses)))


def _by_request(
    chunks: ArrayLike, sizes: ArrayLike, requests: ArrayLike
) -> list[list[tuple[bytes, int]]]:
    """Digests and sizes of each request, in order."""
    grouped: dict[int, list[tuple[bytes, int]]] = {}
    columns = (np.asarray(column).tolist() for column in (requests, chunks, sizes))
    for request, chunk, size in zip(*columns, strict=True):
        grouped.setdefault(request, []).append((b"%d" % chunk, size))
    return list(grouped.values())
