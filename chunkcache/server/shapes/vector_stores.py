"""Requests about vector stores: what is accepted, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from chunkcache.filters import AttributeFilter, Comparison, Compound, Membership, excess
from chunkcache.server.shapes.body import Body, JsonBody, stated
from chunkcache.server.shapes.ranking import RankingOptions

MAX_FILES = 500
MAX_QUERIES = 16
_Key = Annotated[str, Field(min_length=1, max_length=64)]
_Value = Annotated[str, Field(max_length=512)] | bool | float
_Metadata = Annotated[dict[_Key, Annotated[str, Field(max_length=512)]], Field(max_length=16)]
FileAttributes = Annotated[dict[_Key, _Value], Field(max_length=16)]


class StaticChunking(Body):
    """Sizes in tokens."""

    max_chunk_size_tokens: int = Field(ge=1)
    chunk_overlap_tokens: int = Field(ge=0)


class ChunkingStrategy(Body):
    """How files are split: `auto`, or `static` with the very sizes of this server."""

    type: Literal["auto", "static"]
    static: StaticChunking | None = None

    @model_validator(mode="after")
    def _sizes_belong_to_static(self) -> Self:
        if (self.type == "static") != (self.static is not None):
            raise stated("chunking_strategy: 'static' comes with its sizes, and 'auto' without any")
        return self


class ExpiresAfter(Body):
    """Days without use after which a vector store is not searched any more."""

    anchor: Literal["last_active_at"]
    days: int = Field(ge=1, le=365)


class CreateVectorStore(JsonBody):
    """A name, files to attach at once, and labels."""

    name: str | None = Field(None, max_length=256)
    description: str | None = Field(None, description="changes nothing; OpenAI shows it nowhere")
    file_ids: list[str] = Field(default_factory=list, max_length=MAX_FILES)
    metadata: _Metadata | None = None
    expires_after: ExpiresAfter | None = None
    chunking_strategy: ChunkingStrategy | None = None


class UpdateVectorStore(JsonBody):
    """What changes; fields left out stay. `expires_after: null` lets it live for ever."""

    name: str | None = Field(None, max_length=256)
    metadata: _Metadata | None = None
    expires_after: ExpiresAfter | None = None


class AttachFile(JsonBody):
    """Which file, and labels for it."""

    file_id: str
    attributes: FileAttributes | None = None
    chunking_strategy: ChunkingStrategy | None = None


class UpdateFile(JsonBody):
    """Labels in place of those a file had; null: none."""

    attributes: FileAttributes | None


class CreateFileBatch(JsonBody):
    """Files with common labels, or each with labels of its own."""

    file_ids: list[str] | None = Field(None, min_length=1, max_length=MAX_FILES)
    files: list[AttachFile] | None = Field(None, min_length=1, max_length=MAX_FILES)
    attributes: FileAttributes | None = None
    chunking_strategy: ChunkingStrategy | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.file_ids is None) == (self.files is None):
            raise stated("file_ids: give either file_ids or files")
        if self.files is not None and (self.attributes or self.chunking_strategy):
            raise stated("files: each file has its own attributes and chunking_strategy")
        first: dict[str, AttachFile] = {}
        for index, one in enumerate(self.files or ()):
            if first.setdefault(one.file_id, one) != one:
                raise stated(f"files.{index}.file_id: got {one.file_id!r} again, with other fields")
        return self

    @property
    def wanted(self) -> list[AttachFile]:
        """Every file once."""
        if self.files is not None:
            return list({one.file_id: one for one in self.files}.values())
        return [
            AttachFile(
                file_id=file_id,
                attributes=self.attributes,
                chunking_strategy=self.chunking_strategy,
            )
            for file_id in dict.fromkeys(self.file_ids or ())
        ]


_TEXTS_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "array", "minItems": 1, "maxItems": MAX_QUERIES,
            "items": {"type": "string", "minLength": 1},
        },
    ]
}  # fmt: skip


class SearchQuery(JsonBody):
    """What to look for: a text, or several. Queries are searched as they are."""

    query: Annotated[list[str], WithJsonSchema(_TEXTS_SCHEMA)]
    max_num_results: int = Field(10, ge=1, le=50)
    rewrite_query: Literal[False] | None = False
    filters: AttributeFilter | None = None
    ranking_options: RankingOptions | None = None

    @field_validator("query", mode="before")
    @classmethod
    def _as_list(cls, query: Any) -> list[str]:
        texts = query if isinstance(query, list) else [query]
        if not all(isinstance(text, str) and text for text in texts):
            raise stated("query: must be a text with words, or several such texts")
        if not 1 <= len(texts) <= MAX_QUERIES:
            raise stated(f"query: got {len(texts)} texts, must be 1 to {MAX_QUERIES}")
        return texts

    @field_validator("filters")
    @classmethod
    def _bounded(cls, filters: Any) -> Comparison | Membership | Compound | None:
        if filters is not None and (problem := excess(filters)):
            raise stated(f"filters: {problem}")
        return filters  # type: ignore[no-any-return]  # as it was validated
