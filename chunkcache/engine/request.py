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

import torch

from chunkcache.engine.attention import Logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from chunkcache.chunk import ChunkKV
    from chunkcache.engine.attention import KeptRows, RowObserver
    from chunkcache.engine.model import DecoderModel
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


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Rows `first_row..` of a record, to be written at `position..`."""

    position: int
    first_row: int
    record: ChunkKV


class Request(ABC):
    """Identity, sequence and blocks; owned by the engine thread once submitted."""

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
        self.blocks: list[int] = []
        self.slots = torch.empty(0, dtype=torch.int64)
        self.current: Pass | None = None
        self.is_decoding = False
        self.exact_tokens = 0  # leading tokens whose KV may be shared as an exact prefix
        self.max_prefix_tokens = len(token_ids) - 1  # the last row must run, for its logits
        self.cancelled = threading.Event()
        self.submitted_at = time.perf_counter()
        self.started_at = self.submitted_at
        self.place_ms = 0.0

    def is_wanted(self) -> bool:
        """Whether anyone still waits for it."""
        return not self.cancelled.is_set()

    @abstractmethod
    def begin(self, model: DecoderModel, prefix_tokens: int) -> list[Placement]:
        """Set the first pass, knowing that `prefix_tokens` already have KV; say what to place."""

    @abstractmethod
    def advance(self, model: DecoderModel, logits: torch.Tensor | None) -> None:
        """The current pass is done: set the next one, or None when the request is finished.

        `logits` fp32: `[vocab]`, or `[rows, vocab]` where the pass wanted all, or None.
        """

    @abstractmethod
    def fail(self, error: ChunkCacheError) -> None:
        """Tell the caller that there will be no answer."""
