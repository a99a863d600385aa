"""The nouns of retrieval: a document as extracted, its id, and what of a chunk is searched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePath
from typing import TYPE_CHECKING

from chunkcache.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from chunkcache.chunk import Chunk
    from chunkcache.retrieval.embedder import Embedder

Attributes = dict[str, str | float | bool]
PUBLIC_TENANT = "public"  # whose documents they are when nobody else is named
DEFAULT_COLLECTION = "default"  # every tenant has it
SEARCHED_TEXT_VERSION = "path-text/1"  # of `searched_text`


class DocumentKind(StrEnum):
    """How a document's text is split."""

    PLAIN = "plain"
    MARKDOWN = "markdown"
    CHUNKS = "chunks"  # it came in chunks, which are taken as they are


@dataclass(frozen=True, slots=True)
class Document:
    """A document as extracted from its bytes."""

    document_id: str
    title: str
    url: str
    sha256: str  # of the raw bytes, in hexadecimal
    size_bytes: int  # of the raw bytes
    kind: DocumentKind
    text: str  # chunks' offsets count its characters
    attributes: Mapping[str, str | float | bool] = field(default_factory=dict)
    reader: str = ""  # version of what made the text of the bytes
    name: str = ""  # of the file or the upload
    path: Path | None = None  # of a file, resolved
    problems: tuple[str, ...] = ()  # parts that were left out, with the reason


def printable(path: object) -> str:
    """A path or name as valid Unicode, bytes that are none of it escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def title_of_name(name: str) -> str:
    """The title of a document that has none of its own: its file's name, in one line."""
    return " ".join(printable(PurePath(name).name).split())


def valid_unicode(field: str, text: str) -> str:
    """The text itself. Raises `InvalidRequest` when it holds half a surrogate pair."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest.of(
                field, text[error.start : error.end], "valid Unicode", "drop half surrogate pairs"
            ) from error
    return text


def document_id_of(source: str, identity: str) -> str:
    """The id of the document that `identity` (a path, a name) means among those of `source`.

    Opaque, safe in URLs, the same in every run and collection.
    """
    named = f"{source}\0{identity}".encode("utf-8", "surrogateescape")  # file names hold any byte
    digest = hashlib.blake2b(named, digest_size=12)
    return f"doc-{digest.hexdigest()}"


def chunk_id_of(document_id: str, ordinal: int, text: str, lead: str = "") -> str:
    """The id of a chunk: another one when its text changes, so an old id never shows new text.

    `lead` is what stands before the text where it is prompted, beyond the document's title.
    """
    parts = [document_id, str(ordinal), text, *([lead] if lead else [])]
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=12)
    return f"chunk-{digest.hexdigest()}"


def passage_digest(text: str) -> str:
    """A short digest that tells an edited passage from the one that was cited."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def searched_text(chunk: Chunk) -> str:
    """What is embedded and indexed of a chunk: its title, its headings, and its text.

    A passage often does not name what it is about; what it stands under does. A title that the text
    opens with counts once.
    """
    title = "" if chunk.text.lstrip("# ").startswith(chunk.title) else chunk.title
    return "\n".join(part for part in (title, *chunk.headings, chunk.opening, chunk.text) if part)


def vector_space(embedder: Embedder) -> str:
    """Names what vectors mean: vectors with equal names may be compared."""
    return f"{embedder.fingerprint} {SEARCHED_TEXT_VERSION}"
