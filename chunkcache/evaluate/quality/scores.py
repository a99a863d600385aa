"""Scores of one answer text against others. Pure functions of strings."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# What models say when they do not find the answer. Matched against the start of the answer only:
# further in, such words are usually part of one.
_REFUSALS = re.compile(
    r"(i('m| am) sorry|sorry|i (do not|don't|cannot|can't)|there is no (information|mention)|"
    r"(it is |it's )?(not|isn't|is not) (mentioned|specified|stated|given|provided|known|clear)|"
    r"the (document|text|passage|context)s? (do|does)(n't| not)|no answer|unknown|none\b|n/a)",
    re.IGNORECASE,
)


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation and articles, as SQuAD's evaluation normalises
    (Rajpurkar et al. 2016, arXiv 1606.05250).

    >>> words_of("The  Eiffel-Tower!")
    ['eiffeltower']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(answer: str, gold: Sequence[str]) -> float:
    """Largest F1 of the answer's words against any gold answer's; 1 if both are empty."""
    return max((_f1(words_of(answer), words_of(g)) for g in gold), default=0.0)


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1 if the normalised answer is a gold answer, else 0."""
    return float(any(words_of(answer) == words_of(g) for g in gold))


def _f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2.0 * common / (len(answer) + len(gold))


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004); 1 if both are empty.

    Cost: O(words · words).
    """
    a, b = words_of(answer), words_of(reference)
    if not a or not b:
        return float(a == b)
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return 2.0 * row[-1] / (len(a) + len(b))


def is_unanswered(answer: str) -> bool:
    """Whether the model says that it does not know, or says nothing.

    The failure that bad reuse produces most: not gibberish, but "not mentioned".
    """
    return not answer.strip() or _REFUSALS.match(answer.strip()) is not None
