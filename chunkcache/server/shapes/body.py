"""What all request bodies share: unknown fields are errors, text is valid Unicode."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from chunkcache.server.errors import STATED

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


def _give_up_early(part: Any) -> None:
    if isinstance(part, dict):
        if part.get("type") in ("list", "tuple", "set"):
            part["fail_fast"] = True
        for name, inner in part.items():
            if name not in ("metadata", "serialization"):
                _give_up_early(inner)
    elif isinstance(part, list):
        for inner in part:
            _give_up_early(inner)


class Body(BaseModel):
    """Base of all that a request says: unknown fields are errors, and lists end at their first."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema, in which every list gives up at its first error instead of wording them all.

        Pydantic's `FailFast` does so for one list and has to be remembered at each.
        """
        schema = handler(source)
        _give_up_early(schema)
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
