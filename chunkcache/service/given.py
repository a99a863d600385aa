"""Documents in a request's body, split like any other; what was split lately is not split again.

Nothing says what kind of text they are: one that looks like Markdown is split as Markdown is.

Applications send the same passages with every question. Splitting takes longer than looking their
KV up: some 10 ms per 1,000 tokens.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from chunkcache.chunk import Chunk
from chunkcache.errors import PromptTooLong
from chunkcache.retrieval.chunking import headings_below

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from chunkcache.protocol import GivenDocument
    from chunkcache.retrieval.splitter import Piece, Splitter

_COUNTED_CHARS = 50_000
CAPACITY_CHARS = 2_000_000  # of all texts that are remembered, about 20 MB


def counts(splitter: Splitter, text: str) -> Iterator[int]:
    """Tokens of a text, part by part, so that one without end is given up."""
    for start in range(0, len(text), _COUNTED_CHARS):
        yield splitter.count(text[start : start + _COUNTED_CHARS])


def check_tokens(field: str, parts: Iterable[int], most_tokens: int) -> None:
    """Add up tokens, and stop at the first one too many.

    Raises:
        PromptTooLong: there are more than `most_tokens`.
    """
    tokens = 0
    for counted in parts:
        tokens += counted
        if tokens > most_tokens:
            raise PromptTooLong(
                f"{field}: got {tokens} tokens or more, must be at most {most_tokens} to be looked "
                "at. Hint: fewer or shorter ones, or a vector store of what is asked about.",
                param=field,
            )


class GivenDocuments:
    """Splits the documents of requests. Thread-safe.

    The least recently used texts are forgotten beyond `capacity_chars`. Texts are remembered for
    one tenant each: by its pace nobody may learn what another one sends.
    """

    def __init__(self, splitter: Splitter, capacity_chars: int = CAPACITY_CHARS) -> None:
        self._splitter = splitter
        self._capacity_chars = capacity_chars
        self._lock = threading.Lock()  # guards the two fields below
        self._pieces: OrderedDict[bytes, tuple[int, list[Piece]]] = OrderedDict()
        self._held_chars = 0

    def chunks(
        self, documents: Sequence[GivenDocument], tenant: str, *, most_tokens: int | None = None
    ) -> list[Chunk]:
        """The passages of all documents, in the order given; no two have one id.

        Raises:
            InvalidRequest: see `Splitter.split`.
            PromptTooLong: together they have more than `most_tokens`. That is found out before
                anything is split, which takes ten times as long as counting.
        """
        if most_tokens is not None:
            check_tokens("documents", self._counts(documents, tenant), most_tokens)
        return [
            Chunk(
                chunk_id=f"{name}#{piece.start_char}",
                token_ids=tuple(piece.token_ids),
                text=piece.text,
                document_id=document.id or str(index),
                title=document.title,
                url=document.url,
                start_char=piece.start_char,
                end_char=piece.end_char,
                headings=headings_below(document.title, piece.headings),
                opening=piece.opening,
            )
            for index, (document, name) in enumerate(zip(documents, _names(documents), strict=True))
            for piece in self._split(document.text, tenant)
        ]

    def _counts(self, documents: Sequence[GivenDocument], tenant: str) -> Iterator[int]:
        for document in documents:
            known = self._known(_key(document.text, tenant))
            if known is None:
                yield from counts(self._splitter, document.text)
            else:
                yield sum(len(piece.token_ids) for piece in known)

    def _known(self, key: bytes) -> list[Piece] | None:
        with self._lock:
            known = self._pieces.get(key)
            if known is None:
                return None
            self._pieces.move_to_end(key)
            return known[1]

    def _split(self, text: str, tenant: str) -> list[Piece]:
        key = _key(text, tenant)
        known = self._known(key)
        if known is not None:
            return known
        pieces = self._splitter.split(text, markdown=None)  # outside the lock: it takes its time
        with self._lock:
            if key not in self._pieces and len(text) <= self._capacity_chars:
                self._pieces[key] = (len(text), pieces)
                self._held_chars += len(text)
            while self._held_chars > self._capacity_chars:
                _, (size, _) = self._pieces.popitem(last=False)
                self._held_chars -= size
        return pieces


def _names(documents: Sequence[GivenDocument]) -> list[str]:
    """Ids of documents, or else their places, with a number where another one has it already.

    Passages of one document may come as documents of their own, under its id.
    """
    names: dict[str, None] = {}
    for index, document in enumerate(documents):
        name = plain = document.id or str(index)
        number = 1
        while name in names:
            number += 1
            name = f"{plain}.{number}"
        names[name] = None
    return list(names)


def _key(text: str, tenant: str) -> bytes:
    digest = hashlib.blake2b(f"{tenant}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16)
    return digest.digest()
