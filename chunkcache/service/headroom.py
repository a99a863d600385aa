"""What a warm-up may still bring: told before it is computed, from how large it will be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.store.base import Foresees, TierAtRest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.store.base import Tier
    from chunkcache.store.policy import Refusal

_SLACK = 1.02  # of a record: no codec makes more of a chunk's KV than this and the bytes below
_SLACK_BYTES = 1024 * 1024


class Headroom:
    """Room for a tenant in one tier, less what is on its way there. For one thread.

    Args:
        tier: None: one that says nothing ahead, as those on other machines; all fits.
        bytes_per_token: of KV, uncoded.
    """

    def __init__(self, tier: Foresees | None, tenant: str, bytes_per_token: int) -> None:
        self._tier = tier
        self._tenant = tenant
        self._bytes_per_token = bytes_per_token
        self._coming: dict[bytes, int] = {}  # tokens, by digest
        self.limit: Refusal | None = None  # of what did not fit last

    def left_over(self, token_counts: Sequence[int], *, parts: int = 1) -> list[int]:
        """Of chunks with so many tokens each, those that would not fit if they came in this order.

        Args:
            parts: so many bring as much at the same time, this one included.
        """
        if self._tier is None:
            return []
        room = self._tier.room_for(self._tenant)
        free_bytes = room.size_bytes // parts
        if sum(map(self._at_most, token_counts)) <= free_bytes:
            return []
        left: list[int] = []
        for num_tokens in token_counts:
            size_bytes = self._exactly(num_tokens)
            if size_bytes <= free_bytes:
                free_bytes -= size_bytes
            else:
                left.append(num_tokens)
                self.limit = room.limit
        return left

    def reserve(self, digest: bytes, num_tokens: int) -> bool:
        """Whether a record that is to be computed will fit beside those on their way.

        It is one of them then, until `settle`.
        """
        is_room = self._has_room([*self._coming.values(), num_tokens])
        if is_room:
            self._coming[digest] = num_tokens
        return is_room

    def settle(self, digest: bytes, num_tokens: int) -> bool:
        """It has been computed and is on its way no more. Whether it still fits."""
        self._coming.pop(digest, None)
        return self._has_room([num_tokens])

    def _has_room(self, token_counts: Sequence[int]) -> bool:
        if self._tier is None:
            return True
        room = self._tier.room_for(self._tenant)
        if sum(map(self._at_most, token_counts)) <= room.size_bytes:
            return True  # only else is it worth while to know exactly
        if sum(map(self._exactly, token_counts)) <= room.size_bytes:
            return True
        self.limit = room.limit
        return False

    def _at_most(self, num_tokens: int) -> int:
        return int(num_tokens * self._bytes_per_token * _SLACK) + _SLACK_BYTES

    def _exactly(self, num_tokens: int) -> int:
        size_bytes = None if self._tier is None else self._tier.size_for(num_tokens)
        return size_bytes or 0


def foreseeing(tiers: Sequence[Tier]) -> Foresees | None:
    """The lowest tier that does not rest, if it says ahead what it will keep.

    Raises:
        StoreError: it cannot be read.
    """
    for tier in reversed(tiers):
        try:
            tier.has_room(0)
        except TierAtRest:
            continue  # what is warmed meanwhile goes to the tiers above
        return tier if isinstance(tier, Foresees) else None
    return None
