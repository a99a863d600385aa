"""Titles in the properties of a file that name no content: a program left them there."""

from __future__ import annotations

import re

_PROGRAMS = "(?:word|excel|powerpoint|publisher|visio|project|onenote|access)"
_PLACEHOLDERS = (
    # "untitled", "Untitled-2", "Document1", "(anonymous)", "Slide 1", "Word Document"
    r"\W*(?:untitled|no title|unnamed|anonymous|unknown|none|null|title|temp|"
    r"(?:word|new|blank|open)?\s*(?:document|presentation|workbook|spreadsheet|drawing|book|sheet|"
    r"slide|page)(?:\s+title)?|powerpoint[- ]presentation)"
    r"[\W_]*\d*\W*",
    # "Microsoft Word - report", "Microsoft PowerPoint - x"
    rf"(?:microsoft|ms)\s+(?:office\s+)?{_PROGRAMS}\s*-\s.*",
    # a path: "/tmp/x", "C:\x\y", "\\server\x", "file:///x"
    r"(?:[a-z]:[\\/]|\\\\|file:).*|~?/\S*",
    # a file's name, or a path with blanks: "annual report.doc", "README.md"
    r".*\S\.(?:docx?|dotx?|rtf|odt|ods|odp|pptx?|potx?|xlsx?|csv|pdf|ps|eps|dvi|indd|qxd|pmd|pub|"
    r"wpd|jpe?g|png|tiff?|cdr|psd|dwg|vsdx?)",
    r"\S+\.(?:tex|html?|xml|md|txt|rst|ai|fm|key|pages|numbers|book)",
)
_PLACEHOLDER = re.compile("|".join(f"(?:{pattern})" for pattern in _PLACEHOLDERS), re.IGNORECASE)


def own_title(title: str) -> str:
    """The title in one line; empty when it says nothing about the content."""
    line = " ".join(title.split())
    return "" if _PLACEHOLDER.fullmatch(line) else line
