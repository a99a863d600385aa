"""Warm-up: chunk KV computed ahead of the questions, straight into the disk tier."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from chunkcache.chunk import Retention, Terms
from chunkcache.errors import StoreError
from chunkcache.protocol import WarmReport
from chunkcache.service.keeping import terms_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from chunkcache.chunk import Chunk, ChunkKey
    from chunkcache.keep import Keep
    from chunkcache.service.runtime import Runtime


_ASKED_TOGETHER = 64  # chunks that a tier on another machine is asked about at a time


@dataclass(frozen=True, slots=True)
class WarmProgress:
    """How far a warm-up is."""

    done: int
    total: int
    tokens: int  # computed so far
    tokens_per_s: float
    eta_s: float


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count`: chunks are dealt out by digest, so that parts never overlap."""

    index: int = 0
    count: int = 1

    def takes(self, key: ChunkKey) -> bool:
        """Whether this part is responsible for the chunk."""
        return int.from_bytes(key.digest[:4], "little") % self.count == self.index


def warm_chunks(
    runtime: Runtime,
    chunks: Callable[[], Iterable[Chunk]],
    salt: bytes,
    *,
    tenant: str,
    shard: Shard,
    keep: Keep | None = None,
    on_progress: Callable[[WarmProgress], None],
) -> WarmReport:
    """Compute and store every chunk that the durable tier lacks.

    Idempotent and resumable: each record is published in one transaction before the next is
    counted as done, so a kill at any moment costs at most the chunks in the engine. Stops, saying
    why, when the disk budget is reached; it never evicts one warmed chunk for another.

    Args:
        chunks: all of them anew at each call. They are gone through twice, first to see what is
            missing, so that of all but a few no more than a digest is held.
        keep: the terms; None: `warmed`, and those that are firmer stay.

    Cost: linear in the chunks.

    Raises:
        StoreError: with `keep`, the terms of a chunk that is there cannot be written.
    """
    started = time.perf_counter()
    terms = Terms(tenant, retention=Retention.WARMED) if keep is None else terms_of(tenant, keep)
    share = _Share(runtime, chunks, salt, shard, exactly=keep is not None)
    report = share.survey(terms)
    if not runtime.reuses:
        report.stopped_reason = "the model did not pass the gate, its chunk KV is not reused"
        return report
    for record in runtime.compute(share.missing(), salt):
        if not runtime.has_room(record.size_bytes):
            report.stopped_reason = (
                "the store is full. Hint: raise store.disk_capacity_bytes or ingest less"
            )
            break
        try:
            stored = runtime.keep(replace(record, terms=terms))
            if stored:  # by a request meanwhile, it may be: on terms of its own
                report.warmed_only += share.put_on(terms, record.key)
        except StoreError as error:
            report.failed += 1
            report.stopped_reason = error.message
            break
        report.computed += stored
        report.failed += not stored
        report.tokens += record.num_tokens
        report.seconds = time.perf_counter() - started
        rate = report.tokens / report.seconds
        on_progress(
            WarmProgress(
                done=report.already_warm + report.computed + report.failed,
                total=report.chunks,
                tokens=report.tokens,
                tokens_per_s=rate,
                eta_s=max(0, share.missing_tokens - report.tokens) / rate,
            )
        )
    report.seconds = time.perf_counter() - started
    return report


class _Share:
    """The chunks of one shard, each once; which of them are missing is known by digest alone."""

    def __init__(
        self,
        runtime: Runtime,
        chunks: Callable[[], Iterable[Chunk]],
        salt: bytes,
        shard: Shard,
        *,
        exactly: bool,
    ) -> None:
        self._runtime = runtime
        self._chunks = chunks
        self._salt = salt
        self._shard = shard
        self._exactly = exactly  # else terms that are firmer stay
        self._missing: set[bytes] = set()
        self.missing_tokens = 0

    def survey(self, terms: Terms) -> WarmReport:
        """Look every chunk up; one that is there is kept on `terms` from now on."""
        report = WarmReport()
        seen: set[bytes] = set()
        unseen = (key for key in self._keys() if key.digest not in seen)
        while batch := list(islice(unseen, _ASKED_TOGETHER)):
            keys = list({key.digest: key for key in batch}.values())
            seen.update(key.digest for key in keys)
            report.chunks += len(keys)
            for key, is_warm in zip(keys, self._runtime.are_warm(keys), strict=True):
                if is_warm:
                    report.already_warm += 1
                    report.warmed_only += self.put_on(terms, key)
                else:
                    self._missing.add(key.digest)
                    self.missing_tokens += len(key.token_ids)
        return report

    def put_on(self, terms: Terms, key: ChunkKey) -> bool:
        """Keep a chunk that is stored on `terms`. Whether it is less firmly than they say.

        Raises:
            StoreError: they are to be just these, and cannot be written.
        """
        kept = self._runtime.store.retain(key, terms, exactly=self._exactly)
        return kept is not None and kept < terms.retention

    def missing(self) -> Iterator[ChunkKey]:
        """Each chunk that was missing, once; those that have been deleted since are left out."""
        if not self._missing:
            return
        for key in self._keys():
            if key.digest in self._missing:
                self._missing.discard(key.digest)
                yield key

    def _keys(self) -> Iterator[ChunkKey]:
        for chunk in self._chunks():
            key = self._runtime.key(self._runtime.prompts.chunk_ids(chunk), self._salt)
            if self._shard.takes(key):
                yield key
