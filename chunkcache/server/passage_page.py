"""The page behind a citation: a document's text around one passage, the passage marked.

Static HTML without scripts or anything from elsewhere. Whatever comes from a document is escaped:
an uploaded file must not be able to run code in the browser of who reads an answer.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final

from chunkcache.server.links import FRAGMENT

SURROUNDINGS_CHARS: Final = 20_000
"""Characters shown before and after the passage, at most."""

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{max-width:46rem;margin:2rem auto;padding:0 1rem;line-height:1.5;"
    "font-family:system-ui,sans-serif;overflow-wrap:anywhere}"
    "pre{white-space:pre-wrap;font:inherit}"
    "mark{background:#ffe98a;color:#000;scroll-margin-top:20vh}"
    ".note{opacity:.75}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS: Final = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",  # the address is the permission to read it
    "cache-control": "private, no-store",
    "x-robots-tag": "noindex",
}


def passage_page(title: str, text: str, start: int, end: int, notice: str = "") -> str:
    """HTML of `text` around characters `[start, end)`, which are marked, below a notice."""
    first = max(0, start - SURROUNDINGS_CHARS)
    last = min(len(text), end + SURROUNDINGS_CHARS)
    before, passage, after = text[first:start], text[start:end], text[end:last]
    marked = f'{escape(before)}<mark id="{FRAGMENT}">{escape(passage)}</mark>{escape(after)}'
    noted = f"<p>{escape(notice)}</p>" if notice else ""
    shown = f"<pre>{marked}</pre>"
    body = [noted, _omitted(first, "before"), shown, _omitted(len(text) - last, "after")]
    return _page(title, "".join(body))


def notice_page(title: str, notice: str) -> str:
    """HTML that says why there is no passage to see."""
    return _page(title, f"<p>{escape(notice)}</p>")


def _omitted(num_chars: int, where: str) -> str:
    return f'<p class="note">{num_chars} characters {where} this</p>' if num_chars else ""


def _page(title: str, body: str) -> str:
    shown = escape(title)
    return (
        '<!doctype html><html><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{shown}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{shown}</h1>{body}</body></html>"
    )
