"""The server's search as a component."""

from __future__ import annotations

from haystack_integrations.components.retrievers.chunkcache.retriever import ChunkCacheRetriever

__all__ = ["ChunkCacheRetriever"]
