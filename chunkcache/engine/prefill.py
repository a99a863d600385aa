"""Making a chunk's KV: `[head] ‖ prior chunks ‖ chunk` is run, the chunk's rows are kept.

The head in front removes the phantom attention sink a chunk encoded at position 0 would make of its
first tokens (arXiv 2603.20218).
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from chunkcache.chunk import ChunkKV, all_finite, content_digest
from chunkcache.engine.attention import Logits
from chunkcache.engine.lowering import at_once
from chunkcache.engine.observe import CaptureKV
from chunkcache.engine.request import Pass, Request
from chunkcache.errors import NotFinite

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from chunkcache.chunk import ChunkKey
    from chunkcache.engine.decoder import DecoderModel
    from chunkcache.engine.lowering import Lowers
    from chunkcache.engine.request import Passes
    from chunkcache.errors import ChunkCacheError


class ChunkPrefill(Request):
    """Computes one `ChunkKV`; `future` resolves to it or to a `ChunkCacheError`.

    `prior` are token ids of passages between the head and this one while it is computed, which are
    no part of the record (`PromptBuilder.born_passages`). Only the pages of the born prefix are
    shared with others: a warm-up must not push the prefixes of conversations out of the prefix
    cache.

    `lowers` brings its KV to host memory; the request may have ended before the future resolves.

    Several callers may wait for one prefill; it is given up once all of them have gone.
    """

    is_part: ClassVar[bool] = True

    def __init__(
        self,
        key: ChunkKey,
        *,
        head: Sequence[int],
        salt: bytes,
        prior: Sequence[Sequence[int]] = (),
        lowers: Lowers = at_once,
    ) -> None:
        born = [*head, *(t for ids in prior for t in ids)]
        super().__init__([*born, *key.token_ids], max_new_tokens=0, salt=salt)
        self.key = key
        self.future: Future[ChunkKV] = Future()
        self._prior = [(content_digest(ids), len(ids)) for ids in prior]
        edges = np.cumsum([len(head), *(len(ids) for ids in prior)])
        self._boundaries = [int(e) for e in edges]
        # the chunk's own rows must all run, so that they can be captured
        self.max_prefix_tokens = self._boundaries[-1]
        self._lowers = lowers
        self._first = 0
        self._lock = threading.Lock()  # guards the two fields below
        self._callers: list[threading.Event] = []  # each is set once that caller has gone
        self._given_up = False

    def wait_for(self, gone: threading.Event) -> bool:
        """Add a caller, who sets `gone` on leaving. False: too late, it has been given up."""
        with self._lock:
            if not self._given_up:
                self._callers.append(gone)
            return not self._given_up

    def is_wanted(self) -> bool:
        """Whether anyone still waits for it; once not, never again."""
        with self._lock:
            left = bool(self._callers) and all(gone.is_set() for gone in self._callers)
            self._given_up = self._given_up or left or self.cancelled.is_set()
            return not self._given_up

    def plan(self, model: DecoderModel, prefix_tokens: int) -> int:
        """Everything from the first token that no shared page holds."""
        self._first = prefix_tokens
        return len(self.token_ids) - prefix_tokens

    def passes(self, model: DecoderModel) -> Passes:
        """One pass is all there is."""
        capture = CaptureKV(model, self._boundaries, len(self.key.token_ids))
        rows = np.arange(self._first, len(self.token_ids), dtype=np.int64)
        yield Pass(rows, observer=capture, logits=Logits.NONE)
        stats = capture.stats(self._prior)
        if not all_finite(capture.kv):  # its rows look at all that its pages would share
            raise NotFinite.of("keys or values of a passage")
        self.exact_tokens = self._boundaries[-1]

        def give(kv: torch.Tensor) -> None:
            if not self.future.done():
                self.future.set_result(ChunkKV(self.key, model.geometry, kv, stats))

        self._lowers(capture.kv, give, self.fail)

    def fail(self, error: ChunkCacheError) -> None:
        """Resolve the future to the error."""
        if not self.future.done():
            self.future.set_exception(error)
