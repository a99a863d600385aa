"""`LexicalIndex`: BM25 over words and identifiers (bm25s), and the rule that finds the words.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), in
the variant of Lucene, whose scores are never negative; k1 = 1.2, b = 0.75.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import bm25s
import numpy as np

from chunkcache_indexes.base import check_k, checked_ids, checked_new_ids
from chunkcache_indexes.index_file import IndexFileError, read_index_file, write_index_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from chunkcache_indexes.base import Ids, Vectors

WORDS_VERSION = "words/2"  # of `words_of`; an index made by another rule is not loaded
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
    text = _ESCAPE.sub("", unicodedata.normalize("NFKC", text))
    return [word.casefold() for word in _raw_words(text)]


def _raw_words(text: str) -> Iterator[str]:
    for compound in _COMPOUND.findall(text):
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


class LexicalHits(NamedTuple):
    """Texts that share a term with the query, best first."""

    ids: Ids  # [m], m <= k
    scores: Vectors  # [m], all above zero


class LexicalIndex:
    """BM25 over texts under int64 ids. Searches may run side by side; a change runs alone.

    Memory: 4 bytes per term of a text, and 8 per distinct term of a text for the score matrix.
    Every change makes the inverse document frequencies of all texts stale, so the matrix is built
    again on the next search: about 0.3 s for 10,000 texts of 180 terms on one core.
    """

    kind = "lexical"

    def __init__(self) -> None:
        self._vocabulary: dict[str, int] = {}
        self._texts: dict[int, npt.NDArray[np.int32]] = {}  # id to terms, in order of addition
        self._scorer: bm25s.BM25 | None = None
        self._order: Ids = np.empty(0, np.int64)  # ids by row of the score matrix

    @property
    def ids(self) -> Ids:
        """The ids held, ascending; a copy."""
        return np.sort(np.fromiter(self._texts, np.int64, len(self._texts)))

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, ids: npt.ArrayLike, texts: Sequence[str]) -> None:
        """Add texts under ids. Cost: finding the words, about 1 µs each.

        Raises:
            ValueError: an id is negative, repeated or held already, or the lengths differ.
        """
        new_ids = checked_new_ids(ids, self.ids)
        if len(new_ids) != len(texts):
            raise ValueError(f"texts: got {len(texts)}, must be as many as ids: {len(new_ids)}")
        number = self._vocabulary
        for text_id, text in zip(new_ids.tolist(), texts, strict=True):
            terms = [number.setdefault(word, len(number)) for word in words_of(text)]
            self._texts[text_id] = np.array(terms, np.int32)
        self._scorer = None

    def remove(self, ids: npt.ArrayLike) -> int:
        """Remove ids; unknown ones are ignored. How many were there."""
        removed = 0
        for text_id in checked_ids(ids).tolist():
            removed += self._texts.pop(text_id, None) is not None
        if removed:
            self._scorer = None
        return removed

    def search(self, query: str, k: int) -> LexicalHits:
        """At most `k` texts that share a term with the query. A repeated term counts once.

        Raises:
            ValueError: `k` is less than 1.
        """
        check_k(k)
        terms = {self._vocabulary[w] for w in words_of(query) if w in self._vocabulary}
        if not terms or not any(map(len, self._texts.values())):
            return LexicalHits(np.empty(0, np.int64), np.empty(0, np.float32))
        scorer, order = self._built()
        scores: Vectors = scorer.get_scores_from_ids(sorted(terms))
        matching = np.flatnonzero(scores > 0)
        best = matching[np.lexsort((order[matching], -scores[matching]))[:k]]
        return LexicalHits(order[best], scores[best])

    def save(self, path: Path) -> None:
        """Write one file, atomically; words that no text has any more are left out.

        Raises:
            OSError: the file cannot be written; the old one is untouched.
        """
        ids = np.fromiter(self._texts, np.int64, len(self._texts))
        terms = np.concatenate([np.empty(0, np.int32), *self._texts.values()])
        used, terms = np.unique(terms, return_inverse=True)
        words = list(self._vocabulary)
        kept = "\n".join(words[term] for term in used).encode()
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": ids,
            "lengths": np.array([len(text) for text in self._texts.values()], np.int64),
            "terms": terms.astype(np.int32),
            "words": np.frombuffer(kept, np.uint8),
        }
        write_index_file(path, self.kind, {"rule": WORDS_VERSION}, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is none.
            IndexFileError: it is truncated, damaged, of another version or of another kind.
        """
        meta, arrays = read_index_file(path, cls.kind)
        if meta["rule"] != WORDS_VERSION:
            raise IndexFileError(f"{path}: has words by {meta['rule']}, expected {WORDS_VERSION}")
        index = cls()
        words = arrays["words"].tobytes().decode()
        index._vocabulary = {word: n for n, word in enumerate(words.split("\n") if words else [])}
        texts = np.split(arrays["terms"], np.cumsum(arrays["lengths"])[:-1])
        index._texts = dict(zip(arrays["ids"].tolist(), texts, strict=False))
        return index

    def _built(self) -> tuple[bm25s.BM25, Ids]:
        """The score matrix and its row order. Two threads may both build it; either one will do."""
        scorer, order = self._scorer, self._order
        if scorer is None:
            order = np.fromiter(self._texts, np.int64, len(self._texts))
            scorer = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
            corpus = [terms.tolist() for terms in self._texts.values()]
            scorer.index((corpus, self._vocabulary), create_empty_token=False, show_progress=False)
            self._order = order
            self._scorer = scorer
        return scorer, order
