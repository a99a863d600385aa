"""Message → the passages of a tenant that stand in it, token by token.

What is known are the chunks of all the tenant's collections, and passages that earlier requests
brought along: as documents, or, where that is asked for, as text that comes a second time. Each
tenant has an index of its own, with hash factors of its own: nothing that one tenant has can be
seen by another, in what is found or in how long it takes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import structlog

from chunkcache.chunk import Chunk
from chunkcache.retrieval.passage_index import SHORTEST, PassageIndex
from chunkcache.retrieval.repeated_texts import RepeatedTexts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.entries import Stamp

log = structlog.get_logger(__name__)

_BATCH_ENTRIES = 4096
_GIVEN_TOKENS = 1 << 18  # of earlier requests' passages that are remembered, for each tenant


@dataclass(frozen=True, slots=True)
class Match:
    """Tokens `start..end` of a message that are `chunk.token_ids` from `row` on.

    `is_given`: the chunk came with an earlier request, is in no collection, and is not to be cited.
    """

    start: int
    end: int
    row: int
    chunk: Chunk
    is_given: bool


class PassageMatcher:
    """Finds known passages in messages. Thread-safe; searches for one tenant take turns.

    What a search finds is what the catalog holds at that moment. After a change the next search
    pays for bringing the index level: the token ids of what is new are read and hashed.

    Args:
        capacity_bytes: of all tenants' indexes; the least recently used are let go. A tenant whose
            index alone is larger has its first chunks found, and not the others.
        piece_tokens: text that comes again is cut into passages of at most so many tokens.
    """

    def __init__(self, catalog: Catalog, capacity_bytes: int, piece_tokens: int = 256) -> None:
        self._catalog = catalog
        self._capacity = capacity_bytes
        self._piece_tokens = piece_tokens
        self._lock = threading.Lock()  # guards the next line
        self._tenants: OrderedDict[str, _Known] = OrderedDict()

    def find(self, tenant: str, message: Sequence[int], *, learns: bool = False) -> list[Match]:
        """The passages in a message, from left to right; see `PassageIndex.find`.

        With `learns` the rest of the message is remembered, and what an earlier one had too is a
        passage from now on (`RepeatedTexts`).

        Cost: nothing for a message shorter than any run; else a query, and hashing the message.
        """
        if len(message) < SHORTEST:
            return []
        known = self._known(tenant)
        with known.lock:
            known.update(self._capacity)
            found = known.find(message, learns=learns)
        self._make_room(tenant)
        return found

    def prepare(self, tenant: str) -> None:
        """Bring a tenant's index level with the catalog, as the next search would.

        No other is let go for it: it stops where there is no room, and the next search goes on.
        """
        with self._lock:
            others = sum(k.size_bytes for name, k in self._tenants.items() if name != tenant)
            if others >= self._capacity:
                return
            is_new = tenant not in self._tenants
            known = self._of(tenant)
            if is_new:
                self._tenants.move_to_end(tenant, last=False)  # nobody searched it yet
        with known.lock:
            known.update(self._capacity - others)

    def remember(self, tenant: str, chunks: Sequence[Chunk]) -> None:
        """Know passages that a request brought along, until many others have come."""
        known = self._known(tenant)
        with known.lock:
            known.remember(chunks)

    def _known(self, tenant: str) -> _Known:
        with self._lock:
            known = self._of(tenant)
            self._tenants.move_to_end(tenant)
            return known

    def _of(self, tenant: str) -> _Known:
        known = self._tenants.get(tenant)
        if known is None:
            known = self._tenants[tenant] = _Known(
                self._catalog, tenant, self._capacity, RepeatedTexts(self._piece_tokens)
            )
        return known

    def _make_room(self, tenant: str) -> None:
        with self._lock:
            while sum(k.size_bytes for k in self._tenants.values()) > self._capacity:
                oldest = next(iter(self._tenants))
                if oldest == tenant:
                    break
                del self._tenants[oldest]


class _Known:
    """What is known of one tenant. The holder of `lock` may call its methods."""

    def __init__(
        self, catalog: Catalog, tenant: str, capacity_bytes: int, repeated: RepeatedTexts
    ) -> None:
        self.lock = threading.Lock()
        self._repeated = repeated
        self._catalog = catalog
        self._tenant = tenant
        self._capacity = capacity_bytes
        self._index = PassageIndex()
        self._stamp: Stamp | None = None
        self._given: OrderedDict[int, Chunk] = OrderedDict()  # by entries of their own, below 0
        self._entry_of: dict[tuple[int, ...], int] = {}  # of the given ones
        self._given_tokens = 0
        self._next = -1

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory, chunks that requests brought along left out."""
        return self._index.size_bytes + self._repeated.size_bytes

    def update(self, most_bytes: int) -> None:
        """Take in what the catalog has, drop what it has no more.

        With more than `most_bytes`, which may be less than the capacity, the rest is left out; in
        that case until the next call.
        """
        if self._catalog.entries.stamp(self._tenant) == self._stamp:
            return
        stamp, entries = self._catalog.entries.of_tenant(self._tenant)
        held = self._index.entries
        gone = np.setdiff1d(held[held >= 0], entries)
        self._index.discard(gone.tolist())
        missing = entries[~np.isin(entries, held)]
        for start in range(0, len(missing), _BATCH_ENTRIES):
            if self._index.size_bytes > most_bytes:
                if most_bytes < self._capacity:
                    return
                log.warning(
                    "passages_not_recognised", tenant=self._tenant, chunks=len(missing) - start,
                    knob="retrieval.match_capacity_bytes",
                )  # fmt: skip
                break
            batch = missing[start : start + _BATCH_ENTRIES].tolist()
            texts = self._catalog.entries.token_ids(batch)
            there = [entry for entry in batch if entry in texts]
            self._index.add(there, [texts[entry] for entry in there])
        self._stamp = stamp

    def find(self, message: Sequence[int], *, learns: bool = False) -> list[Match]:
        """See `PassageMatcher.find`."""
        ids = np.array(message, np.uint32)
        runs = self._index.find(ids, self._texts)
        stored = sorted({entry for run in runs for entry in run.entries if entry >= 0})
        chunks: dict[int, Chunk] = {}
        if stored:
            chunks = self._catalog.entries.in_any_collection(self._tenant, stored)
        found = []
        for run in runs:
            known = [chunks[entry] for entry in run.entries if entry in chunks]
            for entry in run.entries:
                if entry in self._given:
                    known.append(self._given[entry])
                    self._given.move_to_end(entry)
            if known:
                is_given = not any(entry in chunks for entry in run.entries)
                found.append(Match(run.start, run.end, run.row, known[0], is_given))
        if learns:
            found += self._learn(ids, [(match.start, match.end) for match in found])
        return sorted(found, key=lambda match: match.start)

    def _learn(self, message: npt.NDArray[np.uint32], known: list[tuple[int, int]]) -> list[Match]:
        """Passages that are new: what came in an earlier message too."""
        found = []
        for start, end in self._repeated.take(message, known):
            chunk = Chunk("", tuple(message[start:end].tolist()), "")
            found.append(Match(start, end, 0, chunk, is_given=True))
        self.remember([match.chunk for match in found])
        return found

    def remember(self, chunks: Sequence[Chunk]) -> None:
        """See `PassageMatcher.remember`."""
        for chunk in chunks:
            known = self._entry_of.get(chunk.token_ids)
            if known is not None:
                self._given.move_to_end(known)
                continue
            entry, self._next = self._next, self._next - 1
            self._given[entry] = chunk
            self._entry_of[chunk.token_ids] = entry
            self._given_tokens += len(chunk.token_ids)
            self._index.add([entry], [np.array(chunk.token_ids, np.uint32)])
        while self._given_tokens > _GIVEN_TOKENS:
            entry, chunk = self._given.popitem(last=False)
            del self._entry_of[chunk.token_ids]
            self._given_tokens -= len(chunk.token_ids)
            self._index.discard([entry])

    def _texts(self, entries: list[int]) -> dict[int, npt.NDArray[np.uint32]]:
        texts = self._catalog.entries.token_ids([entry for entry in entries if entry >= 0])
        for entry in entries:
            if entry in self._given:
                texts[entry] = np.array(self._given[entry].token_ids, np.uint32)
        return texts
