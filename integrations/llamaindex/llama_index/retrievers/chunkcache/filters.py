"""LlamaIndex's metadata filters → those of the server, on the attributes of documents."""

from __future__ import annotations

from typing import Any

from chunkcache_client.errors import UnsupportedField
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

_COMPARISONS = {
    FilterOperator.EQ: "eq", FilterOperator.NE: "ne", FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte", FilterOperator.LT: "lt", FilterOperator.LTE: "lte",
    FilterOperator.IN: "in", FilterOperator.NIN: "nin",
}  # fmt: skip
_OPPOSITES = {"eq": "ne", "ne": "eq", "in": "nin", "nin": "in"}


def server_filter(filters: MetadataFilters | None) -> dict[str, Any] | None:
    """The server's filter; None where there is nothing to filter by.

    Raises:
        UnsupportedField: the server has nothing that says the same.
    """
    if filters is None or not filters.filters:
        return None
    return _compound(filters, negated=False)


def _compound(filters: MetadataFilters, *, negated: bool) -> dict[str, Any]:
    condition = filters.condition or FilterCondition.AND
    if condition is FilterCondition.NOT:  # none of them
        condition, negated = FilterCondition.OR, not negated
    inner = [_any(one, negated=negated) for one in filters.filters]
    kind = "and" if (condition is FilterCondition.AND) != negated else "or"
    return inner[0] if len(inner) == 1 else {"type": kind, "filters": inner}


def _any(one: MetadataFilter | MetadataFilters, *, negated: bool) -> dict[str, Any]:
    if isinstance(one, MetadataFilters):
        return _compound(one, negated=negated)
    if one.operator not in _COMPARISONS:
        known = ", ".join(operator.value for operator in _COMPARISONS)
        raise UnsupportedField(
            f"filters.{one.key}: got the operator {one.operator.value!r}, must be one of {known}.",
            param="filters",
        )
    kind = _COMPARISONS[one.operator]
    if (kind in ("in", "nin")) != isinstance(one.value, list) or one.value is None:
        what = "a list" if kind in ("in", "nin") else "one text or number"
        raise UnsupportedField(
            f"filters.{one.key}: got {one.value!r}, must be {what} for {one.operator.value!r}.",
            param="filters",
        )
    if negated and kind not in _OPPOSITES:
        raise UnsupportedField(
            f"filters.{one.key}: the server cannot search for what is not {one.operator.value} "
            f"{one.value!r}, which documents without the field are too. "
            "Hint: write the opposite comparison.",
            param="filters",
        )
    return {
        "type": _OPPOSITES[kind] if negated else kind, "key": one.key, "value": one.value,
    }  # fmt: skip
