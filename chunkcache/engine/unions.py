"""`oneOf` whose options exclude each other, as the `anyOf` that it then is.

A grammar cannot say "this option and none of the others". It need not where no answer fits two of
them. llguidance sees that by itself for types, constants and objects, but not behind `$ref`, which
is how classes are written; here it is seen for types and for objects that a property's text tells
apart, behind references too.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chunkcache.protocol import Json

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLES = ("items", "additionalProperties", "contains", "not", "if", "then", "else")
_MOST_HOPS = 16  # from reference to reference


def told_apart(schema: Json) -> Json:
    """The schema with `anyOf` for every `oneOf` whose options are told apart by type or a text.

    Where a `discriminator` names that property, every option must have it from then on: whoever
    leaves it out has not said which one is meant. All else stays as it is.
    """
    copy = deepcopy(schema)
    for part in list(_schemas(copy)):
        options = part.get("oneOf")
        if isinstance(options, list) and "anyOf" not in part:
            targets = [_resolved(copy, option) for option in options]
            _require_discriminator(part, targets)
            if _exclude_each_other(targets):
                part["anyOf"] = part.pop("oneOf")
    return copy


def _schemas(root: Any) -> Iterator[Json]:
    """All schemas in a schema; not the values that constants and examples are."""
    waiting = [root]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield schema
        for name in _MAPS:
            if isinstance(inside := schema.get(name), dict):
                waiting += inside.values()
        for name in _LISTS:
            if isinstance(inside := schema.get(name), list):
                waiting += inside
        waiting += [schema[name] for name in _SINGLES if name in schema]


def _resolved(root: Json, option: Any) -> Json:
    """What an option says, behind its references; nothing if they lead nowhere."""
    for _ in range(_MOST_HOPS):
        if not isinstance(option, dict) or "$ref" not in option:
            break
        pointer, option = str(option["$ref"]), root
        for step in pointer.removeprefix("#").split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            option = option.get(key) if isinstance(option, dict) else None
    return option if isinstance(option, dict) and "$ref" not in option else {}


def _require_discriminator(union: Json, options: Sequence[Json]) -> None:
    named = union.get("discriminator")
    name = named.get("propertyName") if isinstance(named, dict) else None
    for option in options if isinstance(name, str) else ():
        required = option.get("required", [])
        if name in _texts(option) and isinstance(required, list) and name not in required:
            option["required"] = [*required, name]


def _exclude_each_other(options: Sequence[Json]) -> bool:
    """Whether all have types of their own, or a property whose texts are."""
    types = [option.get("type") for option in options]
    if (
        all(isinstance(t, str) for t in types)
        and len(set(types)) == len(types)
        and not {"integer", "number"} <= set(types)
    ):
        return True
    possible = [_texts(option) for option in options]
    for name in possible[0] if possible else ():
        texts = [found.get(name, frozenset()) for found in possible]
        required = all(name in option.get("required", ()) for option in options)
        distinct = len(set(chain.from_iterable(texts))) == sum(map(len, texts))
        if required and all(texts) and distinct:
            return True
    return False


def _texts(option: Json) -> dict[str, frozenset[str]]:
    """The properties of an object that can only be certain texts, and which."""
    properties = option.get("properties")
    if option.get("type") != "object" or not isinstance(properties, dict):
        return {}  # what is no object has every property it is asked for
    found = {}
    for name, schema in properties.items():
        values = schema.get("enum", [schema.get("const")]) if isinstance(schema, dict) else []
        if isinstance(values, list) and values and all(isinstance(v, str) for v in values):
            found[name] = frozenset(values)
    return found
