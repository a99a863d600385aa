"""Made-up traffic: passages by Zipf's law, whose popularity drifts, with bursts of one topic."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.hitrate.trace import Trace, TracedRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

ZIPF: Final = "zipf:"
_DAY_S: Final = 86_400.0
_LIMITS: Final = {
    "chunks": (1, 10**8), "requests": (1, 10**9), "per_request": (1, 1000), "alpha": (0.0, 5.0),
    "drift": (0.0, 1.0), "bursts": (0.0, 1.0), "burst_requests": (1, 10**6), "topic": (1, 10**6),
    "tokens": (1, 2**20), "seed": (0, 2**31),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ZipfTraffic:
    """What to make up. The defaults are near RAGPulse: α .8, six passages of 279 tokens.

    Args:
        chunks: passages of the corpus.
        alpha: the passage of rank r is asked for r^−α as often as the first.
        drift: share of the ranks that change hands in the time of all requests, 1: all of them.
        bursts: share of requests that begin a burst; those of it ask for one topic.
        burst_requests: length of a burst.
        topic: passages of a topic.
        tokens: of a passage, on average; lengths are from half to one and a half times that.
    """

    chunks: int = 5000
    requests: int = 5000
    per_request: int = 6
    alpha: float = 0.8
    drift: float = 0.3
    bursts: float = 0.002
    burst_requests: int = 20
    topic: int = 12
    tokens: int = 279
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise InvalidRequest.of(
                    f"trace: {name}", value, f"from {least} to {most}", "see hitrate --help"
                )  # fmt: skip
        if self.per_request > self.chunks:
            raise InvalidRequest.of(
                "trace: per_request", self.per_request, f"at most chunks, {self.chunks}",
                "a request asks for different passages",
            )  # fmt: skip

    @classmethod
    def parse(cls, text: str) -> ZipfTraffic:
        """From `zipf:alpha=0.8,chunks=5000`; what is not named takes its default.

        Raises:
            InvalidRequest: a name is unknown, or its value is no number within its limits.
        """
        whole = {field.name: isinstance(field.default, int) for field in fields(cls)}
        given: dict[str, float] = {}
        for assignment in filter(None, text.removeprefix(ZIPF).split(",")):
            name, _, value = assignment.partition("=")
            if name not in whole:
                raise InvalidRequest.of(
                    "trace", assignment, f"one of {', '.join(whole)}, each =NUMBER", "zipf:alpha=1"
                )
            try:
                given[name] = int(value) if whole[name] else float(value)
            except ValueError as error:
                raise InvalidRequest.of(
                    f"trace: {name}",
                    value,
                    "a whole number" if whole[name] else "a number",
                    "zipf:alpha=1",
                ) from error
        return cls(**given)  # type: ignore[arg-type]

    def trace(self) -> Trace:
        """The same requests every time it is read."""
        law = f"zipf α={self.alpha:g}, drift {self.drift:g}, bursts {self.bursts:g}"
        name = f"{law}, {self.chunks} chunks, seed {self.seed}"
        return Trace(name, partial(_requests, self), num_requests=self.requests)


def _requests(traffic: ZipfTraffic) -> Iterator[TracedRequest]:
    rng = np.random.default_rng(traffic.seed)
    weights = np.arange(1, traffic.chunks + 1, dtype=float) ** -traffic.alpha
    cumulative = np.cumsum(weights / weights.sum())
    lengths = rng.integers(
        max(1, traffic.tokens // 2), traffic.tokens * 3 // 2 + 1, traffic.chunks
    )  # fmt: skip
    ranked = rng.permutation(traffic.chunks)  # ranked[r]: the passage of rank r
    swaps = traffic.drift * traffic.chunks / traffic.requests / 2
    due = 0.0
    burst: np.ndarray | None = None
    left = 0
    for number in range(traffic.requests):
        due += swaps
        while due >= 1.0:
            due -= 1.0
            a, b = rng.integers(0, traffic.chunks, 2)
            ranked[a], ranked[b] = ranked[b], ranked[a]
        if not left and rng.random() < traffic.bursts:
            left = traffic.burst_requests
            begin = int(rng.integers(0, max(1, traffic.chunks - traffic.topic + 1)))
            burst = ranked[begin : begin + max(traffic.topic, traffic.per_request)].copy()
        if left and burst is not None:
            left -= 1
            chosen = rng.choice(burst, min(traffic.per_request, len(burst)), replace=False)
        else:
            chosen = ranked[_different(rng, cumulative, traffic.per_request)]
        at_s = 7 * _DAY_S * number / traffic.requests
        yield TracedRequest(at_s, chosen.tolist(), lengths[chosen].tolist())


def _different(rng: np.random.Generator, cumulative: np.ndarray, count: int) -> np.ndarray:
    """`count` different ranks; each drawn by its weight among those not drawn yet."""
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        drawn = np.searchsorted(cumulative, rng.random(2 * count), side="right")
        for rank in np.minimum(drawn, len(cumulative) - 1).tolist():
            if len(chosen) < count:
                chosen[rank] = None
    return np.fromiter(chosen, np.int64, count)
