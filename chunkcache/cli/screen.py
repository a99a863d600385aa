"""What commands draw: tables, and the ribbon that shows how a prompt was served."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.text import Text

from chunkcache.chunk import Rung, SpanKind

if TYPE_CHECKING:
    from chunkcache.protocol import Report, SpanReport

RIBBON_CELLS = 60
_PIPE_COLUMNS = 2000  # a file has no width of its own; tables should not be cut for it
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
_STYLES = {
    "head": "grey50",
    "exact": "green",
    "reused": "cyan",
    "recomputed": "yellow",
    "computed": "red",
    "question": "magenta",
}
_GLYPHS = {
    "head": "\u2591",
    "exact": "\u2588",
    "reused": "\u2593",
    "recomputed": "\u2592",
    "computed": "\u2580",
    "question": "?",
}


def visible(text: str) -> str:
    """Text whose control characters are spelled out: a title must not command the terminal."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class PlainConsole(Console):
    """Prints text as it is, in tables too: brackets and colons in it are no markup and no emoji."""

    def __init__(self, file: TextIO, width: int | None = None) -> None:
        super().__init__(file=file, width=width, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed comes through here."""
        return super().render_str(visible(text), **options)


def console() -> Console:
    """For results, on stdout."""
    return PlainConsole(sys.stdout, None if sys.stdout.isatty() else _PIPE_COLUMNS)


def ribbon(report: Report) -> Text:
    """The prompt as one coloured line, to scale; every span has at least one cell.

    Within a reused chunk the recomputed rows are shown as a share of its cells, where they are.
    """
    text = Text()
    total = report.prompt_tokens
    for span in report.spans:
        cells = max(1, round(RIBBON_CELLS * span.tokens / total))
        for cell in range(cells):
            kind = _cell_kind(span, cell, cells)
            text.append(_GLYPHS[kind], style=_STYLES[kind])
    return text


def _cell_kind(span: SpanReport, cell: int, cells: int) -> str:
    if span.kind is SpanKind.HEAD:
        return "head" if span.rung is not Rung.FULL else "computed"
    if span.kind in {SpanKind.QUESTION, SpanKind.HISTORY}:
        return "question"
    if span.rung is Rung.EXACT:
        return "exact"
    if span.rung is Rung.FULL:
        return "computed"
    first = span.start + span.tokens * cell // cells
    last = span.start + span.tokens * (cell + 1) // cells
    fresh = sum(first <= p < last for p in span.recomputed_positions)
    return "recomputed" if 2 * fresh > last - first else "reused"


def legend() -> Text:
    """What the ribbon's colours mean."""
    text = Text("  ")
    words = {
        "head": "head (reused)",
        "exact": "exact reuse",
        "reused": "reused",
        "recomputed": "mostly recomputed",
        "computed": "computed",
        "question": "question",
    }
    for kind, word in words.items():
        text.append(_GLYPHS[kind] + " ", style=_STYLES[kind])
        text.append(word + "  ", style="dim")
    return text
