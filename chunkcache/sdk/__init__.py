"""The client of a chunkcache server: typed, sync and async, and light. It loads no torch."""

from __future__ import annotations

from chunkcache.sdk.client import AsyncClient, Client
from chunkcache.sdk.results import Answer, ModelInfo, StreamEvent, Usage

__all__ = ["Answer", "AsyncClient", "Client", "ModelInfo", "StreamEvent", "Usage"]
