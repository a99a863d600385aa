"""What all request bodies share: no unknown fields, no other types, text in valid Unicode."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError, core_schema

from chunkcache.server.errors import STATED

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

_NO_SCHEMAS = ("metadata", "serialization")  # parts of a schema that are none themselves


def _whole_number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticKnownError("int_type")
    return value  # 2.0 is an integer for JSON Schema, and the same number as 2 for JSON


def _no_number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise PydanticKnownError("bool_type")
    return value  # Python finds 0 among values that are `false`


_BEFORE = {"int": _whole_number, "literal": _no_number}


def _give_up_early(part: Any) -> None:
    if isinstance(part, list):
        for inner in part:
            _give_up_early(inner)
    if not isinstance(part, dict):
        return
    if part.get("type") in ("list", "tuple", "set"):
        part["fail_fast"] = True
    for name, inner in part.items():
        if name not in _NO_SCHEMAS:
            _give_up_early(inner)


def _take_no_other_type(part: Any) -> None:
    if isinstance(part, list):
        for inner in part:
            _take_no_other_type(inner)
    if not isinstance(part, dict):
        return
    kind = part.get("type")
    if not isinstance(kind, str):
        kind = None  # fields by name, one of them `type`
    if kind in ("bool", "float"):
        part["strict"] = True
    elif kind == "int" or (kind == "literal" and not {True, False}.isdisjoint(part["expected"])):
        inner = part.copy()
        part.clear()
        part.update(core_schema.no_info_before_validator_function(_BEFORE[kind], inner))
        return
    elif kind == "function-before" and part["function"]["function"] in _BEFORE.values():
        return
    for name, inner in part.items():
        if name not in _NO_SCHEMAS and name != "keys_schema":  # keys of JSON are text
            _take_no_other_type(inner)


class Parameters(BaseModel):
    """Base of queries and forms, whose values are all text: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema, in which every list gives up at its first error instead of wording them all.

        Pydantic's `FailFast` does so for one list and has to be remembered at each.
        """
        schema = handler(source)
        _give_up_early(schema)
        return schema


class Body(Parameters):
    """Base of all that JSON says: unknown fields are errors, and so are values of another type.

    For pydantic the text `"2"` and `true` are numbers, and `"yes"` and 1 are true. OpenAI's API
    refuses them, and whoever sends them meant something else or has a fault of his own.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema, in which a number takes a number, and a boolean a boolean."""
        schema = super().__get_pydantic_core_schema__(source, handler)
        _take_no_other_type(schema)
        return schema


class JsonBody(Body):
    """Base of whole JSON bodies: all their text is valid Unicode."""

    @model_validator(mode="before")
    @classmethod
    def _valid_unicode(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise stated(f"half a surrogate pair, {half}, is not valid Unicode") from error
        return data


def stated(message: str) -> PydanticCustomError:
    """A validation error whose message says it all; the period is added to it."""
    return PydanticCustomError(STATED, "{message}", {"message": message})
