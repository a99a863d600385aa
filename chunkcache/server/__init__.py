"""The HTTP endpoint: OpenAI's shapes in front of a `ChunkCache`. No tensors here."""

from __future__ import annotations
