"""What a tier is: a few verbs. To add one, write a class with these and list it in `open_store`.

`HostTier` (host.py) is the slow, simple twin every other tier is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from chunkcache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

    import torch

    from chunkcache.chunk import ChunkKey, ChunkKV, ChunkStats, KVGeometry, Retention, Terms
    from chunkcache.store.policy import Refusal, Room


@dataclass(frozen=True, slots=True)
class TierUsage:
    """How full a tier is."""

    records: int
    size_bytes: int
    capacity_bytes: int  # NO_LIMIT where the tier does not say


NO_LIMIT = 2**63 - 1


class TierAtRest(StoreError):
    """A remote tier has failed and is not asked for a while; said without asking it."""


class RecordReader(Protocol):
    """A lease on one record: its layers can be read until it is closed, whatever this process
    evicts. One that is deleted, or evicted by another process, may be found gone (`StoreError`).

    A context manager; closing ends the lease. For one thread at a time. What is known before any
    layer has been read: key, statistics, geometry. The token ids are those that were asked for.
    """

    key: ChunkKey
    geometry: KVGeometry
    stats: ChunkStats
    rounded_by: str | None  # the lossy codec it is read through, see `ChunkKV`
    codec: str  # decodes its layers as they are read; empty where they are in memory

    @property
    def num_tokens(self) -> int:
        """Tokens in the chunk."""
        ...

    def read_layers(self, first: int, last: int, out: torch.Tensor) -> None:
        """Decode layers `first` up to but not including `last` into `out`.

        Args:
            out: contiguous CPU tensor `[last - first, 2, tokens, kv_heads, head_dim]` of the
                record's number type. After an error its contents mean nothing.

        Raises:
            CorruptRecord: a layer failed its checksum (the record is dropped).
            StoreError: the tier failed.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Tier(Protocol):
    """Holds copies of immutable records. Thread-safe: any thread may call any verb."""

    name: str
    durable: bool  # records outlive the process: written behind the request, once
    remote: bool  # on another machine: its usage is not asked for at every scrape

    def open(self, key: ChunkKey) -> RecordReader | None:
        """A lease on the record, or None. Compares token ids; counts as a use.

        Raises:
            CorruptRecord: the record was there but failed its checks (it has been dropped).
        """
        ...

    def get(self, key: ChunkKey) -> ChunkKV | None:
        """The record, or None: `open`, and all its layers.

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

    def has_room(self, size_bytes: int) -> bool:
        """Whether a record with `size_bytes` of KV could be put without evicting one.

        Raises:
            TierAtRest: a remote tier that failed and is not asked for a while.
        """
        ...

    def close(self) -> None:
        """Flush and release. A second call does nothing."""
        ...


@runtime_checkable
class Retaining(Protocol):
    """A tier that evicts by policy: it minds the terms of its records, and who waits for them."""

    def retain(self, key: ChunkKey, terms: Terms, *, exactly: bool = False) -> Retention | None:
        """Keep a record on these terms from now on, if it is there on looser ones; no use.

        `exactly`: on whatever ones. Returns: how firmly it is kept now, which is less than pinned
        where the tier has pins enough; None: it is not there.
        """
        ...

    def on_quota(self, tenant: str, limit_bytes: int | None) -> None:
        """A tenant may hold so much from now on; None: as much as there is."""
        ...

    def on_wait(self, keys: Iterable[ChunkKey]) -> None:
        """A request that waits will want these: they leave only if nothing else can."""
        ...

    def on_wait_over(self, keys: Iterable[ChunkKey]) -> None:
        """It waits no more."""
        ...


@runtime_checkable
class Choosing(Protocol):
    """A tier whose policy says which records come in."""

    def why_not(self, record: ChunkKV) -> Refusal:
        """Why `put` has just said no."""
        ...


@runtime_checkable
class Foresees(Protocol):
    """A tier that says ahead what it will keep."""

    def size_for(self, num_tokens: int) -> int | None:
        """Bytes that a record of so many tokens will take; None: it is not known."""
        ...

    def room_for(self, tenant: str) -> Room:
        """Bytes that may come in for a tenant at the cost of none but its own; see `Policy`."""
        ...


@runtime_checkable
class AskedTogether(Protocol):
    """A tier that is asked about many records in fewer round trips than one by one."""

    def contains_many(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """`contains` for each key, in order."""
        ...


@runtime_checkable
class SeveralCodecs(Protocol):
    """A tier whose records may be of several codecs: they take different times to decode."""

    def codec_of(self, key: ChunkKey) -> str | None:
        """Of the record that `open` would give; None: there is none. Does not count as a use."""
        ...

    def codecs_of(self, keys: Sequence[ChunkKey]) -> list[str | None]:
        """`codec_of` for each key, in order, looked up together."""
        ...


@runtime_checkable
class OpensTogether(Protocol):
    """A tier that opens many records in less time than one by one."""

    def open_many(self, keys: Sequence[ChunkKey]) -> list[RecordReader | StoreError | None]:
        """`open` for each key, in order; what it would raise stands in the place of its reader."""
        ...


class Job(Protocol):
    """Something that goes on in a thread of its own until it is closed."""

    def close(self) -> None:
        """End it, and wait until it has."""
        ...
