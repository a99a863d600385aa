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
from typing import TYPE_CHECKING

import numpy as np
import structlog
import torch

from chunkcache.cores import release_team
from chunkcache.engine.attention import Logits, SequenceRows
from chunkcache.engine.blocks import BlockPool
from chunkcache.engine.prefix import PrefixCache
from chunkcache.engine.scheduler import Candidate, Share, schedule
from chunkcache.errors import (
    Cancelled,
    ChunkCacheError,
    Overloaded,
    PromptTooLong,
    ShuttingDown,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self._lock = threading.Lock()  # guards the two fields below
        self._unfinished = 0
        self._closing = False
        # asked when they are scraped: a value set in a step would stay after the last one
        metrics.running.set_function(lambda: len(self._running))
        metrics.queue_depth.set_function(lambda: max(0, self.unfinished - len(self._running)))
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
            Overloaded: the queue is full.
            ShuttingDown: the engine is closing.
        """
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
        with self._lock:
            if self._closing:
                raise ShuttingDown("the engine is shutting down and admits nothing new")
            if self._unfinished >= self._settings.queue_limit + self._settings.max_running:
                raise Overloaded(
                    f"{self._unfinished} requests are running or waiting, the limit is "
                    f"engine.queue_limit = {self._settings.queue_limit} waiting"
                )
            self._unfinished += 1
            # inside the lock, so that nothing enters the inbox after close() has emptied it
            self._inbox.put(request)

    def cancel(self, request: Request) -> None:
        """Stop a request at the next step; its reader gets `Cancelled`. Idempotent."""
        request.cancelled.set()

    @property
    def unfinished(self) -> int:
        """Requests running or waiting."""
        with self._lock:
            return self._unfinished

    def close(self) -> None:
        """Fail what is unfinished with `ShuttingDown` and end the thread. Idempotent."""
        with self._lock:
            self._closing = True
        self._inbox.put(None)
        self._thread.join()

    # ------------------------------------------------------------ engine thread

    def _loop(self) -> None:
        while True:
            idle = not (self._running or self._waiting)
            if idle:
                release_team()  # another engine or thread of this process may want the cores
            self._receive(block=idle)
            with self._lock:
                closing = self._closing
            if closing:
                self._fail_all(ShuttingDown("the engine was closed before the answer was complete"))
                return
            try:
                self._step()
            except Exception as error:
                # a fault in one step must not leave callers waiting for ever
                log.error("engine_step_failed", traceback=traceback.format_exc())
                self._fail_all(ChunkCacheError(f"the engine failed: {error!r}"))

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
        shares = schedule(candidates, self._settings.step_tokens)
        if shares:
            self._run(shares)

    def _run(self, shares: list[Share]) -> None:
        groups: list[list[SequenceRows]] = []
        for share in shares:
            request = self._running[share.request_id]
            current = request.current
            assert current is not None
            positions = current.positions[current.done : current.done + share.rows]
            current.done += share.rows
            groups.append(self._groups(request, current, positions))
        rows = sum(share.rows for share in shares)
        self._metrics.step_rows.observe(rows)
        began = time.perf_counter()
        batch = [group for of_request in groups for group in of_request]
        results = iter(self.model.forward(batch, self.pool))
        if rows >= _MANY_ROWS and all(g.end_layer is None and not g.first_layer for g in batch):
            self._on_prefill(rows, time.perf_counter() - began)
        for share, of_request in zip(shares, groups, strict=True):
            logits = [next(results) for _ in of_request][-1]
            self._collect(self._running[share.request_id], logits)

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
            request = self._waiting[0]
            shared: list[int] = []
            if self._settings.prefix_cache and request.takes_prefix:
                known = request.token_ids[: request.max_prefix_tokens]
                shared = self.prefix.match(request.salt, known)
            own = self.blocks.allocate(self.blocks.blocks_for(request.max_tokens) - len(shared))
            if own is None:
                self.blocks.release(shared)
                return
            self._waiting.popleft()
            request.blocks = shared + own
            request.slots = self._slots(request.blocks)
            request.started_at = time.perf_counter()
            self._running[request.request_id] = request
            size = self.blocks.block_size_tokens
            for placement in request.begin(self.model, len(shared) * size):
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
        self.blocks.release(request.blocks)
        request.blocks = []
        with self._lock:
            self._unfinished -= 1

    def _drop_cancelled(self) -> None:
        for request in [r for r in self._waiting if r.cancelled.is_set()]:
            self._waiting.remove(request)
            self._release(request)
            request.fail(Cancelled("the request was cancelled while it waited"))
        for request in [r for r in self._running.values() if r.cancelled.is_set()]:
            self._release(request)
            request.fail(Cancelled("the request was cancelled while it ran"))

    def _fail_all(self, error: ChunkCacheError) -> None:
        for request in [*self._waiting, *self._running.values()]:
            self._release(request)
            request.fail(error)
        self._waiting.clear()
