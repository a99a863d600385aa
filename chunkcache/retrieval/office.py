"""Office documents, books and tables → text with headings and tables, by kreuzberg (Rust).

The extra `docs` installs it. Runs in `binary_reader`'s process. The text is Djot, a Markdown in
which identifiers stand as they are; what the converter loses is in docs/log.md.
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

    # No cache: it would lie in the current folder, and outlive the document.
    config = kreuzberg.ExtractionConfig(output_format="djot", use_cache=False)
    try:
        found = kreuzberg.extract_bytes_sync(data, _MEDIA_TYPES[suffix], config=config)
    except kreuzberg.KreuzbergError as error:
        reason = str(error).partition("\n")[0][:300]
        raise InvalidRequest(f"a broken {suffix} file: {reason}", param="file") from error
    title = own_title(str(found.metadata.get("title") or ""))
    text = _EMPTY_ROW.sub("", found.content).strip()
    return {"text": text, "kind": "markdown", "title": title, "problems": []}
