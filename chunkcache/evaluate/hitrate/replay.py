"""A trace through the simulated service: who was hit where, and what it saved."""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.evaluate.hitrate.simulated import SimulatedRecord, SimulatedService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from chunkcache.evaluate.hitrate.simulated import TierSpec
    from chunkcache.evaluate.hitrate.trace import RecordSizes, Trace, TracedRequest
    from chunkcache.store.policy import Policy

GPU_TOKENS_PER_S = 20_000.0
"""Prefill of an 8B model on one large GPU, 50 µs a token."""


@dataclass(frozen=True, slots=True)
class TierCount:
    """What one tier did."""

    name: str
    capacity_bytes: int
    hits: int
    hit_tokens: int
    written_bytes: int
    evicted: int


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a trace with these tiers.

    `time_s` is what loads and computing took, `cold_s` what computing everything would have.
    """

    policy: str
    tiers: tuple[TierCount, ...]
    requests: int
    accesses: int
    tokens: int
    size_bytes: int  # of all accesses together
    missed_bytes: int
    time_s: float
    cold_s: float
    wall_s: float

    @property
    def hits(self) -> int:
        """Accesses that some tier served."""
        return sum(tier.hits for tier in self.tiers)

    @property
    def hit_rate(self) -> float:
        """Share of passage tokens that some tier served."""
        return sum(tier.hit_tokens for tier in self.tiers) / max(self.tokens, 1)

    @property
    def object_hit_rate(self) -> float:
        """Share of accesses that some tier served."""
        return self.hits / max(self.accesses, 1)

    @property
    def byte_miss_rate(self) -> float:
        """Share of bytes that no tier served."""
        return self.missed_bytes / max(self.size_bytes, 1)

    @property
    def time_saved(self) -> float:
        """Share of the time of computing everything that was saved."""
        return 1.0 - self.time_s / self.cold_s if self.cold_s else 0.0

    @property
    def accesses_per_s(self) -> float:
        """How fast the replay was."""
        return self.accesses / max(self.wall_s, 1e-9)

    def as_dict(self) -> dict[str, object]:
        """For a JSON line."""
        return {
            "policy": self.policy,
            "hit_rate": round(self.hit_rate, 4),
            "object_hit_rate": round(self.object_hit_rate, 4),
            "byte_miss_rate": round(self.byte_miss_rate, 4),
            "time_saved": round(self.time_saved, 4),
            "accesses_per_s": round(self.accesses_per_s),
            "tiers": [
                {
                    "name": tier.name, "capacity_bytes": tier.capacity_bytes,
                    "hit_rate": round(tier.hit_tokens / max(self.tokens, 1), 4),
                    "written_bytes": tier.written_bytes, "evicted": tier.evicted,
                }
                for tier in self.tiers
            ],
        }  # fmt: skip


class Requests:
    """Requests as every setting is to see them, and what there was of them in all.

    Keeps the record of every chunk seen, some 300 bytes each, and nothing that grows with accesses.
    """

    def __init__(self, sizes: RecordSizes) -> None:
        self._sizes = sizes
        self._known: dict[int | str, SimulatedRecord] = {}
        self._begin_s: float | None = None
        self.seen = self.accesses = self.tokens = self.size_bytes = 0
        self.at_s = 0.0  # since the first one

    def records_of(self, request: TracedRequest) -> list[SimulatedRecord]:
        """Of its passages, in prompt order; one that stands twice comes twice."""
        if self._begin_s is None:
            self._begin_s = request.at_s
        self.at_s = request.at_s - self._begin_s
        known = self._known.get
        records = [known(chunk) or self._new(chunk, tokens) for chunk, tokens in request.passages()]
        self.seen += 1
        self.accesses += len(records)
        for record in records:
            self.tokens += record.num_tokens
            self.size_bytes += record.size_bytes
        return records

    def _new(self, chunk: int | str, tokens: int) -> SimulatedRecord:
        record = SimulatedRecord(len(self._known), tokens, self._sizes.in_memory(tokens))
        self._known[chunk] = record
        return record


class Replaying:
    """One setting of tiers and policy, while a trace goes through it.

    Args:
        specs: from fast to slow, at least one.
        policy: name of what `new_policies` makes, one for each tier.
        tokens_per_s: at which what no tier has is computed.
    """

    def __init__(
        self,
        specs: Sequence[TierSpec],
        policy: str,
        new_policies: Callable[[Sequence[int]], list[Policy]],
        *,
        tokens_per_s: float = GPU_TOKENS_PER_S,
    ) -> None:
        self._service = SimulatedService(specs, new_policies, tokens_per_s)
        self._policy = policy
        self._tokens_per_s = tokens_per_s
        self._below: dict[str, list[int]] = {}  # hits, and tokens of them, below the first tier
        self._missed = self._missed_tokens = self._missed_bytes = 0
        self._idle_s = self._wall_s = 0.0

    def see(self, at_s: float, records: Sequence[SimulatedRecord]) -> None:
        """A request: its passages are looked up, then those missing are computed and kept.

        Args:
            at_s: when it comes, unless those before it take longer.
            records: of its passages, each once.
        """
        began = time.perf_counter()
        service = self._service
        idle_s = at_s - service.clock.now_s
        if idle_s > 0:
            self._idle_s += idle_s
            service.clock.now_s = at_s
        missing, below = service.bring_up(records)
        for tier, record in below:
            count = self._below.setdefault(tier, [0, 0])
            count[0] += 1
            count[1] += record.num_tokens
        if missing:
            service.compute(missing)
            self._missed += len(missing)
            for record in missing:
                self._missed_tokens += record.num_tokens
                self._missed_bytes += record.size_bytes
        self._wall_s += time.perf_counter() - began

    def result(self, of: Requests) -> Replay:
        """What came of the requests seen. What stands twice in a prompt hits the first tier, and
        so does all that was neither missing nor found below it."""
        tiers: list[TierCount] = []
        for tier in self._service.tiers:
            if tier is self._service.tiers[0]:
                below = self._below.values()
                hits = of.accesses - self._missed - sum(count for count, _ in below)
                tokens = of.tokens - self._missed_tokens - sum(tokens for _, tokens in below)
            else:
                hits, tokens = self._below.get(tier.name, (0, 0))
            tiers.append(
                TierCount(
                    tier.name, tier.capacity_bytes, hits, tokens, tier.written_bytes, tier.evicted
                )
            )
        return Replay(
            self._policy, tuple(tiers), of.seen, of.accesses, of.tokens, of.size_bytes,
            self._missed_bytes, time_s=self._service.clock.now_s - self._idle_s,
            cold_s=of.tokens / self._tokens_per_s, wall_s=self._wall_s,
        )  # fmt: skip


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """Python looks through all objects for cycles again and again, here up to 29 % of the time.

    Replays make millions of objects and no cycle.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def replay(
    trace: Trace,
    sizes: RecordSizes,
    settings: Sequence[Replaying],
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[Replay]:
    """Read a trace once and let every setting see it. Memory: the distinct chunks, and the tiers'.

    Raises:
        InvalidRequest: as the trace's source says.
    """
    requests = Requests(sizes)
    with _no_search_for_garbage():
        for number, request in enumerate(trace, start=1):
            records = list(dict.fromkeys(requests.records_of(request)))
            for setting in settings:
                setting.see(requests.at_s, records)
            on_progress(number)
    return [setting.result(requests) for setting in settings]
