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

import numpy as np
import structlog
import torch

from chunkcache.cores import release_team
from chunkcache.engine.attention import Logits, SequenceRows
from chunkcache.engine.blocks import BlockPool
from chunkcache.engine.door import Door
from chunkcache.engine.prefix import PrefixCache
from chunkcache.engine.scheduler import Candidate, Share, schedule
from chunkcache.errors import (
    Cancelled,
    ChunkCacheError,
    PromptTooLong,
    ShuttingDown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chunkcache.config import EngineSettings
    from chunkcache.engine.model import DecoderModel
    from chunkcache.engine.request import Pass, Placement, Request
    from chunkcache.metrics import Metrics

_MANY_ROWS = 64  # below that a pass is bound by reading the weights and says little of prefill

log = structlog.get_logger(__name__)


class Engine:
    """Runs requests on one model. `submit`, `cancel`, `close` may be called from any thread.

    `on_prefill(rows, seconds)` is told, on the engine thread, of every full-depth pass of many
    rows: how fast this machine computes, for whoever weighs loading against computing.
    """

    def __init__(
        self,
        model: DecoderModel,
        settings: EngineSettings,
        metrics: Metrics,
        *,
        on_prefill: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self.model = model
        self._settings = settings
        self._metrics = metrics
        self._on_prefill = on_prefill
        block = settings.block_size_tokens
        tokens = settings.kv_capacity_bytes // model.geometry.bytes_per_token
        self.blocks = BlockPool(max(1, tokens // block), block)
        self.prefix = PrefixCache(self.blocks)
        self.pool = model.new_pool(self.blocks.num_blocks * block)
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._door = Door(settings)
        self._thread = threading.Thread(target=self._loop, name="chunkcache-engine", daemon=True)
        self._thread.start()

    @property
    def capacity_tokens(self) -> int:
        """Tokens of KV the device pool holds."""
        return self.blocks.num_blocks * self.blocks.block_size_tokens

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            PromptTooLong: it could never fit the model's context or the device KV.
            Overloaded: the queue is full; never for a part of what has a place in it.
            ShuttingDown: the engine is closing.
        """
        if request.is_part:
            self._enqueue(request)
            return
        with self.reserve() as submit:
            submit(request)

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
        limit = min(self.model.context_tokens, self.capacity_tokens)
        if request.max_tokens > limit:
            which = (
                "the model's context"
                if limit == self.model.context_tokens
                else "engine.kv_capacity_bytes"
            )
            raise PromptTooLong(
                f"messages: got {request.max_tokens} tokens with the answer's, must be at most "
                f"{limit} ({which}). Hint: fewer or shorter documents, or a smaller max_tokens.",
                param="messages",
            )
        self._door.let_in(request, self._inbox.put)

    def cancel(self, request: Request) -> None:
        """Stop a request at the next step; its reader gets `Cancelled`. Idempotent."""
        request.cancelled.set()

    @property
    def unfinished(self) -> int:
        """Requests running, waiting or being prepared."""
        return self._door.inside

    def close(self) -> None:
        """Fail what is unfinished with `ShuttingDown` and end the thread. Idempotent."""
        self._door.shut()
        self._inbox.put(None)
        self._thread.join()

    # ------------------------------------------------------------ engine thread

    def _loop(self) -> None:
        while True:
            idle = not (self._running or self._waiting)
            if idle:
                release_team()  # another engine or thread of this process may want the cores
            self._receive(block=idle)
            if self._door.is_shut:
                self._receive(block=False)  # what came in before `close`, after the last look
                self._fail_all(ShuttingDown("the engine was closed before the answer was complete"))
                return
            try:
                self._step()
            except Exception as error:
                # nobody's fault in particular, and it may come again: none must wait for ever
                log.error("engine_step_failed", traceback=traceback.format_exc())
                self._fail_all(_as_engine_error(error))

    def _receive(self, *, block: bool) -> None:
        while True:
            try:
                request = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            if request is not None:
                self._waiting.append(request)

    def _step(self) -> None:
        self._drop_cancelled()
        self._admit()
        candidates = [
            Candidate(r.request_id, r.current.pending, r.is_decoding)
            for r in self._running.values()
            if r.current is not None
        ]
        self._metrics.queue_depth.set(len(self._waiting))
        self._metrics.running.set(len(self._running))
        shares = schedule(candidates, self._settings.step_tokens)
        if shares:
            self._run(shares)

    def _run(self, shares: list[Share]) -> None:
        step: list[tuple[Request, list[SequenceRows]]] = []
        for share in shares:
            request = self._running[share.request_id]
            with self._blaming(request):
                current = request.current
                assert current is not None
                positions = current.positions[current.done : current.done + share.rows]
                current.done += share.rows
                step.append((request, self._groups(request, current, positions)))
        try:
            results = iter(self._forward([group for _, groups in step for group in groups]))
        except Exception as error:
            # whose rows have run and whose have not, nobody knows; those who wait had none
            log.error("engine_step_failed", traceback=traceback.format_exc())
            for request, _ in step:
                self._fail(request, _as_engine_error(error))
            return
        for request, groups in step:
            logits = [next(results) for _ in groups][-1]
            with self._blaming(request):
                for group in groups:
                    if group.fault is not None:
                        raise group.fault
                self._collect(request, logits)

    def _forward(self, batch: list[SequenceRows]) -> list[torch.Tensor | None]:
        if not batch:
            return []
        rows = sum(len(group) for group in batch)
        self._metrics.step_rows.observe(rows)
        began = time.perf_counter()
        results = self.model.forward(batch, self.pool)
        if rows >= _MANY_ROWS and all(g.end_layer is None and not g.first_layer for g in batch):
            self._on_prefill(rows, time.perf_counter() - began)
        return results

    def _groups(self, request: Request, current: Pass, positions: np.ndarray) -> list[SequenceRows]:
        """The rows as the model takes them: those that begin, then those that go on."""
        is_last = current.pending == 0
        wanted = current.logits
        if wanted is Logits.LAST and not is_last:
            wanted = Logits.NONE
        resumed = current.resumed
        going_on = positions >= current.resumed_from if resumed else np.zeros(len(positions), bool)
        groups = []
        for part, goes_on in ((positions[~going_on], False), (positions[going_on], True)):
            if len(part):
                groups.append(
                    SequenceRows(
                        token_ids=torch.tensor([request.token_ids[p] for p in part]),
                        positions=torch.from_numpy(part).to(self.model.device),
                        slots=request.slots,
                        observer=current.observer,
                        logits=Logits.NONE,
                        first_layer=resumed.layer if goes_on and resumed else 0,
                        end_layer=current.end_layer,
                        hidden=resumed.states(part) if goes_on and resumed else None,
                        keep=current.keep,
                    )
                )
        groups[-1].logits = wanted
        return groups

    def _collect(self, request: Request, logits: torch.Tensor | None) -> None:
        current = request.current
        assert current is not None
        is_last = current.pending == 0
        if current.logits is Logits.ALL and logits is not None:
            current.parts.append(logits)
            logits = torch.cat(current.parts) if is_last else None
        if is_last:
            self._advance(request, logits)

    def _advance(self, request: Request, logits: torch.Tensor | None) -> None:
        was_decoding = request.is_decoding
        request.advance(self.model, logits)
        if request.is_decoding and not was_decoding:
            self._share_prefix(request)
        if request.current is None:
            self._finish(request)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._settings.max_running:
            with self._blaming(self._waiting[0]):
                prefix_tokens = self._acquire(self._waiting[0])
                if prefix_tokens is None:
                    return
                self._start(self._waiting.popleft(), prefix_tokens)

    def _acquire(self, request: Request) -> int | None:
        """Give a request its blocks; how many tokens they hold already, or None: no room yet."""
        if self._settings.prefix_cache and request.takes_prefix:
            known = request.token_ids[: request.max_prefix_tokens]
            request.blocks = self.prefix.match(request.salt, known)
        shared = len(request.blocks)
        own = self.blocks.allocate(self.blocks.blocks_for(request.max_tokens) - shared)
        if own is None:
            self._give_back(request)
            return None
        request.blocks = request.blocks + own
        return shared * self.blocks.block_size_tokens

    def _start(self, request: Request, prefix_tokens: int) -> None:
        request.slots = self._slots(request.blocks)
        request.started_at = time.perf_counter()
        self._running[request.request_id] = request
        for placement in request.begin(self.model, prefix_tokens):
            self._place(request, placement)
        request.place_ms = (time.perf_counter() - request.started_at) * 1e3

    def _slots(self, blocks: list[int]) -> torch.Tensor:
        size = self.blocks.block_size_tokens
        first = torch.tensor(blocks, dtype=torch.int64) * size
        return (first[:, None] + torch.arange(size)).flatten().to(self.model.device)

    def _place(self, request: Request, placement: Placement) -> None:
        """Rotate a record's K to its new positions and write K and V to the request's slots."""
        kv = placement.record.kv[:, :, placement.first_row :].to(self.model.device)
        end = placement.position + kv.shape[2]
        where = torch.arange(placement.position, end, device=self.model.device)
        self.model.place(kv, where, self.pool, request.slots[placement.position : end])

    def _share_prefix(self, request: Request) -> None:
        if self._settings.prefix_cache and request.gives_prefix and request.exact_tokens:
            tokens = request.token_ids[: request.exact_tokens]
            self.prefix.insert(request.salt, tokens, request.blocks)

    def _finish(self, request: Request) -> None:
        self._share_prefix(request)
        self._release(request)

    def _release(self, request: Request) -> None:
        self._running.pop(request.request_id, None)
        self._give_back(request)
        self._door.let_out(request)

    def _give_back(self, request: Request) -> None:
        blocks, request.blocks = request.blocks, []
        self.blocks.release(blocks)

    @contextmanager
    def _blaming(self, request: Request) -> Iterator[None]:
        """A fault in here is this request's own: it fails, alone, and gives back its blocks."""
        try:
            yield
        except Exception as error:
            log.error("request_failed", traceback=traceback.format_exc())
            self._fail(request, _as_engine_error(error))

    def _fail(self, request: Request, error: ChunkCacheError) -> None:
        if request in self._waiting:
            self._waiting.remove(request)
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


def _as_engine_error(error: Exception) -> ChunkCacheError:
    if isinstance(error, ChunkCacheError):
        return error
    return ChunkCacheError(f"the engine failed: {error!r}")
