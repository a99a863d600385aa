"""Indexes are level with the catalog before anybody searches.

A search brings the indexes it needs level itself, so that it never misses what was just ingested.
After a start or a large ingest that takes seconds; here it is done ahead of the search, in a thread
of its own, whoever changed the catalog: this process, or another one beside it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

import structlog

from chunkcache.errors import NotFound, ShuttingDown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Collection = tuple[str, str]  # tenant and id
    Job = tuple[str, str | None]  # a collection, or what is a tenant's as a whole
    State = Literal["opening", "behind", "level"]

log = structlog.get_logger(__name__)

_LOOK_S = 1.0  # between looks at the catalog, while nothing changes
_LONGEST_S = 10.0
_BUSY_SHARE = 0.1  # of the time, at most, while an ingest changes it all the time
_WORTH_SAYING_S = 1.0


class _Failure(NamedTuple):
    reason: str
    again_at: float  # by the clock


class Leveller:
    """Calls `prepare` for each collection that changed; at first for all that there are.

    What failed is tried again when it changes, and now and then.

    Args:
        generations: of all collections; what has another one than before has changed.
        prepare: of a collection, of `tenant` and `id`; raises `NotFound` for one that is gone.
        prepare_tenant: called once for a tenant, after its collections that changed.
        most: collections that are prepared at once. Of more the most changed ones are; the others'
            indexes are brought level when they are searched.
    """

    def __init__(
        self,
        generations: Callable[[], Mapping[Collection, int]],
        prepare: Callable[[str, str], None],
        prepare_tenant: Callable[[str], None],
        *,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generations = generations
        self._prepare = prepare
        self._prepare_tenant = prepare_tenant
        self._most = most
        self._clock = clock
        self._known: dict[Collection, int] = {}
        self._failed: dict[Job, _Failure] = {}
        self._state: State = "opening"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chunkcache-leveller", daemon=True)

    @property
    def state(self) -> State:
        """Of the indexes: opened for the first time, behind the catalog, or level with it.

        A change shows after a look at the catalog, which is a second later, or a few.
        """
        return self._state

    def start(self) -> None:
        """Begin in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing new. What is being prepared ends when the catalog is closed."""
        self._stopping.set()

    def join(self) -> None:
        """Wait for the thread, after `stop`."""
        if self._thread.ident is not None:
            self._thread.join()

    def step(self) -> float:
        """Prepare what has changed since the last call, or failed. Returns: seconds until the next.

        Raises:
            ShuttingDown: the catalog is closed.
        """
        began = self._clock()
        now = self._generations()
        changed = [one for one in now if now[one] != self._known.get(one, 0)]
        changed = sorted(changed, key=lambda one: -now[one])[: self._most]
        if changed and self._state == "level":
            self._state = "behind"
        self._failed = {j: f for j, f in self._failed.items() if j[1] is None or j in now}
        had_failed = bool(self._failed)
        due: list[Job] = [job for job, failure in self._failed.items() if failure.again_at <= began]
        jobs: list[Job] = [*changed, *((tenant, None) for tenant, _ in changed), *due]
        for job in dict.fromkeys(jobs):
            if self._stopping.is_set():
                return 0.0
            self._do(job)
        self._known = dict(now)
        took_s = self._clock() - began
        is_news = self._state == "opening" or had_failed or took_s > _WORTH_SAYING_S
        if jobs and is_news and not self._failed:
            collections = len({job for job in jobs if job[1] is not None})
            log.info("indexes_level", collections=collections, seconds=round(took_s, 1))
        self._state = "behind" if self._failed else "level"
        return min(_LONGEST_S, max(_LOOK_S, took_s / _BUSY_SHARE))

    def _do(self, job: Job) -> None:
        tenant, collection = job
        before = self._failed.pop(job, None)
        began = self._clock()
        try:
            if collection is None:
                self._prepare_tenant(tenant)
            else:
                self._prepare(tenant, collection)
        except NotFound:  # deleted meanwhile
            log.debug("collection_gone", collection=collection)
        except ShuttingDown:
            raise
        except Exception as error:  # a search will raise the same; other collections go on
            now = self._clock()
            pause_s = max(_LONGEST_S, (now - began) / _BUSY_SHARE)
            self._failed[job] = failure = _Failure(repr(error), now + pause_s)
            if before is None or before.reason != failure.reason:
                log.warning(
                    "indexes_not_level", tenant=tenant, collection=collection, reason=failure.reason
                )

    def _run(self) -> None:
        pause_s = 0.0
        while not self._stopping.wait(pause_s):
            try:
                pause_s = self.step()
            except ShuttingDown:
                return
            except Exception as error:  # the catalog cannot be read: nor can it be searched
                log.warning("indexes_not_level", collection=None, reason=repr(error))
                pause_s = _LONGEST_S
