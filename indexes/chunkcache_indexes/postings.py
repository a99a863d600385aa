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


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """Terms of some texts, never changed. A text is a row, a number below 2³².

    Memory: 12 bytes for each distinct term of a text.
    """

    places: Places  # term · 2³² + row, ascending, each once
    counts: Counts  # how often the row has the term

    @classmethod
    def empty(cls) -> Postings:
        """Of no texts."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int32))

    @classmethod
    def of(cls, texts: Sequence[npt.NDArray[np.int64]], first_row: int) -> Postings:
        """Of texts, each given as its terms in any order, in rows from `first_row` on."""
        if not texts:
            return cls.empty()
        rows = np.repeat(np.arange(len(texts)), [len(terms) for terms in texts]) + first_row
        places, counts = np.unique((np.concatenate(texts) << _ROW_BITS) + rows, return_counts=True)
        return cls(places, counts.astype(np.int32))

    def __len__(self) -> int:
        return len(self.places)

    def of_term(self, term: int) -> tuple[Places, Counts]:
        """Rows that have a term, ascending, and how often."""
        first, last = np.searchsorted(self.places, [term << _ROW_BITS, (term + 1) << _ROW_BITS])
        return self.places[first:last] & _ROWS, self.counts[first:last]

    def merged(self, other: Postings) -> Postings:
        """Of both's texts, which must not share a row."""
        at = np.searchsorted(self.places, other.places) + np.arange(len(other))
        is_other = np.zeros(len(self) + len(other), np.bool_)
        is_other[at] = True
        places = np.empty(len(is_other), np.int64)
        counts = np.empty(len(is_other), np.int32)
        places[is_other], places[~is_other] = other.places, self.places
        counts[is_other], counts[~is_other] = other.counts, self.counts
        return Postings(places, counts)

    def of_rows(self, kept: npt.NDArray[np.bool_]) -> Postings:
        """Of the rows that are `kept`, by row, numbered anew in the same order."""
        if kept.all():
            return self
        rows = self.places & _ROWS
        stays = kept[rows]
        numbers = np.cumsum(kept) - 1
        places = (self.places[stays] & ~_ROWS) | numbers[rows[stays]]
        return Postings(places, self.counts[stays])

    def renumbered(self) -> tuple[npt.NDArray[np.int64], Postings]:
        """The terms there are, ascending, and the same with their places among those as terms."""
        terms = self.places >> _ROW_BITS
        is_first = np.diff(terms, prepend=-1) > 0
        places = ((np.cumsum(is_first) - 1) << _ROW_BITS) | (self.places & _ROWS)
        return terms[is_first], Postings(places, self.counts)


def appended(parts: Sequence[Postings], new: Postings) -> list[Postings]:
    """The parts and a new one, the last ones merged until each is twice as long as the next."""
    grown = [*parts, new] if len(new) else list(parts)
    while len(grown) > 1 and len(grown[-2]) < 2 * len(grown[-1]):
        last, before = grown.pop(), grown.pop()
        grown.append(before.merged(last))
    return grown
