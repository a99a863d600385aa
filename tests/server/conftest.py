"""A real server on a real port over the fake service."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import structlog

from chunkcache.config import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def serve_with(support: Any, fake: Any, live: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Serve with these server settings instead of what was served before, on the same port."""
    with ExitStack() as stack:

        def start(
            queue_limit: int = 8, retrieval: Any = None, model: Any = None, **server: Any
        ) -> Any:
            settings = Settings(
                home=tmp_path / "home", cache=tmp_path / "cache", server=server,
                retrieval=retrieval or {}, model=model or {},
            )  # fmt: skip
            made = fake.FakeService(settings, queue_limit=queue_limit)
            support("fake_states").furnish(made)
            return stack.enter_context(live.serving(made))

        yield start


@pytest.fixture
def served_for_real(live: Any, tiny_settings: Callable[..., Any]) -> Iterator[Any]:
    """The true service over the tiny model."""
    from chunkcache import ChunkCache

    class Service(ChunkCache):
        def let_go(self) -> None:
            self.close()

    service = Service(tiny_settings())
    service.load()  # or the first request pays for it
    with live.serving(service) as served:
        yield served


@pytest.fixture
def served(serve_with: Callable[..., Any]) -> Any:
    return serve_with()


@pytest.fixture
def http(served: Any) -> Iterator[httpx.Client]:
    """A plain HTTP client for what the OpenAI client would not send."""
    with httpx.Client(base_url=served.url, timeout=20) as client:
        yield client


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as entries:
        yield entries
