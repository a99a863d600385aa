"""Office documents, books and tables → text with headings and tables, by kreuzberg (Rust).

The extra `docs` installs it. Runs in `binary_reader`'s process. The text is Djot, a Markdown in
which identifiers stand as they are. What the converter loses is put where it finds it, before
(`word_document`, `workbook`, `slides`); docs/concepts/documents.md says what is read.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

from chunkcache.errors import InvalidRequest
from chunkcache.retrieval.titles import own_title

_OOXML = "application/vnd.openxmlformats-officedocument."
_MEDIA_TYPES = {
    ".csv": "text/csv",
    ".docx": f"{_OOXML}wordprocessingml.document",
    ".pptx": f"{_OOXML}presentationml.presentation",
    ".xlsx": f"{_OOXML}spreadsheetml.sheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".epub": "application/epub+zip",
    ".ipynb": "application/x-ipynb+json",
}
OFFICE_SUFFIXES = tuple(_MEDIA_TYPES)
_EMPTY_ROW = re.compile(r"^\|(?: *\|)+\n(?!\| *-)", re.MULTILINE)  # sheets are full of them


def check_converter(suffix: str) -> None:
    """Raises `InvalidRequest` when the converter is not installed."""
    if find_spec("kreuzberg") is None:
        raise InvalidRequest(
            f"a {suffix} file needs a converter. Hint: pip install 'chunkcache[docs]'",
            param="file",
        )


def read_office(suffix: str, data: bytes) -> dict[str, Any]:
    """Text and title of a file; see `binary_reader`.

    Raises:
        InvalidRequest: the file is broken or encrypted.
    """
    import kreuzberg

    from chunkcache.retrieval import slides, word_document, workbook  # lxml

    problems: list[str] = []
    if suffix == ".docx":
        data = word_document.as_converted(data)
    elif suffix == ".xlsx":
        data, problems = workbook.as_shown(data)
    elif suffix == ".pptx":
        data = slides.with_notes(data)
    # No cache: it would lie in the current folder, and outlive the document.
    config = kreuzberg.ExtractionConfig(output_format="djot", use_cache=False)
    try:
        found = kreuzberg.extract_bytes_sync(data, _MEDIA_TYPES[suffix], config=config)
    except kreuzberg.KreuzbergError as error:
        reason = str(error).partition("\n")[0][:300]
        raise InvalidRequest(f"a broken {suffix} file: {reason}", param="file") from error
    title = own_title(str(found.metadata.get("title") or ""))
    text = found.content
    if suffix == ".docx":
        text = word_document.from_converter(text)
    elif suffix == ".xlsx":
        text = workbook.as_written(text)
    if suffix in (".xlsx", ".csv"):
        text = _whole_rows(text)
    text = _EMPTY_ROW.sub("", text).strip()
    return {"text": text, "kind": "markdown", "title": title, "problems": problems}


def _whole_rows(text: str) -> str:
    """Rows of tables in a line each: the converter leaves line ends in cells as they are."""
    rows: list[str] = []
    is_open = False
    for line in text.split("\n"):
        if is_open:
            rows[-1] = f"{rows[-1].rstrip()} {line.strip()}"
        else:
            rows.append(line)
        is_open = rows[-1].startswith("| ") and not rows[-1].endswith(" |")
    return "\n".join(rows)
