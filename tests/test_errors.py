"""Errors: one tree, a status and a code for each, one shape of message for bad input."""

from __future__ import annotations

import inspect
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache import errors
from chunkcache.errors import ChunkCacheError, InvalidRequest, Overloaded

TREE = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, ChunkCacheError)
}


def statuses_in_the_docstring() -> dict[str, int]:
    """`├── Name   400  …`; a line without a number has its parent's."""
    found: dict[str, int] = {}
    levels: list[tuple[int, int]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│├└─ ]*)([A-Z]\w+)(?:\s+(\d{3})\b)?", line)
        if not match or match[2] not in TREE:
            continue
        depth = len(match[1])
        while levels and levels[-1][0] >= depth:
            levels.pop()
        status = int(match[3]) if match[3] else (levels[-1][1] if levels else 500)
        found[match[2]] = status
        levels.append((depth, status))
    return found


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    assert statuses_in_the_docstring() == {name: error.status for name, error in TREE.items()}


@pytest.mark.parametrize("name", TREE)
def test_every_error_has_a_status_and_a_code_and_carries_its_message(name: str) -> None:
    kind = TREE[name]
    assert 400 <= kind.status <= 599
    assert re.fullmatch("[a-z]+(_[a-z]+)*", kind.code)
    error = kind("what happened")
    assert str(error) == error.message == "what happened"
    assert error.param is None
    assert isinstance(error, Exception)


def test_codes_tell_errors_apart() -> None:
    codes = [kind.code for kind in TREE.values()]
    assert sorted(codes) == sorted(set(codes))


def test_bad_input_is_told_with_field_value_limit_and_hint() -> None:
    error = InvalidRequest.of("top_k", -1, "at least 0", "0 retrieves nothing")
    assert str(error) == "top_k: got -1, must be at least 0. Hint: 0 retrieves nothing."
    assert error.param == "top_k"


@pytest.mark.parametrize(
    "name", [n for n, kind in TREE.items() if issubclass(kind, InvalidRequest)]
)
def test_kinds_of_bad_input_keep_their_kind(name: str) -> None:
    error = TREE[name].of("f", 1, "2", "say 2")  # type: ignore[attr-defined]
    assert type(error) is TREE[name]


@given(value=st.one_of(st.text(max_size=300), st.binary(max_size=300), st.lists(st.integers())))
@settings(deadline=None, max_examples=100)
def test_a_long_value_is_cut_and_never_spoils_the_message(value: object) -> None:
    message = str(InvalidRequest.of("field", value, "short", "cut it"))
    shown = message.removeprefix("field: got ").removesuffix(", must be short. Hint: cut it.")
    assert len(shown) <= 80
    assert shown == repr(value) or (shown.endswith("...") and repr(value).startswith(shown[:-3]))
    assert "\n" not in message


def test_overload_says_when_to_come_back() -> None:
    assert Overloaded("full").retry_after_s == 1
    assert Overloaded("full", retry_after_s=7).retry_after_s == 7
