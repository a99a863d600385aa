"""Texts that are given as documents, without a file around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.documents import DocumentKind, valid_unicode
from chunkcache.retrieval.loaders import Extracted
from chunkcache.retrieval.markdown import looks_like_markdown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chunkcache.protocol import GivenDocument


@dataclass(frozen=True, slots=True)
class NumberedText:
    """A given text with its place among those given, and that of another one that has its id."""

    index: int
    given: GivenDocument
    other: int | None


def numbered(documents: Sequence[GivenDocument]) -> Iterator[NumberedText]:
    """Each of the texts with its place. The same text again is no other one."""
    first: dict[str, int] = {}
    for index, given in enumerate(documents):
        place = first.setdefault(given.id, index) if given.id else index
        yield NumberedText(index, given, None if documents[place] == given else place)


def extracted(given: GivenDocument) -> Extracted:
    """The text as it is, Markdown if it looks so. Raises `InvalidRequest`."""
    title = " ".join(valid_unicode("title", given.title).split())
    valid_unicode("url", given.url)
    if not given.text.strip():
        raise InvalidRequest("there is no text in it", param="text")
    is_markdown = looks_like_markdown(given.text)
    kind = DocumentKind.MARKDOWN if is_markdown else DocumentKind.PLAIN
    return Extracted(given.text, kind, title, given.url)
