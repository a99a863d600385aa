"""What all request bodies share: unknown fields are errors, text is valid Unicode."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError, core_schema

from chunkcache.server.errors import STATED

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


def _no_whole_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _no_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


_OF_NUMBERS = {"int": _no_whole_number, "float": _no_number}


def _tighten(part: Any) -> None:
    if isinstance(part, list):
        for inner in part:
            _tighten(inner)
    if not isinstance(part, dict):
        return
    kind = part.get("type")  # or the field of that name
    if isinstance(kind, str) and kind in _OF_NUMBERS:
        number = part.copy()
        part.clear()
        part.update(core_schema.no_info_before_validator_function(_OF_NUMBERS[kind], number))
        return
    if kind in ("list", "tuple", "set"):
        part["fail_fast"] = True
    if kind == "function-before" and part["function"]["function"] in _OF_NUMBERS.values():
        return
    for name, inner in part.items():
        if name not in ("metadata", "serialization"):
            _tighten(inner)


class Body(BaseModel):
    """Base of all that a request says: unknown fields are errors, no number is true or false."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema, in which every list gives up at its first error instead of wording them all.

        Pydantic's `FailFast` does so for one list and has to be remembered at each. For pydantic
        `true` is the number 1, which nobody means by it.
        """
        schema = handler(source)
        _tighten(schema)
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
