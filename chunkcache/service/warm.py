"""Warm-up: chunk KV computed ahead of the questions, straight into the disk tier."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chunkcache.chunk import Retention, Terms
from chunkcache.errors import StoreError
from chunkcache.protocol import WarmReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chunkcache.chunk import Chunk, ChunkKey
    from chunkcache.service.runtime import Runtime


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
    chunks: Iterable[Chunk],
    salt: bytes,
    *,
    tenant: str,
    shard: Shard,
    on_progress: Callable[[WarmProgress], None],
) -> WarmReport:
    """Compute and store every chunk that the durable tier lacks.

    Idempotent and resumable: each record is published in one transaction before the next is
    counted as done, so a kill at any moment costs at most the chunks in the engine. Stops, saying
    why, when the disk budget is reached; it never evicts one warmed chunk for another.
    """
    started = time.perf_counter()
    terms = Terms(tenant, retention=Retention.WARMED)
    keys = [runtime.key(runtime.prompts.chunk_ids(chunk), salt) for chunk in chunks]
    keys = [key for key in dict.fromkeys(keys) if shard.takes(key)]
    todo: list[ChunkKey] = []
    for key in keys:
        if runtime.is_warm(key):
            runtime.store.retain(key, terms)
        else:
            todo.append(key)
    report = WarmReport(chunks=len(keys), already_warm=len(keys) - len(todo))
    if not runtime.reuses:
        report.stopped_reason = "the model did not pass the gate, its chunk KV is not reused"
        return report
    for record in runtime.compute(todo, salt):
        if not runtime.has_room(record.size_bytes):
            report.stopped_reason = (
                "the store is full. Hint: raise store.disk_capacity_bytes or ingest less"
            )
            break
        try:
            stored = runtime.keep(replace(record, terms=terms))
        except StoreError as error:
            report.failed += 1
            report.stopped_reason = error.message
            break
        report.computed += stored
        report.failed += not stored
        report.tokens += record.num_tokens
        report.seconds = time.perf_counter() - started
        rate = report.tokens / report.seconds
        left = sum(len(key.token_ids) for key in todo[report.computed + report.failed :])
        on_progress(
            WarmProgress(
                done=report.already_warm + report.computed + report.failed,
                total=len(keys),
                tokens=report.tokens,
                tokens_per_s=rate,
                eta_s=left / rate,
            )
        )
    report.seconds = time.perf_counter() - started
    return report
