"""An index of token ids: where do runs of one text stand in many others? Pure, no torch.

A text is known by windows of `WINDOW` tokens, one after the other from its beginning; a message is
looked up by the windows at all its positions. So any run of 2 · `WINDOW` - 1 tokens that the two
share holds a window of the text, wherever it stands (as in rsync and BLAST). A window is kept as 64
bits of a hash with secret factors; what it points to is compared token by token.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    Ids = npt.NDArray[np.uint32]

WINDOW = 16
SHORTEST = 2 * WINDOW  # of a run; all of that length are found
MOST_PLACES = 16  # a window that stands in more places tells nothing: boilerplate
MOST_TEXTS = 1024  # that are compared with one message, the likeliest ones

_ROW_BITS = 20
_DEAD_OR_ALIVE = 8  # times MOST_PLACES: places that are looked at, those of forgotten texts too
_FORGOTTEN = 64  # texts whose windows are not worth clearing away; or an eighth of all


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens `start..end` of a message that are those of a text from `row` on.

    `entries` have that text, those first that were added first.
    """

    start: int
    end: int
    row: int
    entries: tuple[int, ...]

    def __len__(self) -> int:
        return self.end - self.start


class PassageIndex:
    """Texts by entry, an int64. Not thread-safe.

    Entries with the same text share one place. Memory: 1 byte a token, and some 400 bytes a text.
    """

    def __init__(self) -> None:
        self._factors = np.array([secrets.randbits(64) | 1 for _ in range(WINDOW)], np.uint64)
        self._parts: list[_Part] = []  # sorted, each at least twice as long as the next
        self._text_of: dict[int, int] = {}  # number of the text, by entry
        self._number_of: dict[bytes, int] = {}  # the same by content
        self._holders: dict[int, tuple[bytes, list[int]]] = {}  # content and entries, by number
        self._next = 0

    def __len__(self) -> int:
        return len(self._text_of)

    @property
    def entries(self) -> npt.NDArray[np.int64]:
        """All entries, in no order."""
        return np.fromiter(self._text_of, np.int64, len(self._text_of))

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        windows = sum(len(part.hashes) for part in self._parts)
        return 16 * windows + 400 * len(self._text_of)

    def add(self, entries: Sequence[int], texts: Sequence[Ids]) -> None:
        """Take in texts, token ids `[n]`; of an entry that is known nothing changes.

        Cost: that of hashing and sorting the windows of the new ones, and now and then of merging.
        """
        new: list[tuple[int, Ids]] = []
        for entry, ids in zip(entries, texts, strict=True):
            if entry in self._text_of:
                continue
            content = blake2b(ids.tobytes(), digest_size=16).digest()
            number = self._number_of.get(content)
            if number is None:
                number = self._number_of[content] = self._next
                self._next += 1
                self._holders[number] = (content, [])
                new.append((number, ids))
            self._text_of[entry] = number
            self._holders[number][1].append(entry)
        self._append(new)

    def discard(self, entries: Iterable[int]) -> None:
        """Forget entries; those that are not there are no error."""
        for entry in entries:
            number = self._text_of.pop(entry, None)
            if number is None:
                continue
            content, holders = self._holders[number]
            holders.remove(entry)
            if not holders:
                del self._holders[number], self._number_of[content]
        known, held = sum(part.num_texts for part in self._parts), len(self._holders)
        if known - held > max(_FORGOTTEN, held // 8):
            self._purge()

    def find(self, message: Ids, read: Callable[[list[int]], Mapping[int, Ids]]) -> list[Run]:
        """The runs of a message that stand in some text too, from left to right, without overlap.

        From the first window that is known, the longest run around it; and on from its end. No run
        is shorter than `SHORTEST`, none could go on in its text to either side.

        Args:
            read: texts by entry; those that are gone are left out.

        Cost: hashing the message and looking every window up; reading the texts that it may hold
        (at most `MOST_TEXTS`) and comparing. Nothing is read for a message without known windows.
        """
        at, numbers, rows = self._hits(message)
        holders = {number: self._holders[number][1] for number in _likeliest(numbers)}
        texts = read([entries[0] for entries in holders.values()]) if holders else {}
        runs: list[Run] = []
        end, i = 0, 0
        while i < len(at):
            behind = int(np.searchsorted(at, at[i], side="right"))
            best = Run(end, end, 0, ())
            for hit in range(i, behind):
                entries = holders.get(int(numbers[hit]), [])
                text = texts.get(entries[0]) if entries else None
                if text is not None:
                    run = _around(message, int(at[i]), end, text, int(rows[hit]), tuple(entries))
                    best = max(best, run, key=len)
            i = behind
            if len(best) >= SHORTEST:
                runs.append(best)
                end = best.end
                i = int(np.searchsorted(at, end))
        return runs

    def _hits(self, message: Ids) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where known windows begin in the message, and the texts and rows where they stand."""
        nothing = np.empty(0, np.int64)
        if not self._parts or len(message) < WINDOW:
            return nothing, nothing, nothing
        hashes = self._hash(np.lib.stride_tricks.sliding_window_view(message, WINDOW))
        ranges = [part.ranges(hashes) for part in self._parts]
        places = np.sum([last - first for first, last in ranges], axis=0)
        few = (places > 0) & (places <= _DEAD_OR_ALIVE * MOST_PLACES)
        found: list[tuple[int, int]] = []
        for part, (first, last) in zip(self._parts, ranges, strict=True):
            for at in np.flatnonzero(few & (last > first)).tolist():
                known = part.where[first[at] : last[at]].tolist()
                found += [(at, place) for place in known if place >> _ROW_BITS in self._holders]
        if not found:
            return nothing, nothing, nothing
        positions, where = np.array(sorted(found), np.int64).T
        told = np.bincount(positions)[positions] <= MOST_PLACES
        positions, where = positions[told], where[told]
        return positions, where >> _ROW_BITS, where & ((1 << _ROW_BITS) - 1)

    def _hash(self, windows: np.ndarray) -> npt.NDArray[np.uint64]:
        hashes = np.zeros(len(windows), np.uint64)
        for column, factor in enumerate(self._factors):
            hashes += windows[:, column].astype(np.uint64) * factor  # modulo 2⁶⁴
        return hashes ^ (hashes >> np.uint64(29))

    def _append(self, texts: Sequence[tuple[int, Ids]]) -> None:
        lengths = [len(ids) // WINDOW for _, ids in texts]
        if not sum(lengths):
            return
        windows = np.concatenate(
            [ids[: n * WINDOW] for (_, ids), n in zip(texts, lengths, strict=True)]
        ).reshape(-1, WINDOW)
        where = np.concatenate(
            [
                (number << _ROW_BITS) + WINDOW * np.arange(n, dtype=np.int64)
                for (number, _), n in zip(texts, lengths, strict=True)
            ]
        )
        self._parts.append(_Part.of(self._hash(windows), where, sum(n > 0 for n in lengths)))
        while len(self._parts) > 1 and len(self._parts[-2]) < 2 * len(self._parts[-1]):
            last, before = self._parts.pop(), self._parts.pop()
            self._parts.append(before.merged(last))

    def _purge(self) -> None:
        alive = np.fromiter(self._holders, np.int64, len(self._holders))
        parts = [part.only(alive) for part in self._parts]
        self._parts = [part for part in parts if len(part)]


@dataclass(slots=True, eq=False)
class _Part:
    """Windows of some texts, sorted by hash; `where` int64: number of the text, then its row."""

    hashes: npt.NDArray[np.uint64]
    where: npt.NDArray[np.int64]
    num_texts: int

    @classmethod
    def of(cls, hashes: np.ndarray, where: np.ndarray, num_texts: int) -> _Part:
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], where[order], num_texts)

    def __len__(self) -> int:
        return len(self.hashes)

    def ranges(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each of the hashes begins and ends in the part, `[n]` each."""
        order = np.argsort(hashes)  # neighbours in order read neighbours in memory
        first, last = np.empty(len(hashes), np.int64), np.empty(len(hashes), np.int64)
        first[order] = np.searchsorted(self.hashes, hashes[order])
        last[order] = np.searchsorted(self.hashes, hashes[order], side="right")
        return first, last

    def merged(self, other: _Part) -> _Part:
        hashes = np.concatenate([self.hashes, other.hashes])
        where = np.concatenate([self.where, other.where])
        return _Part.of(hashes, where, self.num_texts + other.num_texts)

    def only(self, numbers: np.ndarray) -> _Part:
        own = self.where >> _ROW_BITS
        kept = np.isin(own, numbers)
        return _Part(self.hashes[kept], self.where[kept], len(np.unique(own[kept])))


def _likeliest(numbers: np.ndarray) -> list[int]:
    """The texts with most windows in the message."""
    found, counts = np.unique(numbers, return_counts=True)
    if len(found) > MOST_TEXTS:
        found = found[np.argsort(-counts, kind="stable")[:MOST_TEXTS]]
    return [int(number) for number in found]


def _around(
    message: Ids, at: int, begin: int, text: Ids, row: int, entries: tuple[int, ...]
) -> Run:
    """The longest run through a window, not before `begin`; empty if it is not the same window."""
    ahead = min(len(message) - at, len(text) - row)
    right = _equal(message[at : at + ahead], text[row : row + ahead])
    if right < WINDOW:
        return Run(at, at, row, entries)
    behind = min(at - begin, row)
    left = _equal(message[at - behind : at][::-1], text[row - behind : row][::-1])
    return Run(at - left, at + right, row - left, entries)


def _equal(one: Ids, other: Ids) -> int:
    """How many leading tokens are the same."""
    differ = one != other
    return int(differ.argmax()) if differ.any() else len(one)
