"""Which share of passages an infinite cache serves, by what has to be the same before them.

A cache of exact prefixes serves a passage if all that stands before it in the prompt is what stood
before it once; one that reuses passages anywhere, if it was ever there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.evaluate.hitrate.trace import Trace, TracedRequest

_MASK: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Reuse:
    """Shares of passage accesses, and of their tokens."""

    exact_prefix: tuple[float, float]
    """After the very same beginning of the prompt, context and all."""
    ordered_prefix: tuple[float, float]
    """After the same passages in the same order, whatever the context."""
    same_set: tuple[float, float]
    """After the same passages in any order."""
    any_context: tuple[float, float]
    """Anywhere."""


class _Seen:
    """What was seen of the four kinds, each passage under a key of 64 bits.

    A key is a proper digest: Python's hash of a small number is nearly linear in it, so that the
    sums of two sets with equal sums of numbers would be one.
    """

    def __init__(self) -> None:
        self._keys: dict[int | str, int] = {}
        self._marks: list[set[int]] = [set() for _ in range(4)]
        self.hits = [0] * 4
        self.hit_tokens = [0] * 4

    def add(self, request: TracedRequest) -> None:
        exact = ordered = before = 0
        here: set[int] = set()
        flags = request.is_passage or [True] * len(request.ids)
        for chunk, tokens, is_passage in zip(request.ids, request.tokens, flags, strict=True):
            key = self._key_of(chunk)
            exact = hash((exact, key))
            if not is_passage:
                continue
            ordered = hash((ordered, key))
            for kind, mark in enumerate((exact, ordered, hash((before, key)), key)):
                marks = self._marks[kind]
                if mark in marks:
                    self.hits[kind] += 1
                    self.hit_tokens[kind] += tokens
                else:
                    marks.add(mark)
            if key not in here:  # a sum, because sets have no order
                here.add(key)
                before = (before + key) & _MASK

    def _key_of(self, chunk: int | str) -> int:
        key = self._keys.get(chunk)
        if key is None:
            number = len(self._keys)
            key = self._keys[chunk] = xxhash.xxh3_64_intdigest(number.to_bytes(8, "little"))
        return key


def compare_reuse(trace: Trace, on_progress: Callable[[int], None] = lambda _: None) -> Reuse:
    """Read a trace once.

    Memory: 64 bits for each distinct beginning of a prompt, which may be as many as accesses: that
    prefixes hardly come again is what this is to show.
    """
    seen = _Seen()
    accesses = tokens = 0
    for number, request in enumerate(trace, start=1):
        seen.add(request)
        lengths = [length for _, length in request.passages()]
        accesses += len(lengths)
        tokens += sum(lengths)
        on_progress(number)
    shares = zip(seen.hits, seen.hit_tokens, strict=True)
    return Reuse(*((hits / max(accesses, 1), of / max(tokens, 1)) for hits, of in shares))
