"""Hyphens at the ends of lines: which of them hyphenate a word, and which belong to it.

The page shows `reser-` and `vation` as it shows `well-` and `known`. What tells them apart is
whether the whole, or its parts, are words: in the rest of the document, or in English where the
document is in English. Elsewhere the whole is taken for the word, as most line ends hyphenate.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

MARK = "\x02"
"""PDFium's sign for a hyphen at the end of a line; the line's end goes with it."""

_WORD = r"[^\W_]+"
_BROKEN = re.compile(
    rf"(?P<compound>-?)(?P<before>{_WORD})(?:{MARK}\n?|\u2010\n)(?P<after>{_WORD})"
)
_PAGE_NUMBER = re.compile(
    rf"{MARK}\n?(?=\d+(?:\n\n|\Z))"
)  # a page's last line, below a broken word
_WORDS = re.compile(rf"{_WORD}(?:-{_WORD})*")
_ENGLISH_SHARE = 0.6  # of a document's words; names and terms are no words of a dictionary
_SAMPLE_WORDS = 2000


class Hyphens:
    """Resolves the marks in one document.

    Args:
        text: the whole of it, with the marks.
        english: whether a word in small letters is an English one; looked at when it is needed.
    """

    def __init__(self, text: str, english: Callable[[], Collection[str]]) -> None:
        self._text = text
        self._load_english = english
        whole_words = _BROKEN.sub(" ", text)
        self._words = {word.lower() for word in _WORDS.findall(whole_words)}

    def resolve(self) -> str:
        """The text, each mark a hyphen or nothing."""
        if MARK not in self._text and "\u2010\n" not in self._text:
            return self._text
        text = _PAGE_NUMBER.sub("-\n", self._text)
        return _BROKEN.sub(self._joined, text).replace(MARK, "-")

    def _joined(self, found: re.Match[str]) -> str:
        before, after = found["before"], found["after"]
        hyphen = "-" if found["compound"] or self._is_compound(before, after) else ""
        return f"{found['compound']}{before}{hyphen}{after}"

    def _is_compound(self, before: str, after: str) -> bool:
        if not (before.isalpha() and after.isalpha()):
            return True  # COVID-19
        if after[0].isupper() and not before.isupper():
            return True  # Anglo-American
        one, two = before.lower(), after.lower()
        if f"{one}-{two}" in self._words:
            return True
        if one + two in self._words:
            return False
        english = self._english
        return (
            one + two not in english
            and (one in english or one in self._words)
            and (two in english or two in self._words)
            and bool(english)
        )

    @cached_property
    def _english(self) -> Collection[str]:
        """English words; none where the document is not in English."""
        words = list(self._words)[:_SAMPLE_WORDS]
        english = self._load_english()
        known = sum(word in english for word in words)
        return english if known >= _ENGLISH_SHARE * len(words) else frozenset()


def english_words() -> Collection[str]:
    """A dictionary's words, in small letters."""
    from spellchecker import SpellChecker  # some 0.1 s, and only where a line ends in doubt

    words: Collection[str] = SpellChecker(language="en").word_frequency.dictionary
    return words
