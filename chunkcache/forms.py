"""Forms that an answer can be held to: JSON of a schema, or a call of a function."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FunctionCall(_Wire):
    """A call that an assistant made in an earlier turn, or that an answer consists of."""

    name: str
    arguments: str = Field(description="JSON")
    id: str = ""


class JsonForm(_Wire):
    """The answer is one JSON value of a schema."""

    json_schema: dict[str, Any]
    description: str = Field("", description="what it is for; told to the model")
    field: str = Field("json_schema", description="where the request has it, for errors")


class Function(_Wire):
    """What may be called. `parameters` is the JSON schema of its arguments."""

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    field: str = Field("parameters", description="where the request has the schema, for errors")


class CallForm(_Wire):
    """The answer is a call of one of these functions."""

    functions: tuple[Function, ...] = Field(min_length=1)
