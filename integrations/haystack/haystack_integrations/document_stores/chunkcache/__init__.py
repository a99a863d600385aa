"""A vector store of a chunkcache server as Haystack's document store."""

from __future__ import annotations

from haystack_integrations.document_stores.chunkcache.document_store import ChunkCacheDocumentStore

__all__ = ["ChunkCacheDocumentStore"]
