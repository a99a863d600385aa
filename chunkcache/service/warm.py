"""Warm-up: chunk KV computed ahead of the questions, straight into the disk tier."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from chunkcache.chunk import Retention, Terms
from chunkcache.console.warming import WarmReport
from chunkcache.errors import StoreError
from chunkcache.service.keeping import terms_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from chunkcache.chunk import Chunk, ChunkKey, ChunkKV
    from chunkcache.keep import Keep
    from chunkcache.service.runtime import Runtime

log = structlog.get_logger(__name__)

_ASKED_TOGETHER = 64  # chunks that a tier on another machine is asked about at a time


@dataclass(frozen=True, slots=True)
class WarmProgress:
    """How far a warm-up is."""

    done: int
    total: int
    tokens: int  # computed so far
    tokens_per_s: float
    eta_s: float
    left_out: int = 0  # will not be computed: the store would not keep them
    left_out_reason: str | None = None


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
    counted as done, so a kill at any moment costs at most the chunks in the engine. What the store
    would not keep is not computed, and told ahead: it pushes out what the tenant has beside it,
    where a quota says so, and nothing else. What the store did not take all the same, or let go
    again, is told from what it has.

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
    is_bound = limit_bytes is not None
    with runtime.wanted(share.everyone) if is_bound else nullcontext():
        ahead = _Ahead(runtime, tenant, report, share.missing_tokens)
        if ahead.foresee(share.token_counts, parts=shard.count):
            on_progress(ahead.progress())
        for record in runtime.compute(share.missing(ahead.lets_in), salt):
            report.computed += 1
            report.tokens += record.num_tokens
            _store(runtime, share, ahead, replace(record, terms=terms), report)
            if report.stopped_reason:
                break
            report.seconds = time.perf_counter() - started
            on_progress(ahead.progress())
        shard.meet()
    if report.computed:
        share.count_kept(report)
    if report.evicted and report.not_kept_reason is None:
        report.not_kept_reason = _why_evicted(runtime, tenant, limit_bytes)
    report.seconds = time.perf_counter() - started
    return report


def _store(
    runtime: Runtime, share: _Share, ahead: _Ahead, record: ChunkKV, report: WarmReport
) -> None:
    """Put a record into the store, and note what became of it."""
    if not ahead.still_lets_in(record):
        report.refused += 1
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


class _Ahead:
    """Says which chunks the store will keep, before they are computed; counts those it will not."""

    def __init__(
        self, runtime: Runtime, tenant: str, report: WarmReport, missing_tokens: int
    ) -> None:
        self._runtime = runtime
        self._room = runtime.headroom(tenant)
        self._report = report
        self._missing_tokens = missing_tokens
        self._foreseen = 0
        self._foreseen_tokens = 0
        self._left_tokens = 0

    def foresee(self, token_counts: Sequence[int], *, parts: int) -> bool:
        """Look at all that is missing. Whether some of it will have to be left out."""
        left = self._room.left_over(token_counts, parts=parts)
        self._foreseen, self._foreseen_tokens = len(left), sum(left)
        if left:
            log.warning(
                "warm_up_does_not_fit", missing=len(token_counts), left_out=len(left),
                reason=self._reason,
            )  # fmt: skip
        return bool(left)

    def lets_in(self, key: ChunkKey, num_tokens: int) -> bool:
        """Whether a chunk is to be computed."""
        if self._room.reserve(key.digest, num_tokens):
            return True
        self._report.left_out += 1
        self._left_tokens += num_tokens
        self._note()
        return False

    def still_lets_in(self, record: ChunkKV) -> bool:
        """Whether there is room yet, now that it is computed: others write, too."""
        if self._room.settle(record.key.digest, record.num_tokens):
            return True
        self._note()
        return False

    def progress(self) -> WarmProgress:
        """How far it is, and what will be left out, as far as is known."""
        report = self._report
        rate = report.tokens / report.seconds if report.seconds else 0.0
        left_tokens = max(self._left_tokens, self._foreseen_tokens)
        to_do = max(0, self._missing_tokens - report.tokens - left_tokens)
        left_out = max(report.left_out, self._foreseen)
        return WarmProgress(
            done=report.already_warm + report.computed, total=report.chunks, tokens=report.tokens,
            tokens_per_s=rate, eta_s=to_do / rate if rate else 0.0,
            left_out=left_out, left_out_reason=self._reason if left_out else None,
        )  # fmt: skip

    @property
    def _reason(self) -> str | None:
        limit = self._room.limit
        return None if limit is None else self._runtime.why_full(limit)

    def _note(self) -> None:
        self._report.not_kept_reason = self._report.not_kept_reason or self._reason


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
        self._missing: dict[bytes, int] = {}  # tokens, by digest
        self._warm: set[bytes] = set()
        self._stored: set[bytes] = set()  # of those that were missing
        self.everyone: set[bytes] = set()  # chunks of other shards, too

    @property
    def token_counts(self) -> list[int]:
        """Of the chunks that are missing."""
        return list(self._missing.values())

    @property
    def missing_tokens(self) -> int:
        """All of them together."""
        return sum(self._missing.values())

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
                    self._missing[key.digest] = len(key.token_ids)
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

    def missing(self, lets_in: Callable[[ChunkKey, int], bool]) -> Iterator[ChunkKey]:
        """Each chunk that was missing and is let in, once; not those deleted since."""
        if not self._missing:
            return
        for key in self._keys():
            num_tokens = self._missing.pop(key.digest, None)
            if num_tokens is not None and lets_in(key, num_tokens):
                yield key

    def _keys(self) -> Iterator[ChunkKey]:
        for chunk in self._chunks():
            key = self._runtime.key(self._runtime.prompts.chunk_ids(chunk), self._salt)
            self.everyone.add(key.digest)
            if self._shard.takes(key):
                yield key
