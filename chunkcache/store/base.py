"""What a tier is: five verbs. To add one, write a class with these and list it in `tiered.py`.

`HostTier` (host.py) is the slow, simple twin every other tier is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chunkcache.chunk import ChunkKey, ChunkKV


@dataclass(frozen=True, slots=True)
class TierUsage:
    """How full a tier is."""

    records: int
    size_bytes: int
    capacity_bytes: int


class Tier(Protocol):
    """Holds copies of immutable records. Thread-safe: any thread may call any verb."""

    name: str

    def get(self, key: ChunkKey) -> ChunkKV | None:
        """The record, or None. Compares token ids; counts as a use.

        Raises:
            CorruptRecord: the record was there but failed its checks (it has been dropped).
        """
        ...

    def put(self, record: ChunkKV) -> bool:
        """Keep a copy, evicting as the policy says. False: not admitted (larger than the tier)."""
        ...

    def contains(self, key: ChunkKey) -> bool:
        """Whether `get` would find it. Does not count as a use."""
        ...

    def delete(self, key: ChunkKey) -> bool:
        """Forget the record. False: it was not there."""
        ...

    def scan(self) -> Iterator[bytes]:
        """Digests of all records held when the scan began."""
        ...

    def usage(self) -> TierUsage:
        """Records and bytes held now."""
        ...

    def close(self) -> None:
        """Flush and release. A second call does nothing."""
        ...
