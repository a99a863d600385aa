"""Warm-up: chunk KV computed ahead of the questions, straight into the disk tier."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from chunkcache.chunk import Retention, Terms
from chunkcache.console.warming import WarmReport
from chunkcache.errors import StoreError
from chunkcache.service.keeping import terms_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from chunkcache.chunk import Chunk, ChunkKey, ChunkKV
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
    meet: Callable[[], None] = lambda: None  # returns when all parts have computed theirs

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
    limit_bytes: int | None = None,
    on_progress: Callable[[WarmProgress], None],
) -> WarmReport:
    """Compute and store every chunk that the durable tier lacks.

    Idempotent and resumable: each record is published in one transaction before the next is
    counted as done, so a kill at any moment costs at most the chunks in the engine. Stops, saying
    why, when the disk budget is reached; it evicts one warmed chunk for another only where the
    tenant's quota says so. What the store did not take, or let go again, is told from what it has.

    Args:
        chunks: all of them anew at each call. They are gone through to see what is missing, to
            compute it, and to see what was kept, so that of all but a few no more than a digest is
            held.
        keep: the terms; None: `warmed`, and those that are firmer stay.
        limit_bytes: the tenant's quota, to be named where chunks are let go again.

    Cost: linear in the chunks; they are looked up once more if any was computed.

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
        report.computed += 1
        report.tokens += record.num_tokens
        _store(runtime, share, replace(record, terms=terms), report)
        if report.stopped_reason:
            break
        report.seconds = time.perf_counter() - started
        on_progress(_progress(report, share.missing_tokens))
    shard.meet()
    if report.computed:
        share.count_kept(report)
    if report.evicted and report.not_kept_reason is None:
        report.not_kept_reason = _why_evicted(runtime, tenant, limit_bytes)
    report.seconds = time.perf_counter() - started
    return report


def _store(runtime: Runtime, share: _Share, record: ChunkKV, report: WarmReport) -> None:
    """Put a record into the store, and note what became of it."""
    if not runtime.has_room(record.size_bytes):
        report.refused += 1
        report.stopped_reason = f"the store is full. Hint: raise {runtime.capacity_knob}"
        return
    try:
        if not runtime.keep(record):
            report.refused += 1
            report.not_kept_reason = report.not_kept_reason or runtime.why_not(record)
            return
        # by a request meanwhile, it may be: on terms of its own
        report.warmed_only += share.put_on(record.terms, record.key)
    except StoreError as error:
        report.failed += 1
        report.stopped_reason = error.message
        return
    share.has_stored(record.key)


def _progress(report: WarmReport, missing_tokens: int) -> WarmProgress:
    rate = report.tokens / report.seconds
    return WarmProgress(
        done=report.already_warm + report.computed, total=report.chunks, tokens=report.tokens,
        tokens_per_s=rate, eta_s=max(0, missing_tokens - report.tokens) / rate,
    )  # fmt: skip


def _why_evicted(runtime: Runtime, tenant: str, limit_bytes: int | None) -> str:
    first = "what came later took the place of chunks that were there"
    if limit_bytes is not None:
        quota = f"tenant {tenant!r} may hold {limit_bytes} bytes of each tier"
        return f"{first}: {quota}. Hint: raise store.quota_bytes, or chunkcache quota --set"
    return f"{first}. Hint: raise {runtime.capacity_knob}"


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
        self._warm: set[bytes] = set()
        self._stored: set[bytes] = set()  # of those that were missing
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
                    self._warm.add(key.digest)
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

    def has_stored(self, key: ChunkKey) -> None:
        """The store has taken a chunk that was missing."""
        self._stored.add(key.digest)

    def count_kept(self, report: WarmReport) -> None:
        """Note which of the chunks that are or were stored the store has now."""
        report.kept = len(self._stored)
        left = self._warm | self._stored  # each once
        known = (key for key in self._keys() if key.digest in left)
        while batch := list(islice(known, _ASKED_TOGETHER)):
            keys = list({key.digest: key for key in batch}.values())
            left.difference_update(key.digest for key in keys)
            for key, is_kept in zip(keys, self._runtime.are_kept(keys), strict=True):
                report.evicted += not is_kept
                report.kept -= not is_kept and key.digest in self._stored

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
