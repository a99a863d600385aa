"""The embedding request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from chunkcache.server.errors import UNSUPPORTED
from chunkcache.server.shapes.body import JsonBody


class EmbeddingRequest(JsonBody):
    """`POST /v1/embeddings`. Token ids instead of text are not accepted."""

    model: str | None = Field(None, description="null: the one that is served")
    input: str | Annotated[list[str], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(None, description="the embedder's own number, or null")
    user: str | None = Field(None, description="a label of the caller's; changes nothing")

    @field_validator("input", mode="before")
    @classmethod
    def _text(cls, given: Any) -> Any:
        if isinstance(given, list) and any(isinstance(part, int | list) for part in given):
            raise PydanticCustomError(
                UNSUPPORTED,
                "token ids are not supported, they are of another model's tokenizer. Hint: send "
                "text; LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False.",
            )
        return given
