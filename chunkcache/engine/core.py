"""The engine: one thread that owns the model, the device KV and every running request.

Others submit requests and read their mailboxes. Each step admits what fits, asks the scheduler
which rows run, runs them in one forward pass, and lets every request whose pass is
complete say what comes next.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
import torch

from chunkcache.cores import release_team
from chunkcache.engine.arrival import NotArrived
from chunkcache.engine.chunk_pages import ChunkPages
from chunkcache.engine.door import Door, check_fits
from chunkcache.engine.faults import as_engine_error, memory_full
from chunkcache.engine.lane import use_device
from chunkcache.engine.loader import Loader
from chunkcache.engine.lowering import Lowering
from chunkcache.engine.pages import PagePool
from chunkcache.engine.pass_clock import pass_clock, timed
from chunkcache.engine.pool import open_team
from chunkcache.engine.prefix import PrefixCache
from chunkcache.engine.scheduler import Share, schedule
from chunkcache.engine.sequence_kv import SequenceKV
from chunkcache.errors import Cancelled, ChunkCacheError, ShuttingDown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from chunkcache.config import EngineSettings
    from chunkcache.engine.attention import SequenceRows
    from chunkcache.engine.decoder import DecoderModel
    from chunkcache.engine.request import Request
    from chunkcache.metrics import Metrics
    from chunkcache.store.popularity import Popularity

log = structlog.get_logger(__name__)


class Engine:
    """Runs requests on one model. `submit`, `cancel`, `close` may be called from any thread.

    `on_prefill(rows, pairs, seconds)` is told, on the engine thread, of every full-depth pass of
    many rows, which look at `pairs` keys together. `chunk_capacity_bytes` stands in for the setting
    of that name, `chunk_quotas` are bytes tenants may hold of it. `popularity` counts uses.
    """

    def __init__(
        self,
        model: DecoderModel,
        settings: EngineSettings,
        metrics: Metrics,
        *,
        on_prefill: Callable[[int, int, float], None] = lambda rows, pairs, seconds: None,
        chunk_capacity_bytes: int = 0,
        chunk_quotas: Mapping[str, int] | None = None,
        popularity: Popularity | None = None,
    ) -> None:
        self.model = model
        self._settings = settings
        self._metrics = metrics
        self._clock = pass_clock(model.device, on_prefill)
        size = settings.page_tokens
        page_bytes = model.geometry.bytes_per_token * size
        self.pages = PagePool(max(1, settings.kv_capacity_bytes // page_bytes), size)
        self.prefix = PrefixCache(self.pages)
        self._team = open_team(model, size)
        chunk_bytes = chunk_capacity_bytes or settings.chunk_capacity_bytes
        self.pool = model.new_pool(self.pages.num_pages, chunk_bytes, settings, self._team)
        self.chunks = ChunkPages(
            self.pool.chunks, model.facts.angles, team=self._team,
            on_evict=metrics.evictions.labels(self.chunk_tier).inc, popularity=popularity,
            on_waste=metrics.prefetches_wasted.inc, quotas=chunk_quotas,
        )  # fmt: skip
        self.lowering = Lowering(model.device)
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._door = Door(settings)
        self.loader = Loader(self.chunks, on_settled=lambda: self._inbox.put(None))
        # asked when scraped: a value set in a step would stay after the last one
        metrics.running.set_function(lambda: self._num_running)
        metrics.queue_depth.set_function(lambda: max(0, self.unfinished - self._num_running))
        self._thread = threading.Thread(target=self._loop, name="chunkcache-engine", daemon=True)
        self._thread.start()

    @property
    def chunk_tier(self) -> str:
        """What the tier of chunk pages is called: on a CPU it is the one in host memory."""
        return "host" if self.model.device.type == "cpu" else "device"

    @property
    def capacity_tokens(self) -> int:
        """Tokens of KV the device pool holds."""
        return self.pages.num_pages * self.pages.page_tokens

    def submit(self, request: Request) -> None:
        """Queue a request. Its leases are the engine's from here on, whatever comes of it.

        Raises:
            PromptTooLong: it could never fit the model's context or the device KV.
            Overloaded: the queue is full; never for a part of what has a place in it.
            ShuttingDown: the engine is closing.
        """
        if request.is_part:
            self._enqueue(request)
            return
        try:
            with self.reserve() as submit:
                submit(request)
        except ChunkCacheError:
            self._give_back_leases(request)
            raise

    @contextmanager
    def reserve(self) -> Iterator[Callable[[Request], None]]:
        """A place in the queue for a request still to be prepared; gives its `submit`.

        Raises:
            Overloaded: the queue is full.
            ShuttingDown: the engine is closing.
        """
        self._door.take_place()
        passed_on = False

        def submit(request: Request) -> None:
            nonlocal passed_on
            self._enqueue(request)
            passed_on = True

        try:
            yield submit
        finally:
            if not passed_on:
                self._door.give_back_place()

    def _enqueue(self, request: Request) -> None:
        try:
            check_fits(request, self.model.context_tokens, self.pages)
            self._door.let_in(request, self._inbox.put)
        except ChunkCacheError:
            self._give_back_leases(request)
            raise

    def cancel(self, request: Request) -> None:
        """Stop a request at the next step; its reader gets `Cancelled`. Idempotent."""
        request.cancelled.set()
        self._inbox.put(None)

    @property
    def unfinished(self) -> int:
        """Requests running, waiting or being prepared."""
        return self._door.inside

    @property
    def _num_running(self) -> int:
        return sum(request.trunk is None for request in list(self._running.values()))

    def close(self) -> None:
        """Fail what is unfinished with `ShuttingDown` and end the thread. Idempotent."""
        self._door.shut()
        self.loader.close()
        self._inbox.put(None)
        self._thread.join()
        self.lowering.close()
        self.chunks.clear()
        if self._team is not None:
            self._team.close()

    # ------------------------------------------------------------ engine thread

    def _loop(self) -> None:
        use_device(self.model.device)
        idle = True
        while True:
            if idle:
                release_team()  # another engine or thread of this process may want the cores
            self._receive(block=idle)
            if self._door.is_shut:
                self._receive(block=False)  # what came in before `close`, after the last look
                self._fail_all(ShuttingDown("the engine was closed before the answer was complete"))
                return
            try:
                idle = not self._step()
            except Exception as error:
                # nobody's fault in particular, and it may come again: none must wait for ever
                log.error("engine_step_failed", traceback=traceback.format_exc())
                self._fail_all(as_engine_error(error))

    def _receive(self, *, block: bool) -> None:
        while True:
            try:
                request = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            if request is not None:
                self._waiting.append(request)

    def _step(self) -> bool:
        """Run some rows. False: nothing can run before a message comes."""
        self._drop_cancelled()
        for request in [r for r in self._running.values() if r.has_lost_a_chunk]:
            self._give_up(request)
        self._admit()
        candidates = (r.candidate for r in self._running.values())
        shares = schedule([c for c in candidates if c is not None], self._settings.step_tokens)
        if shares:
            self._run(shares)
        return bool(shares)

    def _give_up(self, request: Request) -> None:
        """What a request has run is in vain: it is planned again, without what did not come."""
        del self._running[request.request_id]
        self._give_back_pages(request)
        request.give_up()
        self._waiting.appendleft(request)

    def _run(self, shares: list[Share]) -> None:
        step: list[tuple[Request, list[SequenceRows]]] = []
        for share in shares:
            request = self._running[share.request_id]
            with self._blaming(request):
                groups = request.take(share.rows, self.model.geometry.num_layers)
                step.append((request, groups))
        found: list[torch.Tensor | None] | None = None
        try:
            found = self._forward([group for _, groups in step for group in groups])
        except NotArrived as reason:
            log.info("pass_given_up", reason=str(reason))
            for request, _ in step:
                self._give_up(request)
            return
        except torch.OutOfMemoryError as error:
            log.warning("device_memory_full", reason=str(error))
        except Exception as error:
            # whose rows have run and whose have not, nobody knows; those who wait had none
            log.error("engine_step_failed", traceback=traceback.format_exc())
            for request, _ in step:
                self._fail(request, as_engine_error(error))
            return
        if found is None:  # behind the block: its error holds all that the pass had computed
            self._refuse_largest(step)
            return
        results = iter(found)
        for request, groups in step:
            logits = [next(results) for _ in groups][-1]
            if request.request_id not in self._running:
                continue  # another branch of the same tree has just failed
            with self._blaming(request):
                for group in groups:
                    if group.fault is not None:
                        raise group.fault
                assert request.current is not None
                gathered = request.current.gather(logits)
                if request.current.pending == 0:
                    self._advance(request, gathered)

    def _forward(self, batch: list[SequenceRows]) -> list[torch.Tensor | None]:
        if not batch:
            return []
        self._metrics.step_rows.observe(sum(map(len, batch)))
        return timed(self._clock, batch, lambda: self.model.forward(batch, self.pool))

    def _refuse_largest(self, step: list[tuple[Request, list[SequenceRows]]]) -> None:
        """A step was too large: the request with the most rows is refused, the others run again."""
        rows = [sum(map(len, groups)) for _, groups in step]
        self._fail(step[rows.index(max(rows))][0], memory_full())
        for (request, _), count in zip(step, rows, strict=True):
            if request.is_decoding:
                request.put_back(count)
            elif request.request_id in self._running:
                self._give_up(request)
        torch.cuda.empty_cache()  # what is kept in pieces may be whole again; elsewhere nothing

    def _advance(self, request: Request, logits: torch.Tensor | None) -> None:
        was_decoding, had_drawn = request.is_decoding, request.has_drawn
        request.advance(logits)
        if request.has_drawn and not had_drawn:  # only now is known whether its rows are sound
            self._share_prefix(request)
        if request.is_decoding and not was_decoding:
            for branch in request.branches:
                self._fork(request, branch)
        if request.current is None and request.trunk is not None:
            self._running.pop(request.request_id)
        trunk = request.trunk or request
        if trunk.has_ended:
            self._finish(trunk)

    def _fork(self, trunk: Request, branch: Request) -> None:
        """Let a branch go on from where its trunk is, on some of the trunk's pages."""
        assert trunk.kv is not None
        count = self._pages_of_branch(branch)
        branch.kv = trunk.kv.fork(trunk.reserve[:count])
        trunk.reserve = trunk.reserve[count:]
        branch.begin(self.model)
        if branch.current is not None:
            self._running[branch.request_id] = branch

    def _pages_of_branch(self, branch: Request) -> int:
        return self.pages.pages_for(branch.max_tokens - len(branch.token_ids))

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._settings.max_running:
            with self._blaming(self._waiting[0]):
                shared = self._acquire(self._waiting[0])
                if shared is None:
                    return
                self._start(self._waiting.popleft(), shared)

    def _acquire(self, request: Request) -> int | None:
        """Give a request its pages; how many already hold its first tokens, None: no room yet."""
        if self._settings.prefix_cache and request.takes_prefix:
            known = request.token_ids[: request.max_prefix_tokens]
            request.pages = self.prefix.match(request.salt, known)
        shared = len(request.pages)
        rows = request.plan(self.model, shared * self.pages.page_tokens)
        count = self.pages.pages_for(rows)
        own = self.pages.allocate(count + sum(map(self._pages_of_branch, request.branches)))
        if own is None:
            self._give_back_pages(request)
            return None
        request.pages, request.reserve = request.pages + own, own[count:]
        return shared

    def _start(self, request: Request, shared: int) -> None:
        request.started_at = time.perf_counter()
        request.wait_over()
        self._running[request.request_id] = request
        request.kv = SequenceKV(
            self.pages.page_tokens, self.model.geometry.num_layers, request.max_tokens,
            prefix=request.pages[:shared], chunks=request.chunks,
            own=request.pages[shared : len(request.pages) - len(request.reserve)],
        )  # fmt: skip
        request.begin(self.model)

    def _share_prefix(self, request: Request) -> None:
        """Let others find the exact rows that lie in order, page by page."""
        if self._settings.prefix_cache and request.gives_prefix and request.kv is not None:
            exact = min(request.exact_tokens, request.kv.tokens_in_order)
            self.prefix.insert(request.salt, request.token_ids[:exact], request.pages)

    def _finish(self, request: Request) -> None:
        self._share_prefix(request)
        self._release(request)

    def _release(self, request: Request) -> None:
        for one in (request, *request.branches):
            self._running.pop(one.request_id, None)
        self._give_back_pages(request)
        self._give_back_leases(request)
        self._door.let_out(request)

    def _give_back_pages(self, request: Request) -> None:
        pages, request.pages, request.reserve = request.pages, [], []
        self.pages.release(pages)

    def _give_back_leases(self, request: Request) -> None:
        request.wait_over()
        leases, request.leases = request.leases, []
        self.chunks.release(leases)

    @contextmanager
    def _blaming(self, request: Request) -> Iterator[None]:
        """A fault in here is this request's own: it fails, alone, and gives back its pages."""
        try:
            yield
        except Exception as error:
            log.error("request_failed", traceback=traceback.format_exc())
            self._fail(request, as_engine_error(error))

    def _fail(self, request: Request, error: ChunkCacheError) -> None:
        """A request fails with all its branches, and once."""
        request = request.trunk or request
        if request in self._waiting:
            self._waiting.remove(request)
        elif request.request_id not in self._running:
            return
        self._release(request)
        request.fail(error)

    def _drop_cancelled(self) -> None:
        for request in [r for r in self._waiting if not r.is_wanted()]:
            self._fail(request, Cancelled("the request was cancelled while it waited"))
        for request in [r for r in self._running.values() if not r.is_wanted()]:
            self._fail(request, Cancelled("the request was cancelled while it ran"))

    def _fail_all(self, error: ChunkCacheError) -> None:
        for request in [*self._waiting, *self._running.values()]:
            self._fail(request, error)
