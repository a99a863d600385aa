"""Chunk KV on the device, one copy for everyone: content-addressed pages, leased to requests.

A chunk's K is rotated to its place in the chunk when it comes up, once; any number of requests at
any positions read the same pages (chunkcache_kernels/arena.py). On a CPU this *is* the tier in host
memory. Keys are salted by tenant (`ChunkKey`), so tenants never meet here.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from chunkcache.engine.angles import in_place
from chunkcache.engine.pages import PagePool
from chunkcache.store.base import TierUsage
from chunkcache.store.policy import Entry, WindowedFrequencyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from chunkcache.chunk import ChunkKey, ChunkKV, ChunkStats
    from chunkcache.engine.angles import RotaryAngles
    from chunkcache.store.popularity import Popularity
    from chunkcache_kernels import Arena


@dataclass(slots=True, eq=False)
class Resident:
    """A chunk on the device. It stays where it is for as long as somebody has leased it."""

    key: ChunkKey
    stats: ChunkStats
    pages: np.ndarray  # int32, whole pages; the last one may be partly empty
    size_bytes: int
    is_exact: bool  # its rows are as they were computed, not rounded to fewer bits
    codec: str | None = None  # the lossy one that it was read through
    leases: int = 0
    is_listed: bool = True  # found by its key; else it ends with its last lease

    @property
    def num_tokens(self) -> int:
        """Tokens in the chunk."""
        return len(self.key.token_ids)


class ChunkPages:
    """Chunks on the device, at most `arena.num_pages` pages. Thread-safe.

    Args:
        arena: where they lie; written by whoever calls `hold`, read by the engine thread.
        angles: of every layer; None for those whose keys have no positions.
        on_evict: called with the number of chunks evicted, under the lock.
        quotas: bytes that a tenant may hold here; unlimited for those not named.
        popularity: where uses are counted, for tiers below to know them.
    """

    def __init__(
        self,
        arena: Arena,
        angles: Sequence[RotaryAngles | None],
        *,
        on_evict: Callable[[int], None] = lambda _: None,
        quotas: Mapping[str, int] | None = None,
        popularity: Popularity | None = None,
    ) -> None:
        self._arena = arena
        self._angles = angles
        self._on_evict = on_evict
        self._page_bytes = arena.page_bytes
        self._is_exact = arena.keys.dtype is not torch.int8
        self._lock = threading.Lock()
        self._pool = PagePool(arena.num_pages, arena.page_tokens)
        capacity_bytes = arena.num_pages * self._page_bytes
        # requests need pages to run at all: what is warm gives the window's share to any of them
        self._policy = WindowedFrequencyPolicy(
            capacity_bytes, popularity=popularity, protected_share=0.9, quotas=quotas
        )
        self._residents: dict[bytes, Resident] = {}

    def lease(self, key: ChunkKey) -> Resident | None:
        """The chunk, kept until `release`; None if it is not here. Compares token ids."""
        with self._lock:
            self._policy.on_use(key.digest)
            return self._leased(key)

    def hold(self, record: ChunkKV, *, listed: bool = True) -> Resident | None:
        """Bring a record up and lease it; None where there is no room for it now.

        Args:
            record: its K is rotated to its place in the chunk, in fp32, and cast once.
            listed: others may find it. Else it is the caller's alone, whatever its key.

        Cost: one pass over the bytes, outside the lock.
        """
        if listed:
            with self._lock:
                if (known := self._leased(record.key)) is not None:
                    return known
        entry = self._entry(record)
        pages = self._allocate(record.key.digest, entry)
        if pages is None:
            return None
        try:
            self._write(record, pages)
        except BaseException:
            with self._lock:
                self._pool.release(pages)
            raise
        array = np.array(pages, dtype=np.int32)
        resident = Resident(
            record.key, record.stats, array, entry.size_bytes,
            is_exact=self._is_exact and record.rounded_by is None, codec=record.rounded_by,
            leases=1, is_listed=listed,
        )  # fmt: skip
        return self._list(resident, entry) if listed else resident

    def release(self, residents: Iterable[Resident]) -> None:
        """Give leases back; a chunk that nobody leases may be evicted."""
        with self._lock:
            for resident in residents:
                assert resident.leases > 0, "a lease was given back twice"
                resident.leases -= 1
                if not resident.leases and not resident.is_listed:
                    self._pool.release(resident.pages.tolist())

    def contains(self, key: ChunkKey) -> bool:
        """Whether `lease` would find it. Does not count as a use."""
        with self._lock:
            return self._find(key) is not None

    def usage(self) -> TierUsage:
        """Chunks and bytes held, leased or not."""
        with self._lock:
            held = self._pool.num_pages - self._pool.available
            capacity = self._pool.num_pages * self._page_bytes
            return TierUsage(len(self._residents), held * self._page_bytes, capacity)

    @property
    def page_bytes(self) -> int:
        """What a page takes on the device."""
        return self._page_bytes

    @property
    def page_tokens(self) -> int:
        """How many tokens it holds."""
        return self._pool.page_tokens

    @property
    def leased(self) -> int:
        """Leases that have not been given back."""
        with self._lock:
            return sum(resident.leases for resident in self._residents.values())

    def clear(self) -> None:
        """Forget every chunk; leased ones live on until their last lease ends."""
        with self._lock:
            for digest in list(self._residents):
                self._drop(digest)

    # ------------------------------------------------------------ under the lock

    def _find(self, key: ChunkKey) -> Resident | None:
        resident = self._residents.get(key.digest)
        return resident if resident is not None and resident.key == key else None

    def _leased(self, key: ChunkKey) -> Resident | None:
        resident = self._find(key)
        if resident is not None:
            resident.leases += 1
        return resident

    def _entry(self, record: ChunkKV) -> Entry:
        """What the policy is to know: whole pages, and what a hit saves in tokens."""
        size_bytes = self._pool.pages_for(record.num_tokens) * self._page_bytes
        return Entry(size_bytes, record.num_tokens, record.terms)

    def _list(self, resident: Resident, entry: Entry) -> Resident:
        with self._lock:
            known = self._leased(resident.key)
            if known is not None:  # another thread was faster; one copy is enough
                self._pool.release(resident.pages.tolist())
                return known
            self._drop(resident.key.digest)  # another chunk with the same digest
            self._residents[resident.key.digest] = resident
            self._policy.on_put(resident.key.digest, entry)
            return resident

    def _allocate(self, digest: bytes, entry: Entry) -> list[int] | None:
        with self._lock:
            missing_bytes = entry.size_bytes - self._pool.available * self._page_bytes
            leased = {d for d, r in self._residents.items() if r.leases}
            self._policy.on_time(time.time())
            victims = self._policy.admit(digest, entry, missing_bytes, leased)
            if victims is None:
                return None  # nothing is evicted in vain
            for victim in victims:
                self._drop(victim)
            if victims:
                self._on_evict(len(victims))
            return self._pool.allocate(entry.size_bytes // self._page_bytes)

    def _drop(self, digest: bytes) -> None:
        resident = self._residents.pop(digest, None)
        if resident is None:
            return
        self._policy.on_delete(digest)
        if resident.leases:
            resident.is_listed = False  # its pages are freed with its last lease
        else:
            self._pool.release(resident.pages.tolist())

    # ------------------------------------------------------------

    @torch.inference_mode()
    def _write(self, record: ChunkKV, pages: list[int]) -> None:
        """`[layers, 2, tokens, heads, dim]` of a record to its pages."""
        kv = record.kv.to(self._arena.keys.device)
        keys = in_place(kv[:, 0], self._angles)
        self._arena.write_chunk(np.array(pages, dtype=np.int64), keys, kv[:, 1])
