"""The service: documents in, cited answers with a statement of exactness out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chunkcache.service.answer import AnswerHandle
    from chunkcache.service.cache import ChunkCache

__all__ = ["AnswerHandle", "ChunkCache"]


def __getattr__(name: str) -> Any:
    """Load public names on first use: what needs no model need not load torch."""
    if name == "ChunkCache":
        from chunkcache.service.cache import ChunkCache

        return ChunkCache
    if name == "AnswerHandle":
        from chunkcache.service.answer import AnswerHandle

        return AnswerHandle
    raise AttributeError(f"module 'chunkcache.service' has no attribute {name!r}")
