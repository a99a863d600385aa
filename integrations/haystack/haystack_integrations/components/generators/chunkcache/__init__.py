"""The server's decoder as a chat generator."""

from __future__ import annotations

from haystack_integrations.components.generators.chunkcache.chat_generator import (
    ChunkCacheChatGenerator,
)

__all__ = ["ChunkCacheChatGenerator"]
