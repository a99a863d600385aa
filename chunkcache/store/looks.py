"""Asking tiers for records, one by one or many together: what fails is a reason, never an error."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from chunkcache.errors import StoreError
from chunkcache.store.base import AskedTogether, OpensTogether, SeveralCodecs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from chunkcache.chunk import ChunkKey
    from chunkcache.metrics import Metrics
    from chunkcache.store.base import RecordReader, Tier
    from chunkcache.store.cost import Source
    from chunkcache.store.failures import Failures
    from chunkcache.store.lookup import Opened


class Looks:
    """At the tiers of one store. Thread-safe.

    Each verb for many keys says and counts what its twin for one does, key by key. Where a tier
    cannot be asked for all of them, it is asked one by one; only one on another machine, which
    has been waited for once, is not.
    """

    def __init__(self, tiers: Sequence[Tier], metrics: Metrics, failures: Failures) -> None:
        self._tiers = tuple(tiers)
        # looking at protocols takes longer than looking records up
        self._mixed = {tier.name: tier for tier in tiers if isinstance(tier, SeveralCodecs)}
        self._asked = {tier.name: tier for tier in tiers if isinstance(tier, AskedTogether)}
        self._opens = {tier.name: tier for tier in tiers if isinstance(tier, OpensTogether)}
        self._metrics = metrics
        self._failures = failures

    def open(self, tier: Tier, key: ChunkKey, ends: ExitStack) -> RecordReader | str:
        """A lease in one tier, or the reason there is none. It ends with `ends`."""
        self._metrics.chunk_queries.labels(tier.name).inc()
        try:
            reader = tier.open(key)
        except StoreError as error:
            return self._failures.miss(tier.name, key, error)
        return "absent" if reader is None else ends.enter_context(reader)

    def comes_whole(self, source: Source | None) -> bool:
        """Whether it is from a tier that `open_many` asks one by one."""
        return source is not None and source[0] not in self._opens

    def open_run(
        self, keys: Sequence[ChunkKey], opened: Callable[[RecordReader, Tier], Opened],
        ends: ExitStack,
    ) -> list[Opened | list[str]]:  # fmt: skip
        """For each key what `opened` says of its lease in the highest tier, or every tier's reason.

        `opened` is called for each tier in turn, from the top down. Leases end with `ends`.
        """
        found: list[Opened | list[str]] = [[] for _ in keys]
        for tier in self._tiers:
            left = [place for place, misses in enumerate(found) if isinstance(misses, list)]
            readers = self.open_many(tier, [keys[place] for place in left], ends) if left else []
            for place, reader in zip(left, readers, strict=True):
                misses = found[place]
                if not isinstance(reader, str):
                    found[place] = opened(reader, tier)
                elif isinstance(misses, list):
                    misses.append(reader)
        return found

    def open_many(
        self, tier: Tier, keys: Sequence[ChunkKey], ends: ExitStack
    ) -> list[RecordReader | str]:
        """`open` for each key, in order. Leases end with `ends`."""
        together = self._opens.get(tier.name)
        if together is None:
            return [self.open(tier, key, ends) for key in keys]
        try:
            readers = together.open_many(keys)
        except StoreError:
            return [self.open(tier, key, ends) for key in keys]
        for reader in readers:
            if reader is not None and not isinstance(reader, StoreError):
                ends.enter_context(reader)
        self._metrics.chunk_queries.labels(tier.name).inc(len(keys))
        return [
            self._failures.miss(tier.name, key, reader)
            if isinstance(reader, StoreError)
            else reader or "absent"
            for key, reader in zip(keys, readers, strict=True)
        ]

    def locate(self, key: ChunkKey) -> Source | None:
        """See `TieredStore`."""
        looks = ((tier.name, self.codec_in(tier, key)) for tier in self._tiers)
        return next(((name, codec) for name, codec in looks if codec is not None), None)

    def locate_many(self, keys: Sequence[ChunkKey]) -> list[Source | None]:
        """`locate` for each key, in order."""
        found: list[Source | None] = [None] * len(keys)
        for tier in self._tiers:
            left = [place for place, source in enumerate(found) if source is None]
            codecs = self.codecs_in(tier, [keys[n] for n in left]) if left else []
            for place, codec in zip(left, codecs, strict=True):
                found[place] = None if codec is None else (tier.name, codec)
        return found

    def codec_in(self, tier: Tier, key: ChunkKey) -> str | None:
        """See `Source`; None: the tier does not hold the record, or failed."""
        mixed = self._mixed.get(tier.name)
        if mixed is not None:
            return self._failures.asked(tier, partial(mixed.codec_of, key), None)
        return "" if self._failures.asked(tier, partial(tier.contains, key), False) else None

    def codecs_in(self, tier: Tier, keys: Sequence[ChunkKey]) -> list[str | None]:
        """`codec_in` for each key, in order."""
        mixed, asked = self._mixed.get(tier.name), self._asked.get(tier.name)
        if mixed is not None:
            try:
                return mixed.codecs_of(keys)
            except StoreError:
                return [self.codec_in(tier, key) for key in keys]
        if asked is None:
            return [self.codec_in(tier, key) for key in keys]
        none = [False] * len(keys)
        held = self._failures.asked(tier, partial(asked.contains_many, keys), none)
        return ["" if holds else None for holds in held]
