"""`Postings`: which texts have a term, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Places = npt.NDArray[np.int64]
    Counts = npt.NDArray[np.int32]

_ROW_BITS = 32
_ROWS = (1 << _ROW_BITS) - 1
_MOST_COUNT = np.iinfo(np.uint16).max  # else counts take four bytes


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """Terms of some texts, never changed. A text is a row, a number below 2³².

    Memory: 6 bytes for each distinct term of a text, and 16 for each distinct term of all texts.
    """

    terms: Places  # [t], ascending
    starts: Places  # [t + 1]: where in `rows` each term's begin; no term has none
    rows: npt.NDArray[np.uint32]  # [n], ascending within a term
    counts: npt.NDArray[np.uint16 | np.int32]  # [n]: how often the row has the term

    @classmethod
    def empty(cls) -> Postings:
        """Of no texts."""
        nothing = np.empty(0, np.int64)
        return cls(nothing, np.zeros(1, np.int64), nothing.astype(np.uint32), _packed(nothing))

    @classmethod
    def of(cls, texts: Sequence[npt.NDArray[np.int64]], first_row: int) -> Postings:
        """Of texts, each given as its terms in any order, in rows from `first_row` on."""
        if not sum(map(len, texts)):
            return cls.empty()
        rows = np.repeat(np.arange(len(texts)), [len(terms) for terms in texts]) + first_row
        places, counts = np.unique((np.concatenate(texts) << _ROW_BITS) + rows, return_counts=True)
        terms, starts = np.unique(places >> _ROW_BITS, return_index=True)
        starts = np.append(starts, len(places))
        return cls(terms, starts, (places & _ROWS).astype(np.uint32), _packed(counts))

    def __len__(self) -> int:
        return len(self.rows)

    def of_term(self, term: int) -> tuple[Places, Counts]:
        """Rows that have a term, ascending, and how often."""
        place = int(np.searchsorted(self.terms, term))
        if place == len(self.terms) or self.terms[place] != term:
            return np.empty(0, np.int64), np.empty(0, np.int32)
        held = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return self.rows[held].astype(np.int64), self.counts[held].astype(np.int32)

    def followed_by(self, other: Postings) -> Postings:
        """Of both's texts; all rows of the other's are above all of these."""
        if not len(self) or not len(other):
            return self if len(self) else other
        terms = np.union1d(self.terms, other.terms)
        sizes = np.zeros((len(terms), 2), np.int64)
        for column, one in enumerate((self, other)):
            sizes[np.searchsorted(terms, one.terms), column] = np.diff(one.starts)
        is_other = np.repeat(np.tile([False, True], len(terms)), sizes.ravel())
        rows = np.empty(len(is_other), np.uint32)
        counts = np.empty(len(is_other), np.result_type(self.counts, other.counts))
        rows[is_other], counts[is_other] = other.rows, other.counts
        np.logical_not(is_other, out=is_other)
        rows[is_other], counts[is_other] = self.rows, self.counts
        return Postings(terms, _starts(sizes.sum(axis=1)), rows, counts)

    def of_rows(self, kept: npt.NDArray[np.bool_]) -> Postings:
        """Of the rows that are `kept`, by row, numbered anew in the same order."""
        if kept.all() or not len(self):
            return self
        stays = kept[self.rows]
        sizes = np.add.reduceat(stays, self.starts[:-1], dtype=np.int64)
        numbers = (np.cumsum(kept) - 1).astype(np.uint32)
        rows = numbers[self.rows[stays]]
        return Postings(self.terms[sizes > 0], _starts(sizes[sizes > 0]), rows, self.counts[stays])


def appended(parts: Sequence[Postings], new: Postings) -> list[Postings]:
    """The parts and a new one, the last ones merged until each is twice as long as the next."""
    grown = [*parts, new] if len(new) else list(parts)
    while len(grown) > 1 and len(grown[-2]) < 2 * len(grown[-1]):
        last, before = grown.pop(), grown.pop()
        grown.append(before.followed_by(last))
    return grown


def _starts(sizes: Places) -> Places:
    return np.concatenate([[0], np.cumsum(sizes)])


def _packed(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16 | np.int32]:
    fits = not len(counts) or counts.max() <= _MOST_COUNT
    return counts.astype(np.uint16 if fits else np.int32)
