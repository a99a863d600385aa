"""What looking a record up in the tiers gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chunkcache.chunk import ChunkKV
    from chunkcache.store.base import RecordReader


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """What a look-up found: a record and its tier, or the reason there is none.

    Reasons: `absent`, `corrupt` (dropped, will be made again), `error` (a tier failed). Of several
    tiers, the highest that has another reason than `absent` gives it.
    """

    record: ChunkKV | None
    tier: str | None
    miss: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A lease on a record and the tier it is in, or the reason (see `Lookup`) there is none."""

    reader: RecordReader | None
    tier: str | None
    miss: str | None

    def close(self) -> None:
        """End the lease, if there is one."""
        if self.reader is not None:
            with self.reader:
                pass
