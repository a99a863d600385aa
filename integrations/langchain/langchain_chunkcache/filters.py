"""Filters as LangChain's stores take them → those of the server, on the attributes of documents.

LangChain has no filters of its own. Taken are a mapping of fields to values or to operators
(`{"page": 3}`, `{"page": {"$gte": 3}}`, `{"$or": [...]}`), as most stores have it, and the server's
own form (`{"type": "eq", "key": "page", "value": 3}`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chunkcache_client.errors import UnsupportedField

_COMPARISONS = {
    "$eq": "eq", "$ne": "ne", "$gt": "gt", "$gte": "gte", "$lt": "lt", "$lte": "lte",
    "$in": "in", "$nin": "nin",
}  # fmt: skip
_COMPOUNDS = {"$and": "and", "$or": "or"}


def server_filter(given: Any) -> dict[str, Any] | None:
    """The server's filter; None where there is nothing to filter by.

    Raises:
        UnsupportedField: the server has nothing that says the same.
    """
    if given is None or given == {}:
        return None
    if not isinstance(given, Mapping):
        what = "a function" if callable(given) else type(given).__name__
        raise _refused("filter", what, "a mapping: the server cannot run functions")
    if given.get("type") in {*_COMPARISONS.values(), *_COMPOUNDS.values()} and (
        "key" in given or "filters" in given
    ):
        return dict(given)
    return _all([_field(str(name), value) for name, value in given.items()])


def _field(name: str, value: Any) -> dict[str, Any]:
    if name in _COMPOUNDS:
        if not isinstance(value, list) or not value:
            raise _refused(f"filter.{name}", value, "a list of filters")
        inner = [one for item in value if (one := server_filter(item)) is not None]
        return {"type": _COMPOUNDS[name], "filters": inner}
    if name.startswith("$"):
        raise _refused(f"filter.{name}", value, f"one of {', '.join(_COMPOUNDS)}, or a field")
    if isinstance(value, Mapping) and value:
        return _all([_comparison(name, str(sign), operand) for sign, operand in value.items()])
    return _comparison(name, "$eq", value)


def _comparison(name: str, sign: str, value: Any) -> dict[str, Any]:
    field = f"filter.{name}" if sign == "$eq" else f"filter.{name}.{sign}"
    if sign not in _COMPARISONS:
        raise _refused(field, value, f"one of {', '.join(_COMPARISONS)}")
    values = list(value) if sign in ("$in", "$nin") and isinstance(value, list | tuple) else [value]
    for one in values:
        if not isinstance(one, str | int | float | bool):
            raise _refused(field, one, "a text, a number or a truth")
    is_list = sign in ("$in", "$nin")
    if is_list and not isinstance(value, list | tuple):
        raise _refused(field, value, "a list")
    return {"type": _COMPARISONS[sign], "key": name, "value": values if is_list else value}


def _all(filters: list[dict[str, Any]]) -> dict[str, Any]:
    return filters[0] if len(filters) == 1 else {"type": "and", "filters": filters}


def _refused(field: str, value: Any, limit: str) -> UnsupportedField:
    return UnsupportedField(f"{field}: got {value!r}, must be {limit}.", param=field)
