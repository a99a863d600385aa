"""The service's tiers and policies with records that have sizes and no contents.

What decides is the real code: `TieredStore` looks up, promotes and writes, `HostTier` evicts as its
policy says, `CostModel` refuses tiers that lose. Simulated are the clock and what a device takes.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from chunkcache.chunk import USUAL_TERMS, ChunkKey, ChunkKV
from chunkcache.store.cost import Rows, Stored
from chunkcache.store.host import HostTier
from chunkcache.store.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.metrics import Metrics
    from chunkcache.store.policy import Policy


class SimulatedClock:
    """Seconds that pass only when something is said to take them."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True, slots=True)
class Device:
    """What a tier is on. The default is memory that is read in place and costs nothing."""

    bytes_per_s: float = math.inf
    latency_s: float = 0.0

    def seconds(self, size_bytes: int) -> float:
        """To read a record of that size."""
        return self.latency_s + size_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class TierSpec:
    """A tier to be simulated."""

    name: str
    capacity_bytes: int
    device: Device = Device()
    durable: bool = False


class SimulatedRecord(ChunkKV):
    """A record that has a key, sizes and terms, and no contents."""

    __slots__ = ("num_tokens", "size_bytes")

    num_tokens: int
    size_bytes: int

    def __init__(self, number: int, num_tokens: int, size_bytes: int) -> None:
        ids = cast("tuple[int, ...]", range(num_tokens))  # has a length, and takes no memory
        _set_key(self, ChunkKey(number.to_bytes(8, "big"), ids))
        _set_terms(self, USUAL_TERMS)
        _set_rounded_by(self, None)
        _set_geometry(self, None)  # there is no KV: nobody reads it
        _set_stats(self, None)
        _set_num_tokens(self, num_tokens)
        _set_size_bytes(self, size_bytes)


# the fields are frozen; looked up once, since there are a million records
_set_key, _set_terms, _set_rounded_by, _set_geometry, _set_stats = (
    vars(ChunkKV)[field].__set__ for field in ("key", "terms", "rounded_by", "geometry", "stats")
)
_set_num_tokens, _set_size_bytes = (
    vars(SimulatedRecord)[field].__set__ for field in ("num_tokens", "size_bytes")
)


class SimulatedTier(HostTier):
    """A `HostTier` that counts what is written to it, and takes no time."""

    def __init__(self, spec: TierSpec, policy: Policy) -> None:
        super().__init__(spec.capacity_bytes, policy, on_evict=self._count_evicted)
        self.name = spec.name
        self.durable = spec.durable
        self.capacity_bytes = spec.capacity_bytes
        self.written_bytes = 0
        self.evicted = 0

    def _take_in(self, digest: bytes, record: ChunkKV) -> bool:
        """See `HostTier`. Takes no time: writes are off the request's path."""
        kept = super()._take_in(digest, record)
        if kept:
            self.written_bytes += record.size_bytes
        return kept

    def _owned(self, record: ChunkKV) -> ChunkKV:
        return record

    def _count_evicted(self, records: int) -> None:
        self.evicted += records


class TimedTier(SimulatedTier):
    """One on a device whose reads take time."""

    def __init__(self, spec: TierSpec, policy: Policy, clock: SimulatedClock) -> None:
        super().__init__(spec, policy)
        self._device = spec.device
        self._clock = clock

    def get(self, key: ChunkKey) -> ChunkKV | None:
        """See `Tier`. Takes the device's time."""
        record = super().get(key)
        if record is not None:
            self._clock.now_s += self._device.seconds(record.size_bytes)
        return record


class WriteAtOnce:
    """A `WriteQueue` that writes while it is offered a record, so that a replay is repeatable."""

    def __init__(
        self, write: Callable[[ChunkKV], bool], limit: int, limit_bytes: int, *, name: str
    ) -> None:
        self._write = write
        self._outcomes: dict[bool, Future[bool]] = {}
        for outcome in (False, True):
            self._outcomes[outcome] = Future()
            self._outcomes[outcome].set_result(outcome)

    def offer(self, record: ChunkKV, *, wait_for_place: bool) -> Future[bool]:
        """See `WriteQueue`."""
        return self._outcomes[self._write(record)]

    def flush(self) -> None:
        """See `WriteQueue`."""

    def close(self) -> None:
        """See `WriteQueue`."""


class _Uncounted:
    """In the place of a metric, whose counting would take longer than a look-up."""

    def labels(self, *_: str) -> _Uncounted:
        return self

    def inc(self, _: float = 1) -> None:
        pass

    def set_function(self, _: Callable[[], float]) -> None:
        pass


class _NoMetrics:
    def __init__(self) -> None:
        self._metric = _Uncounted()

    def __getattr__(self, _: str) -> _Uncounted:
        return self._metric


class SimulatedService:
    """Pages over a tiered store, as `Runtime` has them.

    Args:
        specs: from fast to slow; the first are the pages of chunks, the others the store's tiers.
        new_policies: makes the policies of tiers of that many bytes.
        tokens_per_s: at which what no tier has is computed.
    """

    def __init__(
        self,
        specs: Sequence[TierSpec],
        new_policies: Callable[[Sequence[int]], list[Policy]],
        tokens_per_s: float,
    ) -> None:
        self.clock = SimulatedClock()
        self._tokens_per_s = tokens_per_s
        policies = new_policies([spec.capacity_bytes for spec in specs])
        self.tiers = [self._tier(*pair) for pair in zip(specs, policies, strict=True)]
        self._pages, *below = self.tiers
        self._store = TieredStore(
            below, cast("Metrics", _NoMetrics()),
            queue=WriteAtOnce, clock=self.clock,
        )  # fmt: skip

    def _tier(self, spec: TierSpec, policy: Policy) -> SimulatedTier:
        if spec.device == Device():
            return SimulatedTier(spec, policy)
        return TimedTier(spec, policy, self.clock)

    def bring_up(
        self, records: Sequence[SimulatedRecord]
    ) -> tuple[list[SimulatedRecord], list[tuple[str, SimulatedRecord]]]:
        """Look for the records of a prompt, each from the top down.

        Returns:
            Those in no tier, and those found below the pages, with the tier.
        """
        if self._store.is_empty:
            found = self._pages.get_many([record.key for record in records])
            pairs = zip(records, found, strict=True)
            return [record for record, there in pairs if there is None], []
        missing: list[SimulatedRecord] = []
        below: list[tuple[str, SimulatedRecord]] = []
        for record in records:
            if self._pages.get(record.key) is None:
                tier = None if self._loses(record) else self._store.fetch(record.key).tier
                if tier is None:
                    missing.append(record)
                else:
                    self._pages.put(record)
                    below.append((tier, record))
        return missing, below

    def _loses(self, record: SimulatedRecord) -> bool:
        """Whether the tier that holds it takes longer than computing it, and is not to be tried."""
        tier, cost = self._store.contains(record.key), self._store.cost
        if tier is None:
            return False
        stored = Stored(tier, record.size_bytes, Rows(record.num_tokens))
        return not (cost.pays(stored) or cost.choose([stored], Rows()).loads[0])

    def compute(self, records: Sequence[SimulatedRecord]) -> None:
        """Records of a prompt that were in no tier are made together, and kept."""
        tokens = sum([record.num_tokens for record in records])
        seconds = tokens / self._tokens_per_s
        self.clock.now_s += seconds
        put = self._pages.put
        if self._store.is_empty:
            for record in records:
                put(record)
            return
        self._store.cost.observe_prefill(tokens, 0, seconds)
        for record in records:
            self._store.offer(record)
            put(record)
