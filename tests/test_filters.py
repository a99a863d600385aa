"""Filters on attributes: each comparison, kinds that do not compare, bounds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from chunkcache.filters import MAX_DEPTH, MAX_FILTERS, AttributeFilter, excess

FILTER: TypeAdapter[Any] = TypeAdapter(AttributeFilter)
CAT = {"kind": "cat", "year": 2024, "price": 9.5, "tame": True, "name": ""}


def passes(kind: str, key: str, value: Any, attributes: dict[str, Any] = CAT) -> bool:
    return bool(
        FILTER.validate_python({"type": kind, "key": key, "value": value}).matches(attributes)
    )


@pytest.mark.parametrize(
    ("kind", "key", "value", "right"),
    [
        ("eq", "kind", "cat", True), ("eq", "kind", "Cat", False), ("ne", "kind", "dog", True),
        ("eq", "year", 2024.0, True), ("gt", "year", 2023, True), ("gt", "year", 2024, False),
        ("gte", "year", 2024, True), ("lt", "price", 9.5, False), ("lte", "price", 9.5, True),
        ("gt", "kind", "car", True), ("lt", "kind", "car", False), ("eq", "name", "", True),
        ("eq", "tame", True, True), ("eq", "tame", 1, False), ("gt", "tame", False, False),
        ("eq", "year", "2024", False), ("gt", "year", "2023", False), ("ne", "year", "2024", True),
        ("eq", "none", "x", False), ("ne", "none", "x", True), ("lt", "none", 5, False),
        ("in", "kind", ["dog", "cat"], True), ("in", "kind", ["dog"], False),
        ("nin", "kind", ["dog"], True), ("nin", "kind", ["cat"], False),
        ("in", "none", ["x"], False), ("nin", "none", ["x"], True), ("in", "tame", [1], False),
    ],
)  # fmt: skip
def test_each_comparison(kind: str, key: str, value: Any, right: bool) -> None:
    assert passes(kind, key, value) is right


def test_filters_within_filters() -> None:
    dear = {"type": "gt", "key": "price", "value": 9}
    old = {"type": "lt", "key": "year", "value": 2000}
    for kind, right in (("and", False), ("or", True)):
        both = FILTER.validate_python({"type": kind, "filters": [dear, old]})
        assert both.matches(CAT) is right


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "like", "key": "a", "value": "b"},
        {"type": "eq", "key": "", "value": "b"},
        {"type": "eq", "key": "a", "value": None},
        {"type": "eq", "key": "a", "value": ["b"]},
        {"type": "in", "key": "a", "value": "b"},
        {"type": "in", "key": "a", "value": []},
        {"type": "and", "filters": []},
        {"type": "and", "key": "a", "value": 1},
        {"type": "eq", "key": "a", "value": 1, "filters": []},
    ],
)
def test_what_is_no_filter(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FILTER.validate_python(wrong)


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "eq", "key": "a", "value": 1}
    for _ in range(depth - 1):
        found = {"type": "and", "filters": [found]}
    return found


def test_bounds() -> None:
    assert excess(FILTER.validate_python(nested(MAX_DEPTH))) is None
    assert "levels" in str(excess(FILTER.validate_python(nested(MAX_DEPTH + 1))))
    leaf = {"type": "eq", "key": "a", "value": 1}
    most = {"type": "or", "filters": [leaf] * (MAX_FILTERS - 1)}
    assert excess(FILTER.validate_python(most)) is None
    more = {"type": "and", "filters": [most, leaf]}
    assert "100 filters" in str(excess(FILTER.validate_python(more)))


VALUES = st.one_of(st.text(max_size=2), st.booleans(), st.integers(-2, 2), st.just(0.5))


@given(VALUES, VALUES)
def test_opposites_are_opposites(found: Any, value: Any) -> None:
    attributes = {"a": found}
    assert passes("eq", "a", value, attributes) != passes("ne", "a", value, attributes)
    assert passes("in", "a", [value], attributes) == passes("eq", "a", value, attributes)
    if passes("gte", "a", value, attributes):
        assert passes("gt", "a", value, attributes) != passes("eq", "a", value, attributes)
