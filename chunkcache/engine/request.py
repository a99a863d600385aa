"""What the engine can be asked to do: a sequence, and passes over it.

A pass is a set of rows in position order that the scheduler may split over steps. A request is a
generator of passes: it is sent a pass's logits when its last row has run, and yields the next one.
`generation.py` and `prefill.py` hold the two kinds.
"""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from chunkcache.engine.attention import Logits, SequenceRows
from chunkcache.engine.scheduler import Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.engine.attention import KeptRows, RowObserver
    from chunkcache.engine.decoder import DecoderModel
    from chunkcache.engine.resident import Resident
    from chunkcache.engine.sequence_kv import PlacedChunk, SequenceKV
    from chunkcache.errors import ChunkCacheError


def _nothing() -> None:
    """Nobody is to be told."""


_arrivals = itertools.count()  # a source of ids, not state: nothing reads it back


@dataclass(slots=True)
class Pass:
    """Rows to run: positions int64, increasing.

    They run through all layers, or up to `end_layer` for no logits. With `keep` they leave their
    hidden states; with `resumed` those at positions from `resumed_from` on go on from theirs, and
    rows before that start at the embeddings. `token_ids` are those of the rows where the host does
    not know them yet: int64 `[rows]`, on the device.
    """

    positions: np.ndarray
    observer: RowObserver | None = None
    end_layer: int | None = None
    keep: KeptRows | None = None
    resumed: KeptRows | None = None
    resumed_from: int = 0
    token_ids: torch.Tensor | None = None
    logits: Logits = Logits.LAST
    done: int = 0
    parts: list[torch.Tensor] = field(default_factory=list)  # logits so far, when all are wanted

    @property
    def pending(self) -> int:
        """Rows not yet run."""
        return len(self.positions) - self.done

    def gather(self, logits: torch.Tensor | None) -> torch.Tensor | None:
        """Logits of rows that have just run; those of all rows at the end, where all are wanted."""
        if self.logits is not Logits.ALL or logits is None:
            return logits
        self.parts.append(logits)
        return None if self.pending else torch.cat(self.parts)

    def full_rows(self, num_layers: int) -> float:
        """What the pass costs, in rows through all `num_layers` layers."""
        end = num_layers if self.end_layer is None else self.end_layer
        resumed = int((self.positions >= self.resumed_from).sum()) if self.resumed else 0
        skipped = resumed * self.resumed.layer if self.resumed else 0
        return (len(self.positions) * end - skipped) / num_layers


Passes = Generator[Pass, torch.Tensor | None, None]
"""Passes in order. Each is answered with its logits, fp32: `[vocab]`, or `[rows, vocab]` where the
pass wanted all, or None."""


class Request(ABC):
    """Identity, sequence and KV; owned by the engine thread once submitted.

    `leases` are chunks it may read; whoever gets the request gives them back with it. `branches`
    are other continuations of the same tokens: they begin when this one begins to decode, read the
    rows it has until then where they lie, and end with it.
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
        self.wait_over: Callable[[], None] = _nothing  # called when it begins, and when it ends
        self.pages: list[int] = []  # of the exact prefix, then its own, then the reserve
        self.reserve: list[int] = []  # for branches that have not begun
        self.kv: SequenceKV | None = None
        self.current: Pass | None = None
        self.branches: list[Request] = []
        self.trunk: Request | None = None  # whose branch it is
        self._passes: Passes | None = None
        self.is_decoding = False
        self.has_drawn = False  # a token has been read: whether its rows are sound is known
        self.was_given_up = False  # a pass, because a layer of a chunk had not come
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
    def passes(self, model: DecoderModel) -> Passes:
        """What to run, from the first pass on; `kv` is there."""

    def begin(self, model: DecoderModel) -> None:
        """Set the first pass; `kv` is there."""
        self._passes = self.passes(model)
        self.current = next(self._passes, None)

    @property
    def candidate(self) -> Candidate | None:
        """What the scheduler is to know of it; None: there is nothing to run."""
        if self.current is None:
            return None
        pending = self.current.pending
        return Candidate(
            self.request_id, pending, self.is_decoding, self.is_arriving, self.was_given_up
        )

    @property
    def is_arriving(self) -> bool:
        """Whether a chunk that it reads is still coming up."""
        return self.kv is not None and self.kv.is_arriving

    @property
    def has_lost_a_chunk(self) -> bool:
        """Whether a chunk that it reads will not come up after all."""
        return self.kv is not None and self.kv.has_lost_a_chunk

    def give_up(self) -> None:
        """Forget what has been run: it will be planned and run from the beginning."""
        assert not self.is_decoding, "what was said cannot be taken back"
        assert self._passes is not None
        self._passes.close()
        self.kv, self.current, self._passes = None, None, None
        self.was_given_up = True

    def advance(self, logits: torch.Tensor | None) -> None:
        """The current pass is done: set the next one, or None when the request is finished."""
        assert self._passes is not None
        try:
            self.current = self._passes.send(logits)
        except StopIteration:
            self.current = None

    def take(self, rows: int, num_layers: int) -> list[SequenceRows]:
        """The next rows of the current pass, as the model takes them."""
        assert self.current is not None
        done = self.current.done
        self.current.done += rows
        groups = self.groups(self.current.positions[done : done + rows], num_layers)
        if self.current.token_ids is not None:
            (group,) = groups
            group.token_ids = self.current.token_ids[done : done + rows]
        return groups

    def put_back(self, rows: int) -> None:
        """The last rows taken have not run: they run again, to the same slots."""
        if self.current is not None:
            self.current.done -= rows

    def groups(self, positions: np.ndarray, num_layers: int) -> list[SequenceRows]:
        """Rows of the current pass as the model takes them: those that begin, then those that go
        on. `positions` int64, increasing; their slots are taken.
        """
        current = self.current
        assert self.kv is not None and current is not None
        wanted = current.logits
        if wanted is Logits.LAST and current.pending:
            wanted = Logits.NONE
        resumed = current.resumed
        going_on = positions >= current.resumed_from if resumed else np.zeros(len(positions), bool)
        run_to = num_layers if current.end_layer is None else current.end_layer
        groups = []
        for part, goes_on in ((positions[~going_on], False), (positions[going_on], True)):
            if len(part):
                groups.append(
                    SequenceRows(
                        token_ids=self._ids_at(part),
                        positions=part,
                        slots=self.kv.take(part, run_to),
                        kv=self.kv,
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

    def _ids_at(self, positions: np.ndarray) -> torch.Tensor:
        known = len(self.token_ids)  # of a row whose token nobody has read yet, any id will do
        return torch.tensor([self.token_ids[p] if p < known else 0 for p in positions])

    @property
    def has_ended(self) -> bool:
        """Whether it, and every branch of it, has nothing left to run."""
        return self.current is None and all(branch.current is None for branch in self.branches)

    @abstractmethod
    def fail(self, error: ChunkCacheError) -> None:
        """Tell the caller that there will be no answer."""
