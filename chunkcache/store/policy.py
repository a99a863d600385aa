"""Which records leave a tier when room is needed. Pure: digests and figures, no tensors, no clock.

A policy is told what happened and answers `admit` and `victims`; it never evicts by itself, and
asking changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from chunkcache.chunk import USUAL_TERMS

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from chunkcache.chunk import Terms

PINNED_SHARE = 0.5
"""Of a tier, that pins may keep; what is to be pinned beyond that is kept as warmed instead.
Pins of all of it would leave every tenant's next record no room."""


class Entry(NamedTuple):
    """What a policy knows of a record.

    `saved` is what one hit saves beside a miss, in one unit for all that a policy is told: tiers
    say tokens.
    """

    size_bytes: int
    saved: float = 1.0
    terms: Terms = USUAL_TERMS


class Refusal(NamedTuple):
    """Why a record does not come in, in words for an operator, and what to set to change that.

    The knob is empty where it is the tier's own capacity.
    """

    reason: str
    knob: str = ""


class Room(NamedTuple):
    """Bytes that may come in for a tenant, and what keeps it from being more."""

    size_bytes: int
    limit: Refusal


def free_room(free_bytes: int) -> Room:
    """Of a tier that nothing else limits."""
    return Room(max(0, free_bytes), Refusal("the store is full"))


class Policy(Protocol):
    """Order of eviction. Not thread-safe: the tier that owns it holds its own lock."""

    def on_use(self, *digests: bytes) -> None:
        """A request wanted these, whether they are here or not. The only verb that counts."""
        ...

    def on_put(self, digest: bytes, entry: Entry) -> None:
        """A record came in, or came in again as another. No use: a demotion is none."""
        ...

    def on_recode(self, digest: bytes, to: bytes, entry: Entry) -> None:
        """A record that nobody wanted lately is another now, smaller, maybe under another digest.

        No use, and no newcomer. Unknown digests are ignored.
        """
        ...

    def on_delete(self, digest: bytes) -> None:
        """A record left, evicted or deleted. Unknown digests are ignored."""
        ...

    def on_time(self, now_s: float) -> None:
        """It is this late now (Unix time), as far as `Terms.expires_s` is concerned.

        A clock may be set back: what has expired stays so, what comes in goes by the new time.
        """
        ...

    def on_quota(self, tenant: str, limit_bytes: int | None) -> None:
        """A tenant may hold so much from now on; None: as much as there is."""
        ...

    def on_wait(self, digests: Iterable[bytes]) -> None:
        """A request that will want these stands in the queue, behind those told of before.

        They leave only if nothing else can, those wanted last first; for a newcomer that is waited
        for, too, those alone that are wanted after it.
        """
        ...

    def on_wait_over(self, digests: Iterable[bytes]) -> None:
        """A request that wanted these has left the queue, the first of them if there are more."""
        ...

    def admit(
        self, digest: bytes, entry: Entry, bytes_needed: int, spared: Container[bytes] = ()
    ) -> list[bytes] | None:
        """Whom to evict, worst first, so that a record may come in; None: it is not to.

        Args:
            bytes_needed: that must become free, 0 or less where there is room.
            spared: in use, they stay.
        """
        ...

    def victims(self, bytes_needed: int, spared: Container[bytes] = ()) -> list[bytes]:
        """Digests to evict, worst first, which together free `bytes_needed`, or all that may go."""
        ...

    def why_not(self, digest: bytes, entry: Entry) -> Refusal:
        """Why `admit` has just said no."""
        ...

    def room_for(self, tenant: str, free_bytes: int) -> Room:
        """What may come in for a tenant at the cost of none but its own records, above its quota.

        What is pinned or waited for stays. O(records) where it has a quota, else O(1).

        Args:
            free_bytes: of the tier.
        """
        ...

    def may_pin(self, size_bytes: int, instead_of: Iterable[bytes] = ()) -> bool:
        """Whether a record of that size may be pinned that comes in for these, if they are here.

        To be asked before one is told of a pinned record: what is said to be pinned is.
        """
        ...

    def pins_beyond(self) -> list[bytes]:
        """Pinned records that are more than may be: those that came in last, as few as will do."""
        ...
