"""What all request bodies share: unknown fields are errors, text is valid Unicode."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from chunkcache.server.errors import STATED


class Body(BaseModel):
    """Base of all that a request says: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


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
