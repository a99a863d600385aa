"""Text that comes again in messages: passages that nobody has ever called documents.

A pipeline whose documents are its own sends the same passages with one question after another, in
one order after another. What two messages share beyond their beginning is a passage by all signs,
and where it begins and ends is where they part again. (A shared beginning is the exact-prefix
cache's.)
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING

from chunkcache.retrieval.passage_index import SHORTEST, PassageIndex

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    Ids = npt.NDArray[np.uint32]

LEAST = 2 * SHORTEST  # tokens that a repeated text has: shorter ones are not worth a record
_SEEN_TOKENS = 1 << 18  # of messages that are remembered


class RepeatedTexts:
    """The messages of one tenant, until many others have come. Not thread-safe.

    Args:
        piece_tokens: repeated texts are cut into pieces of at most so many tokens.
    """

    def __init__(self, piece_tokens: int) -> None:
        self._piece_tokens = max(LEAST, piece_tokens)
        self._index = PassageIndex()
        self._seen: OrderedDict[int, tuple[int, Ids]] = OrderedDict()  # where it began, and it
        self._tokens = 0
        self._next = 0

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return self._index.size_bytes + 4 * self._tokens

    def take(self, message: Ids, known: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Pieces of a message, beside the known ones, that came in an earlier message too.

        The message is remembered but for those and the known ones. Pieces are from left to right;
        each begins and ends at other tokens than its neighbours.
        """
        found: list[tuple[int, int]] = []
        for begin, end in _between(known, len(message)):
            runs = self._index.find(message[begin:end], self._texts)
            for run in runs:
                start, stop = begin + run.start, begin + run.end
                first, _ = self._seen[run.entries[0]]
                if stop - start >= LEAST and (start > 0 or first + run.row > 0):
                    found += _pieces(start, stop, self._piece_tokens)
        for begin, end in _between([*known, *found], len(message)):
            self._remember(begin, message[begin:end].copy())
        return found

    def _remember(self, begin: int, text: Ids) -> None:
        if len(text) > _SEEN_TOKENS:
            return  # it would push out all others, and itself
        self._index.add([self._next], [text])
        self._seen[self._next] = (begin, text)
        self._next += 1
        self._tokens += len(text)
        while self._tokens > _SEEN_TOKENS:
            oldest, (_, gone) = self._seen.popitem(last=False)
            self._index.discard([oldest])
            self._tokens -= len(gone)

    def _texts(self, entries: list[int]) -> dict[int, Ids]:
        return {entry: self._seen[entry][1] for entry in entries}


def _between(known: Sequence[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    """What lies between runs, where it is long enough to hold a repeated text."""
    begin = 0
    for start, end in [*sorted(known), (length, length)]:
        if start - begin >= LEAST:
            yield begin, start
        begin = end


def _pieces(start: int, end: int, most: int) -> list[tuple[int, int]]:
    """A run in as few parts as it takes, of nearly the same length."""
    count = -(-(end - start) // most)
    edges = [start + (end - start) * i // count for i in range(count + 1)]
    return list(pairwise(edges))
