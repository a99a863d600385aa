"""Texts that are looked over before they are parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.errors import InvalidRequest
from chunkcache.server.json_bounds import JsonBounds, parse_json

SMALL = JsonBounds(values=20, fields=5, depth=4, digits=10)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@settings(max_examples=40)
@given(ANY_JSON, st.sampled_from([None, 2]), st.booleans())
def test_within_bounds_it_is_what_the_json_module_says(
    value: Any, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert parse_json(text.encode("utf-8", "surrogatepass"), JsonBounds()) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 5 + "]" * 5, "nested deeper than 4 levels"),
        ("[" * 1_000_000, "nested deeper than 4 levels"),
        ('{"a":' * 5 + "1" + "}" * 5, "nested deeper than 4 levels"),
        (f"[{','.join('1' * 20)}]", "more than 20 values"),
        (json.dumps({str(i): i for i in range(6)}), "an object of more than 5 fields"),
        (json.dumps([{"a": {str(i): 1 for i in range(6)}}]), "an object of more than 5 fields"),
        ("12345678901", "a number of more than 10 digits"),
        ("[1, -0.123456789]", "a number of more than 10 digits"),
        ("," * 1_000_000, "more than 20 values"),
        (":" * 1_000_000, "more than 20 values"),
        ('""' * 1_000_000, "more than 20 values"),
    ],
)
def test_one_too_many_is_named_with_its_limit(text: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(text.encode(), SMALL)
    assert why in caught.value.message and "Hint" in caught.value.message
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")


@pytest.mark.parametrize(
    "value",
    [
        [1] * 19,
        [[[[]]]],
        {str(i): i for i in range(5)},
        [{str(i): i for i in range(5)}] * 1,
        1234567890,
        ['[{,:"\\' * 9] * 19,
        {"a": "]}" * 100, "b": "\\", "c": '\\"'},
    ],
)
def test_the_limits_are_exact_and_strings_do_not_count(value: Any) -> None:
    assert parse_json(json.dumps(value).encode(), SMALL) == value


@pytest.mark.parametrize(
    "text",
    ["NaN", "[Infinity]", '{"a": -Infinity}', "1e400", "[-1e999]"],
)
def test_no_number_is_infinite_or_none(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(text.encode(), JsonBounds())
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b'"', b"{]", b'"' + b'\\"' * 500_000, b'"' + b"\\" * 1_000_001,
        b"\xff\xfe{}", b"\x80",
        '"ü"'.encode("utf-16"), b"{'a': 1}", b"01", b"1 2",
    ],
)  # fmt: skip
def test_malformed_text_is_told_from_too_much(data: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(data, JsonBounds())
    assert caught.value.code == "invalid_json"
