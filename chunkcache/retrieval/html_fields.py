"""Fields of a page with what is in them: as text where it stands. All other controls say nothing.

A browser that saves a page, and a program that fills one in, leave values in the markup; lists of
tasks have their ticks there. What only switches parts of a page on and off are boxes and buttons as
well: those stand in no text.
"""

from __future__ import annotations

from typing import Any

_CONTROLS = ("input", "select", "textarea")
_WRITTEN_INTO = frozenset(
    ["text", "number", "date", "time", "datetime-local", "month", "week", "email", "tel", "url"]
)
_TICKED = frozenset(["checkbox", "radio"])
_AMONG_WORDS = frozenset(["li", "label", "p", "td", "th", "dd", "dt"])


def fields_into_words(root: Any) -> None:
    """Replace every control by its value, or by nothing."""
    for control in list(root.iter(*_CONTROLS)):
        words = " ".join(_value(control).split())
        control.tail = f" {words} {control.tail or ''}" if words else control.tail
        control.drop_tree()


def _value(control: Any) -> str:
    if control.get("hidden") is not None:
        return ""
    if control.tag == "textarea":
        return str(control.text_content())
    if control.tag == "select":
        chosen = control.xpath(".//option[@selected]")
        return ", ".join(" ".join(option.text_content().split()) for option in chosen)
    kind = control.get("type", "text").strip().lower()
    if kind in _TICKED and _stands_among_words(control):
        return "[x]" if control.get("checked") is not None else "[ ]"
    return str(control.get("value", "")) if kind in _WRITTEN_INTO else ""


def _stands_among_words(control: Any) -> bool:
    around = control.getparent()
    return around.tag in _AMONG_WORDS and bool(around.text_content().strip())
