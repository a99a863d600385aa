"""LangChain over a chunkcache server: chat model, retriever, vector store, embeddings."""

from __future__ import annotations

from langchain_chunkcache.chat_model import ChatChunkCache
from langchain_chunkcache.embeddings import ChunkCacheEmbeddings
from langchain_chunkcache.retriever import ChunkCacheRetriever
from langchain_chunkcache.vector_store import ChunkCacheVectorStore

__all__ = [
    "ChatChunkCache",
    "ChunkCacheEmbeddings",
    "ChunkCacheRetriever",
    "ChunkCacheVectorStore",
]
