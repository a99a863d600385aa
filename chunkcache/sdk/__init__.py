"""The client of a chunkcache server: typed, sync and async, and light. It loads no torch."""

from __future__ import annotations

from ..keep import Keep
from .client import AsyncClient, Client
from .keeping import Kept, Quota
from .results import Answer, ModelInfo, StreamEvent, Usage
from .texts import Hit, StoredText, Text

__all__ = [
    "Answer", "AsyncClient", "Client", "Hit", "Keep", "Kept", "ModelInfo", "Quota", "StoredText",
    "StreamEvent", "Text", "Usage",
]  # fmt: skip
