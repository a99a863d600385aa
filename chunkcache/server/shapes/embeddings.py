"""The embedding request."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from chunkcache.server.shapes.body import JsonBody


class EmbeddingRequest(JsonBody):
    """`POST /v1/embeddings`. Token ids instead of text are not accepted."""

    model: str | None = Field(None, description="null: the one that is served")
    input: str | Annotated[list[str], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = "float"
    user: str | None = Field(None, description="a label of the caller's; changes nothing")
