"""Bytes of a file → its text, title and kind; or `InvalidRequest` saying why not.

Whatever is wrong with a file is an error of that file alone. Line ends become `\\n`, so that a text
from another system is the same text.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from charset_normalizer import from_bytes

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.chunk_lines import parse_chunk_lines
from chunkcache.retrieval.confined import ReadLimits, read_confined
from chunkcache.retrieval.documents import DocumentKind, title_of_name
from chunkcache.retrieval.markdown_reader import read_markdown
from chunkcache.retrieval.office import OFFICE_SUFFIXES, check_converter

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.retrieval.chunk_lines import GivenChunk

_BOMS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# Part of what a document is known by: change it when the same bytes are read otherwise.
READERS_VERSION = "readers/6"


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a loader found. `title` and `url` are empty when the file has none."""

    text: str
    kind: DocumentKind
    title: str = ""
    url: str = ""
    chunks: tuple[GivenChunk, ...] = ()  # for a document that came in chunks
    problems: tuple[str, ...] = ()  # parts that were left out, with the reason


def load(name: str, data: bytes, limit_bytes: int, limits: ReadLimits | None = None) -> Extracted:
    """Extract the text of a file. The loader is chosen by the suffix of `name`.

    The title is the document's own (first heading, `<title>`, metadata) or the file's name. Binary
    files are read by a process of their own, see `confined`.

    Args:
        limit_bytes: the largest file that is read.
        limits: of reading a binary file.

    Raises:
        InvalidRequest: the file is too large, of an unknown type, binary, empty, encrypted or
            broken. The message is the reason alone; `name` is for the caller to add.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise _refused(f"unknown type {suffix or '(no suffix)'}. Hint: use {', '.join(SUFFIXES)}")
    check_size(len(data), limit_bytes)
    if not data.strip():
        raise _refused("the file is empty")
    if suffix in _BINARY_SUFFIXES:
        found = _load_binary(suffix, data, limits or ReadLimits())
    else:
        found = _LOADERS[suffix](data)
    if not found.text.strip():
        raise _refused("there is no text in it")
    # one line, as it goes into the prompt as a heading
    title = " ".join(found.title.split()) or title_of_name(name)
    return replace(found, title=title)


def check_size(size_bytes: int, limit_bytes: int) -> None:
    """Raises `InvalidRequest` when a file is larger than the limit."""
    if size_bytes > limit_bytes:
        raise _refused(
            f"{size_bytes} bytes, at most {limit_bytes} are read. "
            "Hint: raise retrieval.max_file_bytes"
        )


def decode(data: bytes, declared: str = "") -> str:
    """Text of bytes: by byte order mark, else as declared, else UTF-8, else by guess.

    Raises:
        InvalidRequest: the bytes are not text, or of an encoding that cannot be told.
    """
    for mark, encoding in _BOMS.items():
        if data.startswith(mark):
            try:
                return _lines(data.decode(encoding))
            except UnicodeDecodeError as error:
                raise _refused(f"not {encoding}, though it is marked so: {error.reason}") from error
    if b"\0" in data:
        raise _refused("a binary file, not text")
    for encoding in (declared, "utf-8"):
        with contextlib.suppress(LookupError, ValueError):  # declared wrongly: the next is tried
            return _lines(data.decode(encoding))
    return _lines(_guessed(data))


def _guessed(data: bytes) -> str:
    matches = from_bytes(data)
    best = matches.best()
    if best is None or (best.chaos > 0 and best.coherence == 0):  # no language in it: noise
        raise _refused("neither UTF-8 nor another known encoding. Hint: convert it to UTF-8")
    # Short Western texts look as good in a dozen encodings; one of them is common.
    equals = [match for match in matches if match.chaos == best.chaos]
    if any("cp1252" in (match.encoding, *match.could_be_from_charset) for match in equals):
        return data.decode("cp1252")
    return str(best)


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(reason, param="file")


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _load_text(data: bytes) -> Extracted:
    return Extracted(decode(data), DocumentKind.PLAIN)


def _load_markdown(data: bytes) -> Extracted:
    text, title = read_markdown(decode(data))
    return Extracted(text, DocumentKind.MARKDOWN, title)


def _load_rst(data: bytes) -> Extracted:
    """As Markdown, like HTML: titles, tables, lists and code have one form for the splitter."""
    from chunkcache.retrieval.html_reader import read_html
    from chunkcache.retrieval.rst_reader import rst_to_html  # docutils: 0.2 s

    html, title = rst_to_html(decode(data))
    return Extracted(read_html(html).text, DocumentKind.MARKDOWN, title)


def _load_chunks(data: bytes) -> Extracted:
    chunks, problems = parse_chunk_lines(decode(data))
    if problems and not chunks:
        raise _refused(problems[0])
    text = "\n\n".join(chunk.text for chunk in chunks)
    return Extracted(text, DocumentKind.CHUNKS, chunks=chunks, problems=problems)


def _load_binary(suffix: str, data: bytes, limits: ReadLimits) -> Extracted:
    if suffix in OFFICE_SUFFIXES:
        check_converter(suffix)
    if suffix in (".csv", ".ipynb"):  # text, whose encoding is ours to tell
        data = decode(data).encode()
    found = read_confined(suffix, data, limits)
    text, kind = _lines(found["text"]), DocumentKind(found["kind"])
    title = found["title"]
    if not title and kind is DocumentKind.MARKDOWN:
        _, title = read_markdown(text)
    return Extracted(text, kind, title, problems=tuple(found["problems"]))


def _load_html(data: bytes) -> Extracted:
    from chunkcache.retrieval.html_reader import declared_charset, read_html  # lxml: 0.2 s

    page = read_html(decode(data, declared_charset(data)))
    return Extracted(page.text, DocumentKind.MARKDOWN, page.title, page.url)


_LOADERS: dict[str, Callable[[bytes], Extracted]] = {
    ".txt": _load_text,
    ".text": _load_text,
    ".md": _load_markdown,
    ".markdown": _load_markdown,
    ".rst": _load_rst,
    ".html": _load_html,
    ".htm": _load_html,
    ".jsonl": _load_chunks,
}
_BINARY_SUFFIXES = (".pdf", *OFFICE_SUFFIXES)
SUFFIXES = (*_LOADERS, *_BINARY_SUFFIXES)
