"""Which tier holds the KV of which chunk, as the page shows it."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, Field

COUNTED_CHUNKS: Final = 64
"""Chunks of a document that are looked up for its summary, its first ones."""


class ChunkState(BaseModel):
    """A chunk of a document and where its KV is."""

    chunk_id: str
    ordinal: int = Field(description="its place in the document, from 0")
    title: str
    headings: list[str] = Field(
        default_factory=list, description="of the sections it is in, outermost first"
    )
    text: str
    tokens: int
    start_char: int = Field(description="in the document's extracted text")
    end_char: int
    tier: str | None = Field(description="the highest tier that holds its KV; null: none does")


class RecordState(BaseModel):
    """A record on disk and the terms it is kept on."""

    id: str = Field(description="what it lies under, in hexadecimal")
    object: Literal["chunkcache.record"] = "chunkcache.record"
    tokens: int
    size_bytes: int
    codec: str
    created_at: float
    retention: str = Field(description="passing, normal, warmed or pinned")
    priority: int
    expires_at: float | None = Field(description="seconds since the epoch; null: never")


class Cleared(BaseModel):
    """How many copies of a tenant's chunks were forgotten, by tier."""

    object: Literal["chunkcache.cleared"] = "chunkcache.cleared"
    removed: dict[str, int]


class Kept(BaseModel):
    """How many chunks were meant, and how many of them a tier that keeps terms has."""

    object: Literal["chunkcache.kept"] = "chunkcache.kept"
    chunks: int
    stored: int = Field(description="these are kept on the terms asked for from now on")
    warmed_only: int = Field(
        0, description="of those stored: kept as warmed, not pinned; pins have half of a tier"
    )


class DocumentState(BaseModel):
    """How many chunks of a document have their KV where."""

    document_id: str
    chunks: int
    counted: int = Field(description=f"chunks looked up: the first {COUNTED_CHUNKS} at most")
    tiers: dict[str, int] = Field(description="chunks by the highest tier that holds their KV")
