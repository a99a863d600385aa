"""The server's search as a retriever."""

from __future__ import annotations

from llama_index.retrievers.chunkcache.retriever import ChunkCacheRetriever

__all__ = ["ChunkCacheRetriever"]
