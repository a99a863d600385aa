"""The shortest way to the end of a form, for an answer whose tokens are nearly over.

A grammar says what may come next, not how far the end is. For JSON a walk that closes what is open
and leaves out what may be left out finds an end in a few steps; it need not be the shortest there
is, only one that fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import llguidance

_BRACKETS = ["".join(p) for size in (3, 2, 1) for p in product("}]", repeat=size)]
_IN_TEXT = ['"' + brackets for brackets in _BRACKETS] + ['"']
_SMALL = [",", '""', "null", "0", "true", "[]", "{}", "[", "{", '"', *"123456789"]
_OUTSIDE = [*_BRACKETS, *_SMALL]
_STEPS = 64  # of one walk; each may cost what a grammar may cost at a token


@dataclass(frozen=True, slots=True)
class Place:
    """Where in JSON the next byte stands: inside of a text or not, and there behind a backslash."""

    in_text: bool = False
    escaped: bool = False

    def after(self, written: bytes) -> Place:
        """Where it stands once these bytes are written."""
        in_text, escaped = self.in_text, self.escaped
        for byte in written:
            if escaped:
                escaped = False
            elif byte == ord('"'):
                in_text = not in_text
            else:
                escaped = in_text and byte == ord("\\")
        return Place(in_text, escaped)


class Closing:
    """Finds ends of forms in one vocabulary. Immutable."""

    def __init__(self, trie: llguidance.LLTokenizer) -> None:
        self._trie = trie
        self._in_text = self._tokens(_IN_TEXT)
        self._outside = self._tokens(_OUTSIDE)

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for."""
        return self._trie.decode_bytes([token])

    @property
    def end_token(self) -> int:
        """What ends an answer whose form may end."""
        return self._trie.eos_token

    def way(self, matcher: llguidance.LLMatcher, place: Place, at_most: int) -> list[int] | None:
        """Tokens after which the form may end, `at_most` of them; None: none were found.

        The matcher, which stands at `place`, goes that way.
        """
        way = list[int]()
        for _ in range(_STEPS):
            if matcher.is_accepting() or matcher.is_stopped():
                return None if matcher.is_error() else way
            tokens = self._next(matcher, place)
            way += tokens
            if len(way) > at_most or not tokens or not matcher.consume_tokens(tokens):
                return None
            place = place.after(self._trie.decode_bytes(tokens))
        return None

    def _next(self, matcher: llguidance.LLMatcher, place: Place) -> list[int]:
        if forced := matcher.compute_ff_bytes():  # what a required field is called, say
            return self._trie.tokenize_bytes(forced)
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")
        for token in self._in_text if place.in_text else self._outside:
            if allowed[token]:
                return [token]
        return [int(token) for token in np.flatnonzero(allowed)[:1]]

    def _tokens(self, texts: Iterable[str]) -> list[int]:
        """Those of the texts that are one token each."""
        split = [self._trie.tokenize_bytes(text.encode()) for text in texts]
        return [tokens[0] for tokens in split if len(tokens) == 1]
