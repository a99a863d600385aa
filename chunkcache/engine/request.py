"""What the engine can be asked to do: a sequence, and passes over it.

A pass is a set of rows in position order that the scheduler may split over steps; when its last row
has run, the request says what comes next. `generation.py` and `prefill.py` hold the two kinds.
"""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from chunkcache.engine.attention import Logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

    from chunkcache.engine.attention import KeptRows, RowObserver
    from chunkcache.engine.chunk_pages import Resident
    from chunkcache.engine.decoder import DecoderModel
    from chunkcache.engine.sequence_kv import PlacedChunk, SequenceKV
    from chunkcache.errors import ChunkCacheError

_arrivals = itertools.count()  # a source of ids, not state: nothing reads it back


@dataclass(slots=True)
class Pass:
    """Rows to run: positions int64, increasing.

    They run through all layers, or up to `end_layer` for no logits. With `keep` they leave their
    hidden states; with `resumed` those at positions from `resumed_from` on go on from theirs, and
    rows before that start at the embeddings.
    """

    positions: np.ndarray
    observer: RowObserver | None = None
    end_layer: int | None = None
    keep: KeptRows | None = None
    resumed: KeptRows | None = None
    resumed_from: int = 0
    logits: Logits = Logits.LAST
    done: int = 0
    parts: list[torch.Tensor] = field(default_factory=list)  # logits so far, when all are wanted

    @property
    def pending(self) -> int:
        """Rows not yet run."""
        return len(self.positions) - self.done

    def full_rows(self, num_layers: int) -> float:
        """What the pass costs, in rows through all `num_layers` layers."""
        end = num_layers if self.end_layer is None else self.end_layer
        resumed = int((self.positions >= self.resumed_from).sum()) if self.resumed else 0
        skipped = resumed * self.resumed.layer if self.resumed else 0
        return (len(self.positions) * end - skipped) / num_layers


class Request(ABC):
    """Identity, sequence and KV; owned by the engine thread once submitted.

    `leases` are chunks it may read; whoever gets the request gives them back with it.
    """

    is_part: ClassVar[bool] = False  # run for a caller who has a place in the queue without it

    def __init__(
        self,
        token_ids: Sequence[int],
        *,
        max_new_tokens: int,
        salt: bytes,
        takes_prefix: bool = True,
        gives_prefix: bool = True,
    ) -> None:
        self.request_id = next(_arrivals)
        self.token_ids = list(token_ids)
        self.max_tokens = len(token_ids) + max_new_tokens
        self.salt = salt
        self.takes_prefix = takes_prefix  # from other requests under the same salt
        self.gives_prefix = gives_prefix
        self.leases: list[Resident] = []
        self.pages: list[int] = []  # of the exact prefix, then its own
        self.kv: SequenceKV | None = None
        self.current: Pass | None = None
        self.is_decoding = False
        self.exact_tokens = 0  # leading tokens whose KV may be shared as an exact prefix
        self.max_prefix_tokens = len(token_ids) - 1  # the last row must run, for its logits
        self.cancelled = threading.Event()
        self.submitted_at = time.perf_counter()
        self.started_at = self.submitted_at

    def is_wanted(self) -> bool:
        """Whether anyone still waits for it."""
        return not self.cancelled.is_set()

    @abstractmethod
    def plan(self, model: DecoderModel, prefix_tokens: int) -> int:
        """Plan, knowing that `prefix_tokens` already have KV: how many own rows to reserve.

        Called again, with another prefix, where there was no room for them.
        """

    @property
    def chunks(self) -> list[PlacedChunk]:
        """The chunks it reads, once it is planned."""
        return []

    @abstractmethod
    def begin(self, model: DecoderModel) -> None:
        """Set the first pass; `kv` is there."""

    @abstractmethod
    def advance(self, model: DecoderModel, logits: torch.Tensor | None) -> None:
        """The current pass is done: set the next one, or None when the request is finished.

        `logits` fp32: `[vocab]`, or `[rows, vocab]` where the pass wanted all, or None.
        """

    @abstractmethod
    def fail(self, error: ChunkCacheError) -> None:
        """Tell the caller that there will be no answer."""
