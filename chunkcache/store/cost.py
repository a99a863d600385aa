"""Load or recompute? Measured rates, one inequality. Pure."""

from __future__ import annotations

import threading
from dataclasses import dataclass

_PROBE_EVERY = 16  # a tier held to be slow is still measured once in so many questions


@dataclass(slots=True)
class _Rate:
    """Tokens per second: decayed sums of tokens and seconds, so that large samples weigh more."""

    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float, smoothing: float) -> None:
        self.tokens += smoothing * (tokens - self.tokens)
        self.seconds += smoothing * (seconds - self.seconds)

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None


class CostModel:
    """Break-even between loading a chunk's KV and computing it again. Thread-safe.

    Loading pays when `tokens / load_rate < (1 − f) · tokens / prefill_rate`, where f is the share
    of the chunk's rows which repair recomputes anyway. Until both rates were measured, loading
    pays: it is how one of them gets measured. A tier found slow is tried again after 15 refusals,
    until that gives a new measurement: a disk that was busy, or cold, gets its chance.

    Args:
        smoothing: weight of a new sample, 0 to 1.
    """

    def __init__(self, *, smoothing: float = 0.2) -> None:
        self._smoothing = smoothing
        self._lock = threading.Lock()
        self._loads: dict[str, _Rate] = {}
        self._prefill = _Rate()
        self._declined: dict[str, int] = {}  # questions answered "no" since the last load

    def observe_load(self, tier: str, num_tokens: int, seconds: float) -> None:
        """A record of `num_tokens` came up from `tier` in `seconds`."""
        if num_tokens <= 0 or seconds <= 0:
            return  # too short for the clock: no rate can be told
        with self._lock:
            self._loads.setdefault(tier, _Rate()).add(num_tokens, seconds, self._smoothing)
            self._declined[tier] = 0

    def observe_prefill(self, num_tokens: int, seconds: float) -> None:
        """`num_tokens` rows were computed in `seconds`."""
        if num_tokens <= 0 or seconds <= 0:
            return
        with self._lock:
            self._prefill.add(num_tokens, seconds, self._smoothing)

    def load_tokens_per_s(self, tier: str) -> float | None:
        """Measured rate of a tier, or None before the first load."""
        with self._lock:
            rate = self._loads.get(tier)
            return rate.tokens_per_s if rate is not None else None

    def prefill_tokens_per_s(self) -> float | None:
        """Measured prefill rate, or None before the first prefill."""
        with self._lock:
            return self._prefill.tokens_per_s

    def load_pays(self, tier: str, num_tokens: int, fix_fraction: float = 0.15) -> bool:
        """Whether to read a record of `num_tokens` rather than compute it again.

        Args:
            fix_fraction: share of its rows that repair recomputes anyway, 0 to 1.
        """
        load, prefill = self.load_tokens_per_s(tier), self.prefill_tokens_per_s()
        if load is None or prefill is None:
            return True
        if num_tokens / load < (1.0 - fix_fraction) * num_tokens / prefill:
            return True
        with self._lock:
            declined = self._declined.get(tier, 0)
            if declined >= _PROBE_EVERY - 1:
                return True
            self._declined[tier] = declined + 1
            return False
