"""Bytes of a file → its text, title and kind; or `InvalidRequest` saying why not.

Whatever is wrong with a file is an error of that file alone. Line ends become `\\n`, so that a text
from another system is the same text.
"""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from charset_normalizer import from_bytes

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.chunk_lines import parse_chunk_lines
from chunkcache.retrieval.documents import DocumentKind, printable
from chunkcache.retrieval.markdown_reader import read_markdown

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
# PDFium is not thread-safe, whatever the document: one lock for the process, for as long as any of
# its objects lives.
_PDFIUM_LOCK = threading.Lock()
_PDF_PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\uffff]")
_LINE_END_HYPHEN = re.compile("[\x02\ufffe]\n?")  # PDFium's signs for a word that goes on
# Part of what a document is known by: change it when the same bytes are read otherwise.
READERS_VERSION = "readers/2"


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a loader found. `title` and `url` are empty when the file has none."""

    text: str
    kind: DocumentKind
    title: str = ""
    url: str = ""
    chunks: tuple[GivenChunk, ...] = ()  # for a document that came in chunks


def load(name: str, data: bytes, limit_bytes: int) -> Extracted:
    """Extract the text of a file. The loader is chosen by the suffix of `name`.

    The title is the document's own (first heading, `<title>`, metadata) or the file's name.

    Raises:
        InvalidRequest: the file is too large, of an unknown type, binary, empty, encrypted or
            broken. The message is the reason alone; `name` is for the caller to add.
    """
    path = PurePath(name)
    loader = _LOADERS.get(path.suffix.lower())
    if loader is None:
        raise _refused(
            f"unknown type {path.suffix or '(no suffix)'}. Hint: use {', '.join(SUFFIXES)}"
        )
    check_size(len(data), limit_bytes)
    if not data.strip():
        raise _refused("the file is empty")
    found = loader(data)
    if not found.text.strip():
        raise _refused("there is no text in it")
    # one line, as it goes into the prompt as a heading
    title = " ".join((found.title.strip() or printable(path.name)).split())
    return Extracted(found.text, found.kind, title, found.url, found.chunks)


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
    chunks = parse_chunk_lines(decode(data))
    text = "\n\n".join(chunk.text for chunk in chunks)
    return Extracted(text, DocumentKind.CHUNKS, chunks=chunks)


def _load_html(data: bytes) -> Extracted:
    from chunkcache.retrieval.html_reader import declared_charset, read_html  # lxml: 0.2 s

    page = read_html(decode(data, declared_charset(data)))
    return Extracted(page.text, DocumentKind.MARKDOWN, page.title, page.url)


def _load_pdf(data: bytes) -> Extracted:
    """Text of all pages, a blank line between them. Scanned pages have none."""
    import pypdfium2

    with _PDFIUM_LOCK:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            if getattr(error, "err_code", None) == _PDF_PASSWORD_ERROR:
                raise _refused("an encrypted PDF. Hint: remove the password") from error
            raise _refused(f"a broken PDF: {error}") from error
        try:
            pages = [_pdf_page(document, number) for number in range(len(document))]
            title = document.get_metadata_dict().get("Title", "")
        except pypdfium2.PdfiumError as error:
            raise _refused(f"a broken PDF: {error}") from error
        finally:
            document.close()
    text = "\n\n".join(page for page in pages if page)
    if not text:
        raise _refused("a PDF without text. Hint: run text recognition over a scan first")
    return Extracted(text, DocumentKind.PLAIN, title)


def _pdf_page(document: Any, number: int) -> str:
    page = document[number]
    try:
        text_page = page.get_textpage()
        try:
            text = _lines(text_page.get_text_bounded())
            return _CONTROLS.sub("", _LINE_END_HYPHEN.sub("", text)).strip()
        finally:
            text_page.close()
    finally:
        page.close()


_LOADERS: dict[str, Callable[[bytes], Extracted]] = {
    ".txt": _load_text,
    ".text": _load_text,
    ".md": _load_markdown,
    ".markdown": _load_markdown,
    ".rst": _load_rst,
    ".html": _load_html,
    ".htm": _load_html,
    ".pdf": _load_pdf,
    ".jsonl": _load_chunks,
}
SUFFIXES = tuple(_LOADERS)
