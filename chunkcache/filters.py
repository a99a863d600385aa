"""Filters on the attributes of documents, as OpenAI's vector stores take them.

A comparison names an attribute and a value; `and` and `or` put filters together. Source: the guide
"Retrieval" of OpenAI's API, https://platform.openai.com/docs/guides/retrieval#attribute-filtering.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_DEPTH = 8
MAX_FILTERS = 100

_Scalar = StrictStr | StrictBool | StrictInt | StrictFloat
_Key = Annotated[str, Field(min_length=1, max_length=64)]
_ORDER: dict[str, Callable[[float | str, float | str], bool]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip


class _Filter(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Comparison(_Filter):
    """One attribute against one value."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte"]
    key: _Key
    value: _Scalar

    def matches(self, attributes: Mapping[str, str | float | bool]) -> bool:
        """Whether a document with these attributes passes.

        One without the attribute, or with a value of another kind, only passes `ne`.
        """
        found = attributes.get(self.key)
        if self.type in {"eq", "ne"}:
            return _same(found, self.value) == (self.type == "eq")
        if found is None or _kind(found) != _kind(self.value) or _kind(found) == "bool":
            return False
        return _ORDER[self.type](found, self.value)


class Membership(_Filter):
    """One attribute against several values."""

    type: Literal["in", "nin"]
    key: _Key
    value: list[_Scalar] = Field(min_length=1, max_length=1000)

    def matches(self, attributes: Mapping[str, str | float | bool]) -> bool:
        """Whether a document with these attributes passes; without the attribute only `nin`."""
        found = attributes.get(self.key)
        return any(_same(found, value) for value in self.value) == (self.type == "in")


class Compound(_Filter):
    """Several filters of which all, or any, must pass."""

    type: Literal["and", "or"]
    filters: list[AttributeFilter] = Field(min_length=1, max_length=MAX_FILTERS)

    def matches(self, attributes: Mapping[str, str | float | bool]) -> bool:
        """Whether a document with these attributes passes."""
        every = all if self.type == "and" else any
        return every(one.matches(attributes) for one in self.filters)


AttributeFilter = Annotated[Comparison | Membership | Compound, Field(discriminator="type")]


def excess(filters: Comparison | Membership | Compound) -> str | None:
    """What about a filter is too much, in words: more than 8 levels, or 100 filters in all."""
    level, depth, count = [filters], 0, 0
    while level:
        depth, count = depth + 1, count + len(level)
        if depth > MAX_DEPTH:
            return f"more than {MAX_DEPTH} levels of filters"
        if count > MAX_FILTERS:
            return f"more than {MAX_FILTERS} filters"
        level = [inner for one in level if isinstance(one, Compound) for inner in one.filters]
    return None


def _kind(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "bool"
    return "text" if isinstance(value, str) else "number"


def _same(found: str | float | bool | None, value: str | float | bool) -> bool:
    return found is not None and _kind(found) == _kind(value) and found == value
