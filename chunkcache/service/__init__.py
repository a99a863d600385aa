"""The service: documents in, cited answers with a statement of exactness out."""

from __future__ import annotations

from chunkcache.service.answer import AnswerHandle
from chunkcache.service.cache import ChunkCache

__all__ = ["AnswerHandle", "ChunkCache"]
