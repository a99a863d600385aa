"""The client of a chunkcache server, without the server: `chunkcache.sdk` as a package of its own.

Its modules are those of `chunkcache`, under this name: `chunkcache_client.errors` has the errors,
`chunkcache_client.protocol` the reports. Both distributions may be installed side by side.
"""

from __future__ import annotations

from .sdk import (
    Answer,
    AsyncClient,
    Client,
    Hit,
    ModelInfo,
    StoredText,
    StreamEvent,
    Text,
    Usage,
)
from .sdk.calls import DEFAULT_URL

__all__ = [
    "DEFAULT_URL",
    "Answer",
    "AsyncClient",
    "Client",
    "Hit",
    "ModelInfo",
    "StoredText",
    "StreamEvent",
    "Text",
    "Usage",
]
