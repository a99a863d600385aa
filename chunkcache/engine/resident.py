"""Chunks on the device, and who has leased them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chunkcache.engine.arrival import Arrival

if TYPE_CHECKING:
    import numpy as np

    from chunkcache.chunk import ChunkKey, ChunkStats


@dataclass(slots=True, eq=False)
class Resident:
    """A chunk on the device. It stays where it is for as long as somebody has leased it."""

    key: ChunkKey
    stats: ChunkStats
    pages: np.ndarray  # int32, whole pages; the last one may be partly empty
    size_bytes: int
    is_exact: bool  # its rows are as they were computed, not rounded to fewer bits
    codec: str | None = None  # the lossy one that it was read through
    arrival: Arrival = field(default_factory=lambda: Arrival(0))
    leases: int = 0
    is_listed: bool = True  # found by its key; else it ends with its last lease
    is_foreseen: bool = False  # brought up before anybody asked for it
    source: tuple[str, str] | None = None  # see `Source`; until the first request has taken it

    @property
    def num_tokens(self) -> int:
        """Tokens in the chunk."""
        return len(self.key.token_ids)


@dataclass(slots=True)
class Leases:
    """Leases of one holder, given back together unless they are passed on."""

    residents: list[Resident] = field(default_factory=list)

    def add(self, resident: Resident) -> None:
        """One more to give back."""
        self.residents.append(resident)

    def pass_on(self) -> list[Resident]:
        """Somebody else gives them back from here on."""
        residents, self.residents = self.residents, []
        return residents
