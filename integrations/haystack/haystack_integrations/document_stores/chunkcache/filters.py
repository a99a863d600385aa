"""Haystack's filters → those of the server, on the attributes of documents."""

from __future__ import annotations

from typing import Any

from haystack.errors import FilterError

_COMPARISONS = {
    "==": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte",
    "in": "in", "not in": "nin",
}  # fmt: skip
_OPPOSITES = {"==": "!=", "!=": "==", "in": "not in", "not in": "in"}
_ORDERINGS = (">", ">=", "<", "<=")


def server_filter(filters: dict[str, Any] | None) -> dict[str, Any] | None:
    """The server's filter; None where there is nothing to filter by.

    Dates compare as the texts they are kept as, so those of one field should be of one form.

    Raises:
        FilterError: it is malformed, or the server has nothing that says the same.
    """
    return _translated(filters, negated=False) if filters else None


def _translated(filters: dict[str, Any], *, negated: bool) -> dict[str, Any]:
    if "field" in filters:
        return _comparison(filters, negated=negated)
    operator, conditions = _part(filters, "operator"), _part(filters, "conditions")
    if operator not in ("AND", "OR", "NOT"):
        raise FilterError(f"operator: got {operator!r}, must be AND, OR or NOT")
    if operator == "NOT":  # of all together
        operator, negated = "AND", not negated
    inner = [_translated(condition, negated=negated) for condition in conditions]
    kind = "and" if (operator == "AND") != negated else "or"
    return {"type": kind, "filters": inner}


def _comparison(filters: dict[str, Any], *, negated: bool) -> dict[str, Any]:
    field, operator = str(filters["field"]), _part(filters, "operator")
    value = _part(filters, "value")
    if operator not in _COMPARISONS:
        raise FilterError(f"operator: got {operator!r}, must be one of {', '.join(_COMPARISONS)}")
    if not field.startswith("meta."):
        raise FilterError(
            f"field: got {field!r}, must begin with 'meta.': the server searches by metadata only. "
            "Hint: filter_documents takes any field."
        )
    _check(field, operator, value)
    if negated:
        if operator not in _OPPOSITES:
            raise FilterError(
                f"{field}: the server cannot search for what is not {operator} {value!r}, which "
                "documents without the field are too. Hint: write the opposite comparison."
            )
        operator = _OPPOSITES[operator]
    return {"type": _COMPARISONS[operator], "key": field.removeprefix("meta."), "value": value}


def _check(field: str, operator: str, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    if (operator in ("in", "not in")) != isinstance(value, list):
        what = "a list" if operator in ("in", "not in") else "one value"
        raise FilterError(f"{field}: got {value!r}, must be {what} for the operator {operator!r}")
    for one in values:
        if not isinstance(one, str | int | float | bool):
            raise FilterError(
                f"{field}: got {one!r}, must be a text, a number or a truth: the server cannot "
                "search for what is absent"
            )


def _part(filters: dict[str, Any], name: str) -> Any:
    if name not in filters:
        raise FilterError(f"'{name}' key missing in {filters}")
    return filters[name]
