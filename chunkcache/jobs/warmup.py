"""Warm-up in several processes: each opens the cache for itself and takes its share of the chunks.

One process already uses all cores where the products are large; several help where they are not,
because they have no common Python lock and no serial part between layers. All write to one store:
LMDB serialises the short transactions.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chunkcache.console.warming import WarmReport
from chunkcache.cores import count_cores
from chunkcache.errors import ChunkCacheError, InvalidRequest
from chunkcache.service import ChunkCache
from chunkcache.service.warm import Shard, WarmProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.synchronize import Barrier

    from chunkcache.config import Settings
    from chunkcache.keep import Keep

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class _Progress:
    index: int
    progress: WarmProgress


@dataclass(frozen=True, slots=True)
class _Done:
    index: int
    report: WarmReport | None
    error: ChunkCacheError | None = None


def warm_in_processes(
    settings: Settings,
    workers: int,
    *,
    tenant: str,
    collection: str,
    keep: Keep | None = None,
    on_progress: Callable[[WarmProgress], None] = lambda _: None,
) -> WarmReport:
    """Warm a collection with `workers` processes; the cores are shared out evenly among them.

    Args:
        keep: see `warm_chunks`.

    Raises:
        InvalidRequest: fewer than one worker.
        ChunkCacheError: a worker failed, with what it raised; what the others stored stays.
    """
    if workers < 1:
        raise InvalidRequest.of("workers", workers, "at least 1", "use one per two cores or so")
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    messages: Any = context.Queue()
    model = settings.model.model_copy(update={"num_threads": threads_each(workers)})
    settings = settings.model_copy(update={"model": model})
    started = time.perf_counter()
    finish = context.Barrier(workers)  # before that, one may push out what another has stored
    processes = [
        context.Process(
            target=_work,
            args=(settings, (index, workers), finish, tenant, collection, keep, messages),
            daemon=True,
        )
        for index in range(workers)
    ]
    begun: list[Any] = []
    try:
        with _interrupts_held():
            for process in processes:
                process.start()
                begun.append(process)
        reports = _collect(processes, messages, on_progress)
    except BaseException:
        for process in begun:
            process.terminate()  # what they stored is whole
        raise
    finally:
        for process in begun:
            process.join(timeout=30)
            if process.is_alive():
                process.terminate()
                process.join()
        messages.close()
    total = WarmReport.of_parts(reports)
    total.seconds = time.perf_counter() - started
    return total


def threads_each(workers: int) -> int:
    """Of the cores that this process may use, those of one worker: at least one."""
    return max(1, count_cores() // workers)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes begun inside leave Ctrl-C, which a terminal sends to all of them, to this one.

    It is heard here when they have begun.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    settings: Settings, part: tuple[int, int], finish: Barrier, tenant: str, collection: str,
    keep: Keep | None, messages: Any,
) -> None:  # fmt: skip
    def meet() -> None:
        finish.wait()

    shard = Shard(*part, meet=meet)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        with ChunkCache(settings) as cache:
            report = cache.warm(
                tenant=tenant,
                collection=collection,
                keep=keep,
                shard=shard,
                on_progress=lambda p: messages.put(_Progress(shard.index, p)),
            )
        messages.put(_Done(shard.index, report))
    except ChunkCacheError as error:
        messages.put(_Done(shard.index, None, error))


def _end_with_parent() -> None:
    """A parent that is killed ends no worker, and nobody would read what a worker says then."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # as if killed, too: what was stored is whole


def _collect(
    processes: list[Any], messages: Any, on_progress: Callable[[WarmProgress], None]
) -> list[WarmReport]:
    latest: dict[int, WarmProgress] = {}
    reports: dict[int, WarmReport] = {}
    while len(reports) < len(processes):
        try:
            message = messages.get(timeout=_POLL_S)
        except queue.Empty:
            _raise_if_dead(processes, reports)
            continue
        if isinstance(message, _Progress):
            latest[message.index] = message.progress
            on_progress(_combined(list(latest.values())))
        elif message.error is not None:
            raise message.error  # what all of them would say: of the settings or the collection
        else:
            reports[message.index] = message.report
    return list(reports.values())


def _raise_if_dead(processes: list[Any], reports: dict[int, WarmReport]) -> None:
    for index, process in enumerate(processes):
        if index not in reports and process.exitcode not in (None, 0):
            raise ChunkCacheError(
                f"warm worker {index} ended with exit code {process.exitcode}. Hint: out of "
                "memory? Use fewer workers. What was stored stays; run it again to go on."
            )


def _combined(parts: list[WarmProgress]) -> WarmProgress:
    return WarmProgress(
        done=sum(p.done for p in parts),
        total=sum(p.total for p in parts),
        tokens=sum(p.tokens for p in parts),
        tokens_per_s=sum(p.tokens_per_s for p in parts),
        eta_s=max(p.eta_s for p in parts),
        left_out=sum(p.left_out for p in parts),
        left_out_reason=next((p.left_out_reason for p in parts if p.left_out_reason), None),
    )
