"""`LexicalIndex`: BM25 over words and identifiers, and the rule that finds the words.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), in
the variant of Lucene, whose scores are never negative; k1 = 1.2, b = 0.75. Twin: bm25s, which would
weigh all texts anew whenever one is added.
"""

from __future__ import annotations

import math
import re
import unicodedata
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from chunkcache_indexes.base import best_places, check_k, checked_ids, checked_new_ids
from chunkcache_indexes.index_file import IndexFileError, read_index_file, write_index_file
from chunkcache_indexes.postings import Postings, appended

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from chunkcache_indexes.base import Ids, Vectors

WORDS_VERSION = "words/2"  # of `words_of`; an index made by another rule is not loaded
_FORM = "postings/2"  # of the file
_K1, _B = 1.2, 0.75
_DEAD_TEXTS = 256  # that are not worth a purge; or a quarter of those that are left
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_NAME = r"_{0,3}[^\W_]+(?:_+[^\W_]+)*_*(?:\+\+|#(?!\w))?"
_COMPOUND = re.compile(rf"{_NAME}(?:(?:::|->|[./:-]){_NAME})*")
_JOINT = re.compile(r"::|->|[./:-]")
_ESCAPE = re.compile(r"\\(?=[_*])")  # Markdown's, within a name
_WORD = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_CJK_RUNS = re.compile(rf"[{_CJK}]+|[^{_CJK}]+")
_CJK_START = re.compile(f"[{_CJK}]")
_PATH_LIMIT_NAMES = 8  # of a longer compound, as addresses are, only the whole and the names count


def words_of(text: str) -> list[str]:
    """The terms of a text, in order, with repetitions.

    The rule: the text is normalised (NFKC), Markdown's escapes of `_` and `*` are undone. A *name*
    is letters, digits and underscores, and may end in `++` or `#`. A *compound* is names joined by
    `.` `-` `/` `:` `::` or `->`, so `os.path.join` is one. A compound counts as a whole, by what it
    begins and ends with (`std::vector` in `std::vector::iterator`), by each name, and by each run
    of letters and digits. A run with capitals inside (`HnswIndex`) counts also by its humps.
    Chinese, Japanese and Korean runs count as overlapping pairs of characters. Case is folded.
    Nothing is stemmed and no word is left out: BM25 weighs common words down by itself.

    >>> words_of("Use os.path.join!")
    ['use', 'os.path.join', 'os.path', 'path.join', 'os', 'path', 'join']
    >>> words_of("max_pool_size")
    ['max_pool_size', 'max', 'pool', 'size']
    """
    return [word for compound in _compounds(text) for word in _words_of_compound(compound)]


def _compounds(text: str) -> list[str]:
    found: list[str] = _COMPOUND.findall(_ESCAPE.sub("", unicodedata.normalize("NFKC", text)))
    return found


def _words_of_compound(compound: str) -> list[str]:
    if compound.isascii() and compound.isalnum() and compound[1:].islower():
        return [compound.lower()]  # as most are; the rest of the rule has nothing to add
    return [word.casefold() for word in _raw_words(compound)]


def _raw_words(compound: str) -> Iterator[str]:
    yield from _sub_paths(compound)
    for name in _JOINT.split(compound):
        parts = _WORD.findall(name)
        if parts != [name]:
            yield name
        for part in parts:
            for run in _CJK_RUNS.findall(part):
                yield from _run_words(run)


def _sub_paths(compound: str) -> Iterator[str]:
    """A compound of two names or more, and what it begins and ends with, down to two names."""
    joints = list(_JOINT.finditer(compound))
    if not joints:
        return
    yield compound
    if len(joints) <= _PATH_LIMIT_NAMES:
        yield from (compound[: joint.start()] for joint in joints[1:])
        yield from (compound[joint.end() :] for joint in joints[:-1])


def _run_words(run: str) -> Iterator[str]:
    if _CJK_START.match(run):
        yield from (run[i : i + 2] for i in range(max(1, len(run) - 1)))
        return
    yield run
    humps = _HUMP.split(run)
    if len(humps) > 1:
        yield from humps


class _TermsOf(dict[str, tuple[int, ...]]):
    """The terms of compounds, each looked at once: most come many times.

    Words that have no number in `vocabulary` get one.
    """

    def __init__(self, vocabulary: dict[str, int]) -> None:
        super().__init__()
        self._vocabulary = vocabulary

    def __missing__(self, compound: str) -> tuple[int, ...]:
        number = self._vocabulary
        words = _words_of_compound(compound)
        terms = self[compound] = tuple([number.setdefault(w, len(number)) for w in words])
        return terms


class LexicalHits(NamedTuple):
    """Texts that share a term with the query, best first."""

    ids: Ids  # [m], m <= k
    scores: Vectors  # [m], all above zero


class WordCounts(NamedTuple):
    """What several indexes must know of each other to score as one would: counts, no scores."""

    counts: npt.NDArray[np.int64]  # [m, w]: of each of the query's words in each text
    lengths: npt.NDArray[np.int32]  # [m]: terms of each text
    texts_with: npt.NDArray[np.int64]  # [w]: texts of the index that have the word
    num_texts: int  # of the whole index
    num_terms: int


class LexicalIndex:
    """BM25 over texts under int64 ids. Searches may run side by side; a change runs alone.

    Memory: 6 bytes per distinct term of a text, 13 per text, some 150 per word. Rarities and
    lengths are weighed when a search asks, so adding a text costs no more with many texts than with
    few, apart from merging now and then. Scores do not depend on the order of additions.
    """

    kind = "lexical"

    def __init__(self) -> None:
        self._vocabulary: dict[str, int] = {}
        self._ids: Ids = np.empty(0, np.int64)  # by row
        self._lengths: npt.NDArray[np.int32] = np.empty(0, np.int32)  # in terms, by row
        self._alive: npt.NDArray[np.bool_] = np.empty(0, np.bool_)  # by row: not removed
        self._parts: list[Postings] = []

    @property
    def ids(self) -> Ids:
        """The ids held, ascending; a copy."""
        return np.sort(self._ids[self._alive])

    def __len__(self) -> int:
        return int(self._alive.sum())

    def add(self, ids: npt.ArrayLike, texts: Sequence[str]) -> None:
        """Add texts under ids. Cost: finding the words, about 1 µs each in some, less in many.

        Raises:
            ValueError: an id is negative, repeated or held already, or the lengths differ.
        """
        new_ids = checked_new_ids(ids, self._ids[self._alive])
        if len(new_ids) != len(texts):
            raise ValueError(f"texts: got {len(texts)}, must be as many as ids: {len(new_ids)}")
        terms_of = _TermsOf(self._vocabulary)
        terms = [
            np.fromiter(chain.from_iterable(map(terms_of.__getitem__, _compounds(text))), np.int64)
            for text in texts
        ]
        self._parts = appended(self._parts, Postings.of(terms, first_row=len(self._ids)))
        self._ids = np.concatenate([self._ids, new_ids])
        self._lengths = np.concatenate([self._lengths, np.array(list(map(len, terms)), np.int32)])
        self._alive = np.concatenate([self._alive, np.ones(len(terms), np.bool_)])

    def remove(self, ids: npt.ArrayLike) -> int:
        """Remove ids; unknown ones are ignored. How many were there.

        Cost: a mark each, and at times a pass over all that is held.
        """
        hit = self._alive & np.isin(self._ids, checked_ids(ids))
        self._alive = self._alive & ~hit
        if len(self._ids) - len(self) > max(_DEAD_TEXTS, len(self) // 4):
            self._purge()
        return int(hit.sum())

    def search(self, query: str, k: int) -> LexicalHits:
        """At most `k` texts that share a term with the query. A repeated term counts once.

        Cost: grows with the texts that have one of the terms; some ms for 100,000 of them.

        Raises:
            ValueError: `k` is less than 1.
        """
        check_k(k)
        words = sorted(set(words_of(query)))  # in this order whatever their numbers: the same sums
        terms = [self._vocabulary[word] for word in words if word in self._vocabulary]
        if not terms or not self._parts:
            return LexicalHits(np.empty(0, np.int64), np.empty(0, np.float32))
        scores = np.zeros(len(self._ids), np.float32)
        count = len(self)
        mean = float(self._lengths[self._alive].mean()) if count else 0.0
        for term in terms:
            rows, frequencies = self._holding(term)
            if len(rows):
                rarity = math.log(1.0 + (count - len(rows) + 0.5) / (len(rows) + 0.5))
                longer = self._lengths[rows].astype(np.float32) * np.float32(_K1 * _B / mean)
                longer += np.float32(_K1 * (1.0 - _B))
                scores[rows] += np.float32(rarity) * frequencies / (frequencies + longer)
        matching = np.flatnonzero(scores > 0)
        best = matching[best_places(self._ids[matching], scores[matching], k)]
        return LexicalHits(self._ids[best], scores[best])

    def count(self, query: str, ids: Sequence[int]) -> WordCounts:
        """The query's distinct words, in their order of spelling, in the texts under `ids`.

        Raises:
            KeyError: an id is not held.
        """
        words = sorted(set(words_of(query)))
        rows = np.flatnonzero(self._alive & np.isin(self._ids, np.array(ids, np.int64)))
        row_of = dict(zip(self._ids[rows].tolist(), rows.tolist(), strict=True))
        rows = np.array([row_of[text_id] for text_id in ids], np.int64)
        place_of = np.full(len(self._ids), -1)
        place_of[rows] = np.arange(len(ids))
        counts = np.zeros((len(ids), len(words)), np.int64)
        texts_with = np.zeros(len(words), np.int64)
        for column, word in enumerate(words):
            if word in self._vocabulary and self._parts:
                holding, frequencies = self._holding(self._vocabulary[word])
                texts_with[column] = len(holding)
                places = place_of[holding]
                counts[places[places >= 0], column] = frequencies[places >= 0]
        num_terms = int(self._lengths[self._alive].sum())
        return WordCounts(counts, self._lengths[rows], texts_with, len(self), num_terms)

    def _holding(self, term: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Rows of the texts that have a term, and how often each has it."""
        found = [part.of_term(term) for part in self._parts]
        rows = np.concatenate([rows for rows, _ in found])
        frequencies = np.concatenate([times for _, times in found])
        if len(self) < len(self._ids):
            living = self._alive[rows]
            rows, frequencies = rows[living], frequencies[living]
        return rows, frequencies

    def save(self, path: Path) -> None:
        """Write one file, atomically; words that no text has any more are left out.

        Raises:
            OSError: the file cannot be written; the old one is untouched.
        """
        rows = np.flatnonzero(self._alive)
        whole = Postings.empty()
        for part in reversed(self._parts):
            whole = part.of_rows(self._alive).followed_by(whole)
        words = list(self._vocabulary)
        kept_words = "\n".join(words[term] for term in whole.terms.tolist()).encode()
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": self._ids[rows],
            "lengths": self._lengths[rows],
            "starts": whole.starts,
            "rows": whole.rows,
            "counts": whole.counts,
            "words": np.frombuffer(kept_words, np.uint8),
        }
        write_index_file(path, self.kind, {"rule": f"{WORDS_VERSION} {_FORM}"}, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is none.
            IndexFileError: it is truncated, damaged, of another version or of another kind.
        """
        meta, arrays = read_index_file(path, cls.kind)
        if meta["rule"] != f"{WORDS_VERSION} {_FORM}":
            raise IndexFileError(
                f"{path}: has words by {meta['rule']}, expected {WORDS_VERSION} {_FORM}"
            )
        index = cls()
        words = arrays["words"].tobytes().decode()
        index._vocabulary = {word: n for n, word in enumerate(words.split("\n") if words else [])}
        index._ids, index._lengths = arrays["ids"], arrays["lengths"]
        index._alive = np.ones(len(index._ids), np.bool_)
        terms = np.arange(len(index._vocabulary))
        index._parts = [Postings(terms, arrays["starts"], arrays["rows"], arrays["counts"])]
        return index

    def _purge(self) -> None:
        """Forget the rows of removed texts."""
        parts = [part.of_rows(self._alive) for part in self._parts]
        self._parts = [part for part in parts if len(part)]
        self._ids, self._lengths = self._ids[self._alive], self._lengths[self._alive]
        self._alive = np.ones(len(self._ids), np.bool_)


def joint_scores(parts: Sequence[WordCounts]) -> list[Vectors]:
    """BM25 of each part's texts, as one index that holds all the parts' texts would score them."""
    num_texts = sum(part.num_texts for part in parts)
    num_terms = sum(part.num_terms for part in parts)
    if not num_terms:
        return [np.zeros(len(part.lengths), np.float32) for part in parts]
    texts_with = np.sum([part.texts_with for part in parts], axis=0)
    rarity = np.log1p((num_texts - texts_with + 0.5) / (texts_with + 0.5))
    scores = []
    for part in parts:
        damping = _K1 * (1 - _B + _B * part.lengths * num_texts / num_terms)
        saturated = part.counts / (part.counts + damping[:, None])
        scores.append((saturated @ rarity).astype(np.float32))
    return scores
