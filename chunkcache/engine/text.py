"""Token ids → text deltas: whole characters only, stop strings never shown.

An answer ends at the stop string that is complete first, of several at once the longest: what is
shown does not depend on how the text was cut into tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"  # what the decoder writes for an unfinished UTF-8 sequence


class TextStream:
    """Turns one request's tokens into text. `text` is all that has been or may be shown."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> None:
        self._tokenizer: Any = tokenizer
        self._stop = tuple(s for s in stop if s)
        self._ids: list[int] = []
        self._settled = 0  # ids whose text is in `_text`
        self._context = 0  # ids before that, decoded again so that joins come out right
        self._text = ""
        self._shown = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """The text shown so far."""
        return self._text[: self._shown]

    def push(self, token_id: int) -> str:
        """Add a token; return the text that became certain, possibly nothing."""
        self._ids.append(token_id)
        new = self._unsettled()
        # ids that add no text (special tokens) make no context: the next join needs a word
        if new and not new.endswith(_BROKEN):
            self._text += new
            self._context, self._settled = self._settled, len(self._ids)
        return self._show(final=False)

    def finish(self) -> str:
        """The text held back, at the end of the answer."""
        if not self.stopped:
            self._text += self._unsettled()
            self._settled = self._context = len(self._ids)
        return self._show(final=True)

    def _unsettled(self) -> str:
        before = self._decode(self._ids[self._context : self._settled])
        after = self._decode(self._ids[self._context :])
        if after.startswith(before):
            return after[len(before) :]
        # a byte that begins no character can break, in the decoder's view, those shown before it
        return self._decode(self._ids[self._settled :])

    def _show(self, *, final: bool) -> str:
        if self.stopped:
            return ""
        hits = [
            (at + len(s), at)
            for s in self._stop
            if (at := self._text.find(s, self._shown)) >= 0  # what may begin one is held back
        ]
        if hits:
            self.stopped = True
            _, end = min(hits)
        else:
            end = len(self._text) if final else len(self._text) - self._held_back()
        delta = self._text[self._shown : end]
        self._shown = end
        self._text = self._text[:end] if self.stopped else self._text
        return delta

    def _held_back(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        # cleaning up would change text that has been shown ("do n" + "'t")
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
