"""What a request is told when a step of it did not succeed."""

from __future__ import annotations

import torch

from chunkcache.errors import ChunkCacheError, DeviceMemoryFull


def as_engine_error(error: Exception) -> ChunkCacheError:
    """The error as one of ours: as it is, a refusal for lack of memory, or the engine's failure."""
    if isinstance(error, ChunkCacheError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return memory_full()
    return ChunkCacheError(f"the engine failed: {error!r}")


def memory_full() -> DeviceMemoryFull:
    """The refusal for lack of memory."""
    return DeviceMemoryFull(
        "the device had no memory left to compute this request beside what it holds. Hint: "
        "ask again later or with fewer tokens; smaller engine.step_tokens, "
        "engine.kv_capacity_bytes or engine.chunk_capacity_bytes leave more room."
    )
