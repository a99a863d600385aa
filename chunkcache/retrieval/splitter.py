"""Text → pieces of at most so many tokens of the answering model, cut where the sense allows.

Where to cut prose is semantic-text-splitter's work (paragraphs, then lines, sentences, words,
graphemes, characters); Markdown is packed by its sections and blocks (`packing.py`). What a token
is, is the model's own tokenizer's: every piece is tokenised alone, because its token ids are what
is cached and what the prompt is made of.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer

from chunkcache.errors import ConfigError, InvalidRequest, UnsupportedModel
from chunkcache.retrieval.documents import valid_unicode
from chunkcache.retrieval.markdown import Outline, blocks_of, looks_like_markdown, sections_of
from chunkcache.retrieval.packing import Packer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

    from chunkcache.retrieval.packing import Run

_VERSION = "splitter/2"  # part of the fingerprint: change it when the same text is cut otherwise
_BLANK_LINES = re.compile(r"\s*\n")
_SENTENCE_START = re.compile(r"(?<=[.!?])\s+|\n\s*")
_WORD_START = re.compile(r"\s+")
_LEADING = re.compile(r"[^\S\x1c-\x1f]*")  # white space as Rust has it
_LONG_CHARS = 10_000
_PREFIX_CHARS = 6  # for each token of a chunk: more will hardly fit
_SEGMENT_CHARS = 100_000  # the splitter's cost grows with the square of an unbroken run of letters


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a text: `text == whole[start_char:end_char]`, and its token ids, taken alone."""

    text: str
    token_ids: tuple[int, ...]
    start_char: int
    end_char: int
    headings: tuple[str, ...] = ()  # of the sections it is in, outermost first
    opening: str = ""  # of the table or code block it continues; counted into the largest piece


class Splitter:
    """Splits texts for one tokenizer and one chunk size. Thread-safe.

    Args:
        tokenizer: the answering model's; only read.
        chunk_tokens: largest piece.
        overlap_tokens: at most so many tokens at the end of a piece are repeated at the beginning
            of the next one.

    Raises:
        ConfigError: a size is out of range.
        UnsupportedModel: the tokenizer is not one of the `tokenizers` library.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chunk_tokens: int, overlap_tokens: int = 0
    ) -> None:
        if chunk_tokens < 1:
            raise ConfigError(f"retrieval.chunk_tokens: got {chunk_tokens}, must be at least 1.")
        if not 0 <= overlap_tokens < chunk_tokens:
            raise ConfigError(
                f"retrieval.overlap_tokens: got {overlap_tokens}, must be from 0 to "
                f"chunk_tokens - 1 = {chunk_tokens - 1}. Hint: an eighth of chunk_tokens is plenty."
            )
        self.chunk_tokens = chunk_tokens
        self.overlap_tokens = overlap_tokens
        self._tokenizer = own_tokenizer(tokenizer)
        serialised = self._tokenizer.to_str()
        self._special = _special_ids(serialised)
        self.fingerprint = _fingerprint(serialised, chunk_tokens, overlap_tokens)
        # from here on, the text of a special token is text: a document cannot inject one
        self._tokenizer.encode_special_tokens = True
        self._plain = TextSplitter.from_callback(self._size, chunk_tokens, overlap_tokens)

    def split(self, text: str, *, markdown: bool | None = False) -> list[Piece]:
        """The pieces of a text, in order. White space around pieces is left out.

        With `markdown` None, whether it is Markdown is seen from the text.

        Without overlap, pieces do not intersect, and all that is not white space is in one of them,
        except characters for which the tokenizer has no token at all and, in Markdown, headings
        that fit no piece: those are among the `headings` of the pieces below them. Cost: the text
        is tokenised about ten times, in Markdown four; 2 s per million characters.

        Raises:
            InvalidRequest: the text is not valid Unicode, a single character takes more than
                `chunk_tokens` tokens, or a special token cannot be kept out (see `encode`).
        """
        valid_unicode("text", text)
        if looks_like_markdown(text) if markdown is None else markdown:
            return self._split_markdown(text)
        if (whole := self._whole(text)) is not None:
            return [whole] if whole.token_ids else []
        pieces = [self._piece(text, start, end) for start, end in _cut(self._plain, text)]
        return [piece for piece in pieces if piece.token_ids]

    def _whole(self, text: str) -> Piece | None:
        """A text that fits one piece, tokenised once instead of four times; None: it may not."""
        if len(text) > _PREFIX_CHARS * self.chunk_tokens:
            return None
        leading = _LEADING.match(text)
        start, end = _trimmed(text, leading.end() if leading else 0, len(text))
        token_ids = self.encode(text[start:end])
        fits = len(token_ids) <= self.chunk_tokens
        return Piece(text[start:end], token_ids, start, end) if fits else None

    def _split_markdown(self, text: str) -> list[Piece]:
        blocks = blocks_of(text)
        outline = Outline(blocks)
        limit = self.chunk_tokens - self.overlap_tokens

        def prose(start: int, end: int, limit: int) -> list[tuple[int, int]]:
            splitter = TextSplitter.from_callback(self._size, limit)
            return [(start + a, start + b) for a, b in _cut(splitter, text[start:end])]

        pieces = []
        begin = 0
        for run in Packer(text, self._size, prose, limit).pack(sections_of(blocks)):
            start = self._overlapping(text, outline.prose_before(run.start), begin, run)
            spans = [(start, run.end)]
            if self._size(text[start : run.end]) > self.chunk_tokens:  # a sum of sizes was wrong
                spans = prose(run.start, run.end, limit)
            for span in spans:
                piece = self._piece(text, *span)
                if piece.token_ids:
                    headings = outline.above(piece.start_char)
                    pieces.append(replace(piece, headings=headings, opening=run.opening))
            begin = run.start
        return pieces

    def _overlapping(self, text: str, prose_start: int, begin: int, run: Run) -> int:
        """Where a run begins with sentences, or else words, of the prose before it repeated."""
        if not self.overlap_tokens or run.opening:
            return run.start
        first = max(prose_start, begin + 1, run.start - 12 * self.overlap_tokens)
        before = text[first : run.start]
        for boundary in (_SENTENCE_START, _WORD_START):
            places = [first + found.end() for found in boundary.finditer(before)]
            fits = bisect_left(
                places, True, key=lambda p: self._size(text[p : run.start]) <= self.overlap_tokens
            )
            if fits < len(places) and text[places[fits] : run.start].strip():
                return places[fits]
        return run.start

    def _piece(self, text: str, start: int, end: int) -> Piece:
        """Characters of a text without the blank lines around them."""
        start, end = _trimmed(text, start, end)
        found = text[start:end]
        token_ids = self.encode(found)
        if len(token_ids) > self.chunk_tokens:
            raise InvalidRequest.of(
                "text", found, f"cut into pieces of {self.chunk_tokens} tokens",
                "raise retrieval.chunk_tokens",
            )  # fmt: skip
        return Piece(found, token_ids, start, end)

    def count(self, text: str) -> int:
        """Tokens of a text as it is, uncut. Cost: some 2 s per million characters."""
        if len(text) > _LONG_CHARS:
            # a single text is encoded without letting go of the interpreter, a batch is not
            (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
            return len(encoded)
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text taken alone: no BOS, no special tokens.

        Raises:
            InvalidRequest: the tokenizer makes a special token of the text all the same. That is
                possible when special tokens are words of its vocabulary, as in some Unigram models.
        """
        token_ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        special = self._special.intersection(token_ids)
        if special:
            token = self._tokenizer.id_to_token(min(special))
            raise InvalidRequest.of(
                "text", token, "without the model's special tokens", "remove that text"
            )
        return tuple(token_ids)

    def _size(self, text: str) -> int:
        """Tokens of a text; of one that is far too long, those of a part that is too long already.

        The splitter asks about whole paragraphs and documents, again and again, only to learn that
        they do not fit.
        """
        prefix_chars = _PREFIX_CHARS * self.chunk_tokens
        while prefix_chars < len(text):
            tokens = self.count(text[:prefix_chars])
            if tokens > self.chunk_tokens + self.chunk_tokens // 4:
                return tokens
            prefix_chars *= 2
        return self.count(text)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A run of a text without the blank lines around it; empty if it is all white."""
    end = start + len(text[start:end].rstrip())
    blank = _BLANK_LINES.match(text, start, end)
    return (blank.end() if blank else start), end


def own_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's core that nobody else configures: no truncation, no padding.

    Raises:
        UnsupportedModel: the tokenizer is not one of the `tokenizers` library.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(core, Tokenizer):
        raise UnsupportedModel(
            f"tokenizer: {type(tokenizer).__name__} has no core of the tokenizers library. "
            "Hint: use a model that comes with a tokenizer.json."
        )
    copy = Tokenizer.from_str(core.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _special_ids(serialised: str) -> frozenset[int]:
    """Ids of special tokens, without the one for unknown text, which any text may hold."""
    description = json.loads(serialised)
    unknown = description["model"].get("unk_token")
    unknown_id = description["model"].get("unk_id")
    return frozenset(
        token["id"]
        for token in description["added_tokens"]
        if token["special"] and token["content"] != unknown and token["id"] != unknown_id
    )


def _fingerprint(serialised: str, chunk_tokens: int, overlap_tokens: int) -> str:
    digest = hashlib.blake2b(serialised.encode(), digest_size=16).hexdigest()
    return f"{_VERSION} {chunk_tokens} {overlap_tokens} {digest}"


def _cut(splitter: TextSplitter, text: str) -> Iterator[tuple[int, int]]:
    """Where prose is cut: `[start, end)` of each piece."""
    for segment_start, segment in _segments(text):
        for start, piece in splitter.chunk_indices(segment):
            yield segment_start + start, segment_start + start + len(piece)


def _segments(text: str) -> Iterator[tuple[int, str]]:
    """The text in parts of bounded length, cut at a blank line, a line end or a space if it can be.

    Most texts are one part. Pieces never span two, and do not overlap across the cut.
    """
    start = 0
    while len(text) - start > _SEGMENT_CHARS:
        limit = start + _SEGMENT_CHARS
        cuts = (text.rfind(mark, start + 1, limit) for mark in ("\n\n", "\n", " "))
        cut = next((cut for cut in cuts if cut > 0), limit)
        yield start, text[start:cut]
        start = cut
    yield start, text[start:]
