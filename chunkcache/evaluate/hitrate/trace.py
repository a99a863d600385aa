"""What is replayed: requests in order of time, each a prompt as a run of parts.

A part is a passage, which is looked up in the cache, or context, which is not: a head, a history, a
question. Context counts only where prompts are compared from their beginning (`reuse.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Final

from chunkcache.store.layout import pages_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LLAMA_3_8B_BYTES_PER_TOKEN: Final = 131_072
"""KV of one token of Llama-3-8B in bfloat16; what other simulations of RAG caches assume."""


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One prompt. The sequences are of equal length, in prompt order."""

    at_s: float
    ids: Sequence[int | str]
    tokens: Sequence[int]
    is_passage: Sequence[bool] | None = None  # None: all are

    def passages(self) -> Iterator[tuple[int | str, int]]:
        """Id and tokens of each passage, in prompt order; one that stands twice comes twice."""
        parts = zip(self.ids, self.tokens, strict=True)
        if self.is_passage is None:
            return parts
        return compress(parts, self.is_passage)


@dataclass(frozen=True, slots=True)
class RecordSizes:
    """Bytes that the KV of a chunk takes.

    In memory a record takes whole pages of `page_tokens` tokens; on disk its header and each of its
    layers take whole pages of the file.
    """

    bytes_per_token: int = LLAMA_3_8B_BYTES_PER_TOKEN  # in memory
    page_tokens: int = 1
    layers: int = 1
    disk_bytes_per_token: int | None = None  # None: as in memory

    def in_memory(self, tokens: int) -> int:
        """Bytes in memory."""
        pages = -(-tokens // self.page_tokens)
        return pages * self.page_tokens * self.bytes_per_token

    def on_disk(self, tokens: int) -> int:
        """Bytes of the store's file, without a codec that makes them fewer."""
        per_token = self.disk_bytes_per_token or self.bytes_per_token
        layer = -(-tokens * per_token // self.layers)
        header = 512 + 12 * tokens  # ids and two numbers for each token, and what names the model
        return self.layers * pages_bytes(layer) + pages_bytes(header)


@dataclass(frozen=True, slots=True)
class Trace:
    """A sequence of requests that can be read again and again, each time from its source.

    Nothing of it is held in memory, except by sources that must sort first.

    Args:
        name: in words, for tables and captions.
        read: begins anew; may raise `InvalidRequest`, naming the line.
        sizes: where the trace knows the model; else the caller's.
        num_requests: where that is known before it was read.
    """

    name: str
    read: Callable[[], Iterator[TracedRequest]]
    sizes: RecordSizes | None = None
    num_requests: int | None = None

    def __iter__(self) -> Iterator[TracedRequest]:
        return self.read()

    def by_access(self) -> Trace:
        """The same with every passage as a request of its own, as simulators of single objects
        (libCacheSim) see it."""

        def read() -> Iterator[TracedRequest]:
            for request in self.read():
                for chunk, tokens in request.passages():
                    yield TracedRequest(request.at_s, (chunk,), (tokens,))

        return Trace(self.name, read, self.sizes)


@dataclass(frozen=True, slots=True)
class TraceFacts:
    """How much there is in a trace. Passages only; the footprint is that of the distinct ones."""

    requests: int
    accesses: int
    tokens: int
    distinct: int
    footprint_tokens: int
    footprint_bytes: int  # in memory
    disk_footprint_bytes: int
    largest_prompt_bytes: int  # in memory, all passages of one request
    once: int  # chunks that are used a single time
    span_s: float

    @property
    def highest_hit_rate(self) -> float:
        """Share of accesses that an infinite cache serves: all but the first of each chunk."""
        return 1.0 - self.distinct / self.accesses if self.accesses else 0.0

    @property
    def highest_token_hit_rate(self) -> float:
        """The same in tokens."""
        return 1.0 - self.footprint_tokens / self.tokens if self.tokens else 0.0


def measure(
    trace: Trace, sizes: RecordSizes, on_progress: Callable[[int], None] = lambda _: None
) -> TraceFacts:
    """Read a trace once. Memory: one entry for each distinct chunk.

    Raises:
        InvalidRequest: as the source says.
    """
    uses: dict[int | str, int] = {}
    requests = accesses = tokens = footprint = in_memory = on_disk = largest = 0
    first_s = last_s = 0.0
    for request in trace:
        first_s = first_s if requests else request.at_s
        last_s = request.at_s
        requests += 1
        prompt: dict[int | str, int] = {}
        for chunk, length in request.passages():
            accesses += 1
            tokens += length
            prompt[chunk] = sizes.in_memory(length)
            seen = uses.get(chunk, 0)
            uses[chunk] = seen + 1
            if not seen:
                footprint += length
                in_memory += prompt[chunk]
                on_disk += sizes.on_disk(length)
        largest = max(largest, sum(prompt.values()))
        on_progress(requests)
    return TraceFacts(
        requests, accesses, tokens, len(uses), footprint, in_memory, on_disk,
        largest, once=sum(count == 1 for count in uses.values()), span_s=last_s - first_s,
    )  # fmt: skip
