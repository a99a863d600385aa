"""One uvicorn server for a whole test session; every test puts its own app into it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import openai
import uvicorn

from chunkcache.server.app import create_app
from chunkcache.server.slow_heads import impatient

if TYPE_CHECKING:
    from collections.abc import Iterator


class Switch:
    """An ASGI app that passes everything on to whichever app is in it."""

    def __init__(self) -> None:
        self.app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


class Served:
    """A service and the address it is served at."""

    def __init__(self, service: Any, app: Any, url: str) -> None:
        self.service = service
        self.app = app
        self.url = url
        self._clients: list[openai.OpenAI] = []

    def client(self, key: str = "unused") -> openai.OpenAI:
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)
        self._clients.append(made)
        return made

    def close_clients(self) -> None:
        """Close their connections, which the garbage collector might find before the clients."""
        for client in self._clients:
            client.close()


class LiveServer:
    """A real server on a real port, in a thread."""

    def __init__(self, switch: Switch, url: str) -> None:
        self._switch = switch
        self._url = url

    @contextmanager
    def serving(self, service: Any) -> Iterator[Served]:
        """Put a service behind the port; at the end its running answers are cancelled."""
        app = create_app(service)
        served = Served(service, app, self._url)
        with self.behind(app):
            try:
                yield served
            finally:
                served.close_clients()
                service.let_go()

    @contextmanager
    def behind(self, app: Any) -> Iterator[str]:
        """Put an app behind the port; its address."""
        before, self._switch.app = self._switch.app, app
        try:
            yield self._url
        finally:
            self._switch.app = before


@contextmanager
def live_server() -> Iterator[LiveServer]:
    switch = Switch()
    config = uvicorn.Config(
        switch, host="127.0.0.1", port=0, log_level="warning", access_log=False,
        lifespan="off", timeout_graceful_shutdown=5, http=impatient(20.0),
    )  # fmt: skip
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def startup_and_tell(sockets: Any = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = startup_and_tell  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ready.wait(10)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield LiveServer(switch, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()
