"""Least recently used leaves first: what the shipped policy is measured against. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from chunkcache.chunk import Retention
from chunkcache.store.policy import Refusal, free_room

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from chunkcache.store.policy import Entry, Room

# looked up in the enumeration once: these are asked about at every record
_PASSING: Final = Retention.PASSING
_NORMAL: Final = Retention.NORMAL
_WARMED: Final = Retention.WARMED


class LruPolicy:
    """Least recently used leaves first; of terms it knows `Retention` alone."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def on_use(self, *digests: bytes) -> None:
        """See `Policy`."""
        entries = self._entries
        for digest in digests:
            if digest in entries:
                entries.move_to_end(digest)

    def on_put(self, digest: bytes, entry: Entry) -> None:
        """See `Policy`."""
        self._entries[digest] = entry
        self._entries.move_to_end(digest)

    def on_recode(self, digest: bytes, to: bytes, entry: Entry) -> None:
        """See `Policy`. It is the next to leave."""
        if self._entries.pop(digest, None) is None:
            return
        self._entries[to] = entry
        self._entries.move_to_end(to, last=False)

    def on_delete(self, digest: bytes) -> None:
        """See `Policy`."""
        self._entries.pop(digest, None)

    def on_time(self, now_s: float) -> None:
        """See `Policy`."""

    def on_quota(self, tenant: str, limit_bytes: int | None) -> None:
        """See `Policy`."""

    def on_wait(self, digests: Iterable[bytes]) -> None:
        """See `Policy`."""

    def on_wait_over(self, digests: Iterable[bytes]) -> None:
        """See `Policy`."""

    def admit(
        self, digest: bytes, entry: Entry, bytes_needed: int, spared: Container[bytes] = ()
    ) -> list[bytes] | None:
        """See `Policy`. O(victims + those that may not go)."""
        firmest = _NORMAL if entry.terms.retention is _PASSING else _WARMED
        chosen, missing_bytes = self._choose(bytes_needed, spared, firmest)
        return chosen if missing_bytes <= 0 else None

    def victims(self, bytes_needed: int, spared: Container[bytes] = ()) -> list[bytes]:
        """See `Policy`. O(victims + those that may not go)."""
        return self._choose(bytes_needed, spared, _WARMED)[0]

    def why_not(self, digest: bytes, entry: Entry) -> Refusal:
        """See `Policy`."""
        return Refusal("the tier is full of what may not leave for it")

    def room_for(self, tenant: str, free_bytes: int) -> Room:
        """See `Policy`. It minds no quota."""
        return free_room(free_bytes)

    def may_pin(self, size_bytes: int, instead_of: Iterable[bytes] = ()) -> bool:
        """See `Policy`. It minds no limit."""
        return True

    def pins_beyond(self) -> list[bytes]:
        """See `Policy`. It minds no limit."""
        return []

    def _choose(
        self, bytes_needed: int, spared: Container[bytes], firmest: Retention
    ) -> tuple[list[bytes], int]:
        """Who is to go, and how many bytes are missing then."""
        chosen: list[bytes] = []
        if bytes_needed > 0:
            for digest, entry in self._entries.items():
                if entry.terms.retention <= firmest and digest not in spared:
                    chosen.append(digest)
                    bytes_needed -= entry.size_bytes
                    if bytes_needed <= 0:
                        break
        return chosen, bytes_needed
