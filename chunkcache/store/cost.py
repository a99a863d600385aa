"""Bring up or compute? Measured rates, and one choice for each prompt over all its chunks. Pure.

The chunks that a prompt brings up from one tier share it: together they take `latency + bytes ÷
rate`, where each codec of the tier has a rate of its own, since decoding is part of it. Rows take
time for their products and for the keys they look at: `a · rows + b · pairs`. What is brought up
comes while rows are run. Where the two share nothing, a prompt takes as long as the longest of
them; on a CPU they share its cores, and a measured part of the shorter one comes on top.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PROBE_EVERY = 16  # a tier held to be slow is still measured in one of so many prompts
_SETTLED = 8  # samples, before what is off is scatter
_APART = 1e-3  # samples that differ less in shape do not tell two numbers apart

Source: TypeAlias = tuple[str, str]
"""What a record comes up from: a tier, and the codec that decodes it as it is read. The codec is
empty where the tier has one alone, or gives records as they are."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to run, and the keys they look at together."""

    rows: float = 0.0
    pairs: float = 0.0

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.rows + other.rows, self.pairs + other.pairs)

    @classmethod
    def after(cls, context: int, count: int) -> Rows:
        """`count` rows in order, the first of which sees `context` keys before it."""
        return cls(count, count * context + count * (count + 1) / 2)


@dataclass(frozen=True, slots=True)
class Stored:
    """A chunk that a tier holds, and what it would take to compute it instead."""

    tier: str
    size_bytes: int  # of KV, decoded
    instead: Rows
    codec: str = ""  # see `Source`

    @property
    def source(self) -> Source:
        """Whose rate it has."""
        return self.tier, self.codec


@dataclass(frozen=True, slots=True)
class Planned:
    """What bringing up and computing take each by itself, and a prompt until its first token."""

    loading_s: float
    computing_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Which chunks are brought up, and what is `planned`: None before all is measured.

    A source is `probed` where one chunk of it comes up only to be measured.
    """

    loads: tuple[bool, ...]
    planned: Planned | None = None
    probed: Source | None = None


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What is chosen over; see `CostModel.choose`."""

    chunks: Sequence[Stored]
    always: Rows
    coming: Mapping[Source, int]


@dataclass(slots=True)
class _BusyTier:
    """What one tier brings up for a prompt: each byte as its codec takes, the latency once."""

    sizes: dict[Source, int] = field(default_factory=dict)
    slopes: dict[Source, tuple[float, float]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)  # of chunks; the last one is to go next
    seconds: float = 0.0

    def free(self, chunk: Stored) -> None:
        """A chunk is computed instead."""
        self.sizes[chunk.source] -= chunk.size_bytes
        self.measure()

    def measure(self) -> None:
        latency, moving = 0.0, 0.0
        for source, size in self.sizes.items():
            if size:
                first, each = self.slopes[source]
                latency, moving = max(latency, first), moving + each * size
        self.seconds = latency + moving


class _Fit:
    """seconds ≈ a · u + b · v with a, b ≥ 0: decayed least squares of the relative error.

    Samples of one shape do not tell a from b: then all is b, or a where `first` says so. Such a fit
    lies below the mean of samples that scatter: their mean beside it is one factor more.
    """

    def __init__(self, *, first: bool) -> None:
        self._first = first
        self._sums = [0.0] * 5  # uu, uv, vv, u, v; each divided by the seconds measured
        self._samples = 0
        self._scatter = 1.0  # mean of measured ÷ fitted

    def add(self, u: float, v: float, seconds: float, smoothing: float) -> None:
        if self._samples >= _SETTLED and (fitted := self._fitted(u, v)):
            self._scatter += smoothing * (seconds / fitted - self._scatter)
        self._samples += 1
        u, v = u / seconds, v / seconds
        new = (u * u, u * v, v * v, u, v)
        weight = smoothing if self._samples > 1 else 1.0
        pairs = zip(self._sums, new, strict=True)
        self._sums = [old + weight * (now - old) for old, now in pairs]

    def seconds(self, u: float, v: float) -> float | None:
        """None: nothing was measured."""
        return self._scatter * self._fitted(u, v) if self._samples else None

    def slopes(self) -> tuple[float, float]:
        """Seconds for each `u` and for each `v`."""
        a, b = self._solved()
        return self._scatter * a, self._scatter * b

    def _fitted(self, u: float, v: float) -> float:
        a, b = self._solved()
        return a * u + b * v

    def _solved(self) -> tuple[float, float]:
        uu, uv, vv, u, v = self._sums
        determinant = uu * vv - uv * uv
        if determinant > _APART * uu * vv:
            a, b = (u * vv - v * uv) / determinant, (v * uu - u * uv) / determinant
            if a >= 0 and b >= 0:
                return a, b
            only_first = b < 0
        else:
            only_first = self._first
        if (only_first and uu) or not vv:
            return u / uu, 0.0
        return 0.0, v / vv


class CostModel:
    """What bringing up and computing cost on this machine, and which of them to do. Thread-safe.

    Until a tier and the rows were measured, bringing up pays: it is how one of them gets measured.
    A source that lost is tried again with one chunk after 15 prompts: a disk that was busy, or
    cold, gets its chance.

    Args:
        smoothing: weight of a new sample, 0 to 1.
    """

    def __init__(self, *, smoothing: float = 0.2) -> None:
        self._smoothing = smoothing
        self._lock = threading.Lock()
        self._sources: dict[Source, _Fit] = {}
        self._rows = _Fit(first=True)
        self._bias = 1.0  # what prompts took ÷ what their rows alone would: probes, steps, samples
        self._on_top = (0.0, 0.0)  # see `_share`
        self._declined: dict[Source, int] = {}  # prompts in which one lost, since its last load

    def observe_load(
        self, tier: str, size_bytes: int, seconds: float, *, codec: str = "", share: float = 1.0
    ) -> None:
        """KV of `size_bytes` came up from `tier` through `codec` together, in `seconds`.

        Where other codecs came with it, `seconds` are its `share` of the time of all of them.
        """
        if size_bytes <= 0 or seconds <= 0:
            return  # too short for the clock: no rate can be told
        with self._lock:
            fit = self._sources.setdefault((tier, codec), _Fit(first=False))
            fit.add(share, size_bytes, seconds, self._smoothing)
            self._declined[tier, codec] = 0

    def observe_prefill(self, rows: int, pairs: int, seconds: float) -> None:
        """`rows` rows, which looked at `pairs` keys together, were computed in `seconds`."""
        if rows <= 0 or seconds <= 0:
            return
        with self._lock:
            self._rows.add(rows, pairs, seconds, self._smoothing)

    def observe_prompt(self, computed: Rows, seconds: float) -> None:
        """A prompt that had to wait for no tier took `seconds`; its plan had said `computed`."""
        with self._lock:
            alone = self._rows.seconds(computed.rows, computed.pairs)
            if alone and seconds > 0:
                self._bias += self._smoothing * (seconds / alone - self._bias)

    def observe_overlap(self, planned: Planned, seconds: float) -> None:
        """A prompt all of whose chunks came up, or were there, took `seconds`."""
        shorter, longer = sorted((planned.loading_s, planned.computing_s))
        if shorter <= 0 or seconds <= 0:
            return
        with self._lock:
            x, y = shorter / seconds, (seconds - longer) / seconds
            weight = self._smoothing if self._on_top[1] else 1.0
            xy, xx = self._on_top
            self._on_top = xy + weight * (x * y - xy), xx + weight * (x * x - xx)

    def load_s(self, tier: str, size_bytes: int, codec: str = "") -> float | None:
        """Seconds to bring up `size_bytes` of a source together; None before its first load."""
        with self._lock:
            return self._load_s((tier, codec), size_bytes)

    def compute_s(self, rows: Rows) -> float | None:
        """Seconds to compute rows; None before the first prefill."""
        with self._lock:
            return self._compute_s(rows)

    def pays(self, chunk: Stored) -> bool:
        """Whether one chunk alone comes up sooner than it is computed, as far as is known."""
        with self._lock:
            load, compute = (
                self._load_s(chunk.source, chunk.size_bytes),
                self._compute_s(chunk.instead),
            )
            return load is None or compute is None or load < compute

    def choose(
        self, chunks: Sequence[Stored], always: Rows, coming: Mapping[Source, int] | None = None
    ) -> LoadPlan:
        """Which of a prompt's chunks to bring up, so that its first token comes soonest.

        Args:
            chunks: those that a tier below the device holds.
            always: rows that the prompt runs whatever is chosen; repaired rows are among them.
            coming: bytes of it that are on their way up already.
        """
        with self._lock:
            loads, planned = self._best(_Prompt(chunks, always, coming or {}))
            lost = {c.source for c, load in zip(chunks, loads, strict=True) if not load}
            probed = None
            for source in sorted(lost):
                self._declined[source] = self._declined.get(source, 0) + 1
                if self._declined[source] >= _PROBE_EVERY and probed is None:
                    probed = source
            if probed is not None:
                own = [i for i, chunk in enumerate(chunks) if chunk.source == probed]
                loads[min(own, key=lambda i: chunks[i].size_bytes)] = True
            return LoadPlan(tuple(loads), planned, probed)

    # ------------------------------------------------------------ under the lock

    def _load_s(self, source: Source, size_bytes: float) -> float | None:
        fit = self._sources.get(source)
        return fit.seconds(1.0, size_bytes) if fit is not None and size_bytes else None

    def _compute_s(self, rows: Rows) -> float | None:
        alone = self._rows.seconds(rows.rows, rows.pairs)
        return None if alone is None else self._bias * alone

    def _share(self) -> float:
        """Of the shorter of bringing up and computing, what comes on top of the longer one.

        Decayed least squares of the relative error. Samples may lie outside of 0 to 1, for both
        scatter; what is made of them may not.
        """
        xy, xx = self._on_top
        return min(max(xy / xx, 0.0), 1.0) if xx else 0.0

    def _planned(self, computing_s: float, tiers: Sequence[_BusyTier], share: float) -> Planned:
        loading_s = max((tier.seconds for tier in tiers), default=0.0)
        shorter, longer = sorted((loading_s, computing_s))
        return Planned(loading_s, computing_s, longer + share * shorter)

    def _best(self, prompt: _Prompt) -> tuple[list[bool], Planned | None]:
        """All are brought up; then, one after another, the one that its tier is freed of at the
        least cost is computed, for as long as there are any. The best of these, and what it takes;
        None where something was never measured. O(n log n) in the chunks.
        """
        chunks = prompt.chunks
        loads = [True] * len(chunks)
        sources = {*prompt.coming, *(chunk.source for chunk in chunks)}
        computing_s = self._compute_s(prompt.always)
        if computing_s is None or not sources <= self._sources.keys():
            return loads, None
        tiers, share = self._tiers(prompt), self._share()
        least = self._planned(computing_s, tiers, share)
        computed: list[int] = []
        best, instead = 0, Rows()  # summed apart: whole rows add up to the same in any order
        while waiting := [tier for tier in tiers if tier.order]:
            slowest = max(waiting, key=attrgetter("seconds"))
            computed.append(slowest.order.pop())
            slowest.free(chunks[computed[-1]])
            instead += chunks[computed[-1]].instead
            computing_s = self._compute_s(prompt.always + instead) or 0.0
            planned = self._planned(computing_s, tiers, share)
            if planned.seconds < least.seconds:
                best, least = len(computed), planned
        for index in computed[:best]:
            loads[index] = False
        return loads, least

    def _tiers(self, prompt: _Prompt) -> list[_BusyTier]:
        """By name, each with all that it may bring up; every source was measured."""
        tiers: dict[str, _BusyTier] = {}
        for source in [*prompt.coming, *(chunk.source for chunk in prompt.chunks)]:
            tier = tiers.setdefault(source[0], _BusyTier())
            if source not in tier.sizes:
                tier.sizes[source] = prompt.coming.get(source, 0)
                tier.slopes[source] = self._sources[source].slopes()
        prices = [self._price(chunk) for chunk in prompt.chunks]
        # of several that cost the same, the first one goes first
        for index in sorted(range(len(prices)), key=lambda i: (prices[i], i), reverse=True):
            chunk = prompt.chunks[index]
            tiers[chunk.tier].order.append(index)
            tiers[chunk.tier].sizes[chunk.source] += chunk.size_bytes
        for tier in tiers.values():
            tier.measure()
        return [tiers[name] for name in sorted(tiers)]

    def _price(self, chunk: Stored) -> tuple[float, float]:
        """Seconds of computing for a second that its tier is freed of; then, for a byte."""
        computing = self._compute_s(chunk.instead) or 0.0
        freed = self._sources[chunk.source].slopes()[1] * chunk.size_bytes
        return computing / freed if freed else math.inf, computing / chunk.size_bytes
