"""The reference page of the `chunkcache` object: what a request may wish, what an answer says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from chunkcache.protocol import Report
from chunkcache.server.shapes.generation import HttpOptions


def options_page(note: str) -> str:
    """Both objects, a row for each field; `note` says that the page is made."""
    lines = [
        "# The `chunkcache` object", "", note,
        "It stands beside OpenAI's own fields. With OpenAI's client it goes into `extra_body`, and",
        "comes back as `answer.chunkcache`:", "",
        "```python",
        'extra_body = {"chunkcache": {"mode": "exact", "top_k": 2}}',
        "```", "",
        "## In a request", "", "What is left out is as the settings say.", "",
        "| field | values | meaning |", "|---|---|---|",
        *_rows(HttpOptions, "", with_values=True),
        "", "## In an answer", "", "In a stream it comes with the usage.", "",
        "| field | meaning |", "|---|---|",
        *_rows(Report, "", with_values=False),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], prefix: str, with_values: bool) -> Iterator[str]:
    shapes = model.model_json_schema()["properties"] if with_values else {}
    for name, field in model.model_fields.items():
        kinds = list(_kinds(field.annotation))
        inner = [k for k in kinds if inspect.isclass(k) and issubclass(k, BaseModel)]
        many = "[]" if get_origin(field.annotation) is list and inner else ""
        values = ", ".join(f"`{one}`" for one in _literals(kinds)) or _limits(shapes.get(name, {}))
        cells = [f"`{prefix}{name}{many}`", *([values] if with_values else [])]
        cells.append(field.description or "")
        if field.description or not inner:
            yield f"| {' | '.join(cells)} |".replace("\n", " ")
        if inner:
            yield from _rows(inner[0], f"{prefix}{name}{many}.", with_values)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types in an annotation, without what unites, lists or annotates them."""
    inside = get_args(annotation)
    if get_origin(annotation) is Literal or not inside:
        yield annotation
        return
    for one in inside:
        yield from _kinds(one)


def _literals(kinds: list[Any]) -> list[str]:
    return [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]


def _limits(shape: dict[str, Any]) -> str:
    """What a number may be, or true and false, from a field's JSON Schema."""
    for one in shape.get("anyOf", [shape]):
        if one.get("type") == "boolean":
            return "`true`, `false`"
        limits = [
            f"{sign} {one[key]:.12g}"
            for key, sign in [
                ("exclusiveMinimum", ">"), ("minimum", "≥"),
                ("maximum", "≤"), ("exclusiveMaximum", "<"),
            ]
            if key in one
        ]  # fmt: skip
        if limits:
            return ", ".join(limits)
    return ""
