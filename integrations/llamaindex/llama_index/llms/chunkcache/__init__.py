"""The server's decoder as an LLM."""

from __future__ import annotations

from llama_index.llms.chunkcache.llm import ChunkCacheLLM

__all__ = ["ChunkCacheLLM"]
