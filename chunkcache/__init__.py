"""Reuse the KV cache of retrieved passages at any position, and say how exact each answer is.

`Client` and `AsyncClient` talk to a server and import no torch; `ChunkCache` runs in process and
loads torch on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chunkcache.version import __version__
from chunkcache.waiting import spin_briefly

if TYPE_CHECKING:
    from chunkcache.sdk.client import AsyncClient, Client
    from chunkcache.service import ChunkCache

spin_briefly()  # before anything of ours loads torch

__all__ = ["AsyncClient", "ChunkCache", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that `import chunkcache` stays light."""
    if name in {"Client", "AsyncClient"}:
        from chunkcache.sdk import client

        return getattr(client, name)
    if name == "ChunkCache":
        from chunkcache.service import ChunkCache

        return ChunkCache
    raise AttributeError(f"module 'chunkcache' has no attribute {name!r}")
