"""The SDK against the real server over the fake service, in every manner it can be used."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from chunkcache.config import Settings
from chunkcache.sdk import AsyncClient, Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MANNERS = ("sync over a socket", "async over a socket", "async into the app")


class SyncCaller:
    """Calls methods of a `Client`."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __call__(self, method: str, *args: Any, **named: Any) -> Any:
        return getattr(self.client, method)(*args, **named)

    def stream(self, *args: Any, **named: Any) -> Iterator[Any]:
        return self.client.stream(*args, **named)

    def close(self) -> None:
        self.client.close()


class AsyncCaller:
    """Calls methods of an `AsyncClient` on a loop of its own and waits for each."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self._runner = asyncio.Runner()

    def __call__(self, method: str, *args: Any, **named: Any) -> Any:
        return self._runner.run(getattr(self.client, method)(*args, **named))

    def stream(self, *args: Any, **named: Any) -> Iterator[Any]:
        events = self.client.stream(*args, **named)
        done = object()

        async def advance() -> Any:
            return await anext(events, done)

        async def leave() -> None:
            async with aclosing(events):
                pass

        try:
            while (event := self._runner.run(advance())) is not done:
                yield event
        finally:
            self._runner.run(leave())

    def close(self) -> None:
        self._runner.run(self.client.close())
        self._runner.close()


@pytest.fixture
def open_caller() -> Iterator[Callable[..., Any]]:
    """`open_caller(manner, **arguments)`: a caller for one of `MANNERS`; closed at the end."""
    with ExitStack() as stack:

        def open_one(manner: str, **arguments: Any) -> Any:
            made: Any
            if manner.startswith("sync"):
                made = SyncCaller(Client(**arguments))
            else:
                made = AsyncCaller(AsyncClient(**arguments))
            stack.callback(made.close)
            return made

        yield open_one


@pytest.fixture
def serve_with(support: Any, fake: Any, live: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:

        def start(queue_limit: int = 8, **server: Any) -> Any:
            settings = Settings(
                home=tmp_path / "home",
                cache=tmp_path / "cache",
                server={"public_url": "http://public.test", **server},
            )
            made = fake.FakeService(settings, queue_limit=queue_limit)
            support("fake_states").furnish(made)
            return stack.enter_context(live.serving(made))

        yield start


@pytest.fixture
def served(serve_with: Callable[..., Any]) -> Any:
    return serve_with()


@pytest.fixture
def address_of() -> Callable[[str, Any], dict[str, Any]]:
    """Where a served app is reached in a manner, as arguments of a client."""

    def arguments(manner: str, served: Any) -> dict[str, Any]:
        if manner.endswith("app"):
            return {"base_url": "http://inside", "transport": httpx.ASGITransport(app=served.app)}
        return {"base_url": served.url}

    return arguments


@pytest.fixture(params=MANNERS)
def caller(request: pytest.FixtureRequest, served: Any, open_caller: Any, address_of: Any) -> Any:
    """The same server in each manner: the same calls must have the same results."""
    return open_caller(request.param, **address_of(request.param, served))


@pytest.fixture(params=MANNERS[:2])
def hasty(request: pytest.FixtureRequest, served: Any, open_caller: Any) -> Any:
    """A caller over a socket that tries once. (Into the app, a stream comes in one piece.)"""
    return open_caller(request.param, base_url=served.url, retries=0)


@pytest.fixture(params=MANNERS[:2])
def mock(request: pytest.FixtureRequest, open_caller: Any) -> Callable[..., Any]:
    """`mock(handler, **arguments)`: a caller whose server is a function."""

    def make(handler: Callable[[httpx.Request], httpx.Response], **arguments: Any) -> Any:
        transport = httpx.MockTransport(handler)
        return open_caller(request.param, transport=transport, **arguments)

    return make


REPORT: dict[str, Any] = {
    "rung": "repaired", "policy": "question", "budget": 0.15, "prompt_tokens": 20,
    "reused_tokens": 8, "recomputed_tokens": 2, "computed_tokens": 10, "cost_ratio": 0.6,
    "spans": [], "timings": {}, "citations": [
        {"chunk_id": "c", "document_id": "d", "title": "Cats é", "url": "", "start_char": 0,
         "end_char": 3, "text": "cat", "score": 1.0},
    ],
}  # fmt: skip
NOTES = [{"type": "url_citation", "url_citation": {"url": "http://server.test/documents/d"}}]
USAGE = {
    "prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22,
    "prompt_tokens_details": {"cached_tokens": 8},
}  # fmt: skip


@pytest.fixture
def completion() -> dict[str, Any]:
    """A whole answer as a server of this version sends it."""
    message = {"role": "assistant", "content": "Hi there", "annotations": NOTES}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny",
        "choices": [choice], "usage": USAGE, "chunkcache": REPORT,
    }  # fmt: skip


@pytest.fixture(scope="session")
def wire() -> bytes:
    """The same answer as a stream."""

    def chunk(delta: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"id": "chatcmpl-1", "model": "tiny", "choices": [choice], "usage": None, **more}

    chunks = [
        chunk({"role": "assistant", "content": ""},
              chunkcache={"citations": REPORT["citations"]}),
        chunk({"content": "Hi"}),
        chunk({"content": " there"}),
        chunk({"annotations": NOTES}, "stop"),
        {**chunk({}, usage=USAGE, chunkcache=REPORT), "choices": []},
    ]  # fmt: skip
    lines = [f"data: {json.dumps(item, ensure_ascii=False)}\n\n" for item in chunks]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()
