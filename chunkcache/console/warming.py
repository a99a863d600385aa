"""Warm-ups that run beside the requests: started, watched, paused and stopped from outside."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import structlog
from pydantic import BaseModel, Field

from chunkcache.errors import Cancelled, ChunkCacheError, InvalidRequest, ShuttingDown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.keep import Keep
    from chunkcache.protocol import GivenDocument

log = structlog.get_logger(__name__)

_JOIN_TIMEOUT_S = 5.0


class WarmFigures(BaseModel):
    """What became of the chunks: of a `WarmReport`, and of a `WarmState` once it has ended."""

    computed: int = Field(0, description="kept, refused, failed, or evicted again")
    kept: int = Field(0, description="of those computed: the store has them now")
    refused: int = Field(0, description="of those computed: the store did not let them in")
    failed: int = Field(0, description="of those computed: the store could not write them")
    evicted: int = Field(0, description="warm or stored, and gone from the store by the end")
    left_out: int = Field(
        0, description="not computed: the store would not have kept them; as foreseen until the end"
    )
    not_kept_reason: str | None = Field(
        None, description="why chunks were left out, refused or evicted; what to set against it"
    )
    warmed_only: int = Field(
        0, description="kept as warmed where pinned was asked for; pins have half of a tier"
    )
    tokens: int = Field(0, description="computed, of whatever the store did with them")


class WarmReport(WarmFigures):
    """Outcome of one warm-up."""

    chunks: int = 0
    already_warm: int = Field(0, description="when it began")
    seconds: float = 0.0
    stopped_reason: str | None = Field(None, description="e.g. the disk budget is reached")

    @classmethod
    def of_parts(cls, parts: Sequence[WarmReport]) -> WarmReport:
        """Of parts that ran side by side: figures add up, of reasons the first one stands.

        It took as long as the longest of them.
        """
        whole = cls()
        for part in parts:
            for name, figure in part:
                known = getattr(whole, name)
                if isinstance(figure, int):
                    setattr(whole, name, known + figure)
                elif isinstance(figure, float):
                    setattr(whole, name, max(known, figure))
                else:
                    setattr(whole, name, known or figure)
        return whole

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for is warm now."""
        return not (
            self.stopped_reason or self.refused or self.failed or self.evicted or self.left_out
        )

    @property
    def warm(self) -> int:
        """Chunks that the store has now."""
        stored = self.computed - self.refused - self.failed
        return self.already_warm + stored - self.evicted


class Progress(Protocol):
    """How far a warm-up is, as it says itself after each chunk."""

    @property
    def done(self) -> int:
        """Chunks that were warm or are computed, whether the store kept them or not."""
        ...

    @property
    def total(self) -> int:
        """Chunks there are."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens computed so far."""
        ...

    @property
    def tokens_per_s(self) -> float:
        """Since its beginning, pauses included."""
        ...

    @property
    def eta_s(self) -> float:
        """At that rate."""
        ...

    @property
    def left_out(self) -> int:
        """Chunks that are not going to be computed: the store would not keep them."""
        ...

    @property
    def left_out_reason(self) -> str | None:
        """Why, and what to set against it."""
        ...


class Warm(Protocol):
    """Computes the KV of a collection; resumable, so that it may be ended by an exception."""

    def __call__(
        self,
        *,
        tenant: str,
        collection: str,
        document_ids: Sequence[str] | None = None,
        texts: Sequence[GivenDocument] | None = None,
        keep: Keep | None = None,
        on_progress: Callable[[Progress], None],
    ) -> WarmReport:
        """Blocks until all of the collection, or of these documents of it, is warm.

        With `texts`, until these are; `keep`: on which terms.
        """
        ...


class WarmState(WarmFigures):
    """A tenant's current or last warm-up; most figures come when it has ended."""

    state: Literal["idle", "running", "paused", "done", "stopped", "failed"] = "idle"
    vector_store_id: str | None = None
    done: int = Field(
        0, description="chunks warm before or computed; once it has ended: chunks that are warm"
    )
    total: int | None = Field(None, description="chunks there are; null: not counted yet")
    tokens_per_s: float | None = Field(None, description="without the pauses")
    eta_s: float | None = Field(None, description="at that rate; null: not known, or ended")
    began_at: float | None = None
    ended_at: float | None = None
    message: str = Field("", description="why it ended before its end")


@dataclass(frozen=True, slots=True)
class WarmWish:
    """What is to be warm: texts, else documents, else a whole collection; and on what terms."""

    collection: str
    document_ids: Sequence[str] | None = None
    texts: Sequence[GivenDocument] | None = None
    keep: Keep | None = None


class _Job:
    """One warm-up in a thread of its own. Pausing holds it between two chunks."""

    def __init__(self, warm: Warm, tenant: str, wish: WarmWish) -> None:
        self._warm = warm
        self._wish = wish
        self._tenant = tenant
        store = wish.collection if wish.texts is None else None
        self._state = WarmState(state="running", vector_store_id=store, began_at=time.time())
        self._lock = threading.Lock()
        self._go_on = threading.Event()
        self._go_on.set()
        self._stopping = False
        self._began_s = time.monotonic()
        self._paused_s = 0.0
        self._thread = threading.Thread(target=self._run, name="warm-up", daemon=True)
        self._thread.start()

    @property
    def state(self) -> WarmState:
        """A snapshot; `paused` at once, though a chunk may still be being computed."""
        with self._lock:
            return self._state.model_copy()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self.state.state not in {"running", "paused"}

    def pause(self) -> None:
        with self._lock:
            self._expect("running", "pause")
            self._state.state = "paused"
            self._go_on.clear()

    def resume(self) -> None:
        with self._lock:
            self._expect("paused", "resume")
            self._state.state = "running"
            self._go_on.set()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._go_on.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _expect(self, state: str, verb: str) -> None:
        if self._state.state != state:
            raise InvalidRequest.of(
                "action", verb, f"asked of a warm-up that is {state}",
                f"this one is {self._state.state}",
            )  # fmt: skip

    def _run(self) -> None:
        wish = self._wish
        try:
            report = self._warm(
                tenant=self._tenant, collection=wish.collection, document_ids=wish.document_ids,
                texts=wish.texts, keep=wish.keep, on_progress=self._note,
            )  # fmt: skip
        except (Cancelled, ShuttingDown) as error:
            self._end("stopped", error.message)
        except ChunkCacheError as error:
            log.warning("warm_up_failed", reason=error.message)
            self._end("failed", error.message)
        except Exception as error:
            log.error("warm_up_fault", exc_info=error)
            self._end("failed", "an internal error; the server's log has the details")
        else:
            self._finish(report)

    def _note(self, progress: Progress) -> None:
        """Called after each chunk, in the job's thread; blocks while it is paused."""
        if not self._go_on.is_set():
            held_s = time.monotonic()
            self._go_on.wait()
            self._paused_s += time.monotonic() - held_s
        if self._stopping:
            raise Cancelled("stopped; what was computed stays")
        active_s = max(time.monotonic() - self._began_s - self._paused_s, 1e-3)
        rate = progress.tokens / active_s
        left_tokens = progress.eta_s * progress.tokens_per_s
        with self._lock:
            self._state.done, self._state.total = progress.done, progress.total
            self._state.tokens = progress.tokens
            self._state.left_out = progress.left_out
            self._state.not_kept_reason = progress.left_out_reason
            self._state.tokens_per_s = rate
            self._state.eta_s = left_tokens / rate if rate else None

    def _finish(self, report: WarmReport) -> None:
        with self._lock:
            self._state.done, self._state.total = report.warm, report.chunks
            for figure in WarmFigures.model_fields:
                setattr(self._state, figure, getattr(report, figure))
        if report.stopped_reason:
            self._end("stopped", report.stopped_reason)
        else:
            self._end("done", "")

    def _end(self, state: Literal["done", "stopped", "failed"], message: str) -> None:
        with self._lock:
            self._state.state, self._state.message = state, message
            self._state.eta_s, self._state.ended_at = None, time.time()


class WarmUps:
    """At most one warm-up for each tenant. Thread-safe."""

    def __init__(self, warm: Warm) -> None:
        self._warm = warm
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._closed = False

    def state(self, tenant: str) -> WarmState:
        """The tenant's warm-up, or the last one; `idle` if there was none."""
        job = self._jobs.get(tenant)
        return job.state if job else WarmState()

    def start(self, tenant: str, wish: WarmWish) -> WarmState:
        """Begin to warm what is wished for; returns at once.

        Raises:
            InvalidRequest: the tenant has one that runs or is paused.
            ShuttingDown: the service ends.
        """
        with self._lock:
            if self._closed:
                raise ShuttingDown("the service is shutting down and begins no warm-up")
            job = self._jobs.get(tenant)
            if job is not None and not job.is_over:
                raise InvalidRequest(
                    f"A warm-up is {job.state.state} already, and there is one at a time. Hint: "
                    "wait for it, or stop it first."
                )
            self._jobs[tenant] = _Job(self._warm, tenant, wish)
            return self._jobs[tenant].state

    def pause(self, tenant: str) -> WarmState:
        """Hold it after the chunk that is being computed. Raises InvalidRequest: none runs."""
        return self._told(tenant, _Job.pause)

    def resume(self, tenant: str) -> WarmState:
        """Go on. Raises InvalidRequest: none is paused."""
        return self._told(tenant, _Job.resume)

    def stop(self, tenant: str) -> WarmState:
        """End it after the chunk that is being computed; what was computed stays."""
        return self._told(tenant, _Job.stop)

    def close(self) -> None:
        """Stop all and wait for them, some seconds at most. Idempotent."""
        with self._lock:
            self._closed = True
            jobs = list(self._jobs.values())
        for job in jobs:
            job.stop()
        for job in jobs:
            job.join(_JOIN_TIMEOUT_S)

    def _told(self, tenant: str, verb: Callable[[_Job], None]) -> WarmState:
        with self._lock:
            job = self._jobs.get(tenant)
        if job is None or job.is_over:
            raise InvalidRequest.of(
                "action", verb.__name__, "asked of a warm-up that runs", "start one first"
            )
        verb(job)
        return job.state
