"""How a component reaches its server."""

from __future__ import annotations

from typing import Any

from langchain_core.utils import secret_from_env
from pydantic import BaseModel, Field, PrivateAttr, SecretStr

from chunkcache_client import DEFAULT_URL, AsyncClient, Client


class Connection(BaseModel):
    """Fields that all components share. Names are LangChain's; `timeout` is in seconds."""

    base_url: str = DEFAULT_URL
    api_key: SecretStr | None = Field(
        default_factory=secret_from_env("CHUNKCACHE_API_KEY", default=None)
    )
    timeout: float | None = 600.0
    max_retries: int = 2

    _client: Client | None = PrivateAttr(None)

    @property
    def client(self) -> Client:
        """The client, which is made when it is first used."""
        if self._client is None:
            self._client = Client(**self._arguments())
        return self._client

    def async_client(self) -> AsyncClient:
        """A client for one call: an open one would belong to the event loop that it was used in."""
        return AsyncClient(**self._arguments())

    def _arguments(self) -> dict[str, Any]:
        key = self.api_key.get_secret_value() if self.api_key is not None else None
        return {
            "base_url": self.base_url,
            "api_key": key,
            "timeout_s": self.timeout,
            "retries": self.max_retries,
        }
