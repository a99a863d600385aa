"""Reuse the KV cache of retrieved passages at any position, and say how exact each answer is.

`Client` and `AsyncClient` talk to a server and import no torch; `ChunkCache` runs in process and
loads torch on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chunkcache.waiting import spin_briefly

if TYPE_CHECKING:
    from chunkcache.sdk.client import AsyncClient, Client
    from chunkcache.service import ChunkCache
    from chunkcache.version import __version__

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
    if name == "__version__":  # asking for it takes longer than all else here
        from chunkcache.version import __version__

        return __version__
    raise AttributeError(f"module 'chunkcache' has no attribute {name!r}")
