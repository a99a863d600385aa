"""JSON schemas of tools and answers, as the server is held to them."""

from __future__ import annotations

from typing import Any

_NAMED = ("properties", "$defs", "definitions", "patternProperties")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")


def closed(schema: Any) -> Any:
    """The schema with no fields beside those it names, unless it says itself what others may be.

    A function takes no others, and a model that may go on making up fields does.

    >>> closed({"type": "object", "properties": {"a": {"type": "integer"}}})
    {'type': 'object', 'properties': {'a': {'type': 'integer'}}, 'additionalProperties': False}
    """
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    for name in _NAMED:
        if isinstance(made.get(name), dict):
            made[name] = {key: closed(inner) for key, inner in made[name].items()}
    for name in _LISTED:
        if isinstance(made.get(name), list):
            made[name] = [closed(inner) for inner in made[name]]
    if "items" in made:
        made["items"] = closed(made["items"])
    if "properties" in made and "allOf" not in made:  # what is joined names fields elsewhere
        made.setdefault("additionalProperties", False)
    return made
