"""In which order passages stand in a prompt: as ranked, or so that exact prefixes are shared.

An exact prefix is shared only by prompts that begin with the same passages in the same order. Where
the order is free, a new set of passages can be put into an order that an earlier prompt already
had, as far as the two have passages in common. Pure and thread-safe.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.chunk import Chunk

_MOST_VISITED = 2000  # nodes of one search: far more than real traces need, and a bound


def distinct(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Each passage once: of those with one text under the same headings, the first.

    Titles do not count: a copy has another name. What is cited is the one that ranks first.
    """
    first: dict[tuple[object, ...], Chunk] = {}
    for chunk in chunks:
        first.setdefault((chunk.headings, chunk.opening, chunk.text), chunk)
    return list(first.values())


@dataclass(frozen=True, slots=True)
class RankedPassage:
    """What an order is made of: content and length."""

    digest: bytes
    num_tokens: int


class OrderBook:
    """A tree of the orders that exact prompts have had; the oldest are forgotten.

    A `root` names what stands before the passages and who asks, so that orders under another head
    or of another tenant are not taken for shared. What the book remembers may have left the prefix
    cache since: then an order is as good as another.
    Memory: 240 bytes an edge, 16 MB at the capacity it has by default.
    """

    def __init__(self, capacity_edges: int = 65_536) -> None:
        self._capacity = capacity_edges
        self._edges: OrderedDict[tuple[bytes | int, bytes], int] = OrderedDict()
        self._nodes = itertools.count()  # never reused: children of a forgotten edge stay unfound
        self._lock = threading.Lock()

    def arrange(self, root: bytes, passages: Sequence[RankedPassage]) -> list[int]:
        """The indices of `passages` in the order that shares the longest known prefix, in tokens.

        Passages beyond it follow in the order given, which also decides between equals. Cost: one
        look-up per passage and visited node; after 2,000 nodes the longest one found so far counts.
        """
        with self._lock:
            path = self._longest(root, passages)
        taken = set(path)
        return [*path, *(i for i in range(len(passages)) if i not in taken)]

    def remember(self, root: bytes, digests: Sequence[bytes]) -> None:
        """An exact prompt has had its passages in this order."""
        with self._lock:
            node: bytes | int = root
            for digest in digests:
                edge = (node, digest)
                if edge not in self._edges:
                    self._edges[edge] = next(self._nodes)
                self._edges.move_to_end(edge)
                node = self._edges[edge]
            while len(self._edges) > self._capacity:
                self._edges.popitem(last=False)

    def _longest(self, root: bytes, passages: Sequence[RankedPassage]) -> list[int]:
        places: dict[bytes, list[int]] = {}
        for index, passage in enumerate(passages):
            places.setdefault(passage.digest, []).append(index)
        best: list[int] = []
        best_tokens = 0
        # depth first, in the order given; a path is a list of indices from the root
        stack: list[tuple[bytes | int, list[int], int]] = [(root, [], 0)]
        for _ in range(_MOST_VISITED):
            if not stack:
                break
            node, path, tokens = stack.pop()
            if tokens > best_tokens:
                best, best_tokens = path, tokens
            used = Counter(passages[i].digest for i in path)
            below = []
            for digest, indices in places.items():
                child = self._edges.get((node, digest))
                if child is not None and used[digest] < len(indices):
                    index = indices[used[digest]]
                    below.append((child, [*path, index], tokens + passages[index].num_tokens))
            stack.extend(reversed(below))
        return best
