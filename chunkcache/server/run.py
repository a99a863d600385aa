"""`serve`: run the endpoint until a signal, then drain."""

from __future__ import annotations

import math
import socket
import threading
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn

from chunkcache.server.app import create_app
from chunkcache.server.slow_heads import impatient

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from chunkcache.server.backend import Service

log = structlog.get_logger(__name__)

_FLUSH_TIMEOUT_S = 5
"""After the drain no answer runs; this bounds what a client that does not read can hold up."""

_MOST_MS = (1 << 31) - 1  # 24 days: the kernel's count has 32 bits


class _DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT: refuse new requests with 503, let running ones end, then exit.

    uvicorn's own handler closes the socket at once, so that clients see refused connections, and
    re-raises the signal afterwards, so that the exit code is not 0.
    """

    def __init__(
        self, config: uvicorn.Config, service: Service, on_ready: Callable[[str], None] | None
    ) -> None:
        super().__init__(config)
        self._service = service
        self._on_ready = on_ready
        self._draining = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                self._let_go_of_stalled(listening)
        if self.started and self._on_ready is not None:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def _let_go_of_stalled(self, listening: socket.socket) -> None:
        """A reader that has stalled ends like one that has gone: accepted connections inherit this.

        Only Linux has it; elsewhere such a reader keeps its thread until it goes.
        """
        timeout_s = self._service.settings.server.stalled_timeout_s
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            timeout_ms = min(math.ceil(1000 * timeout_s), _MOST_MS)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain in a thread. Second: stop waiting."""
        if self._draining:
            self.should_exit = self.force_exit = True
            return
        self._draining = True
        threading.Thread(target=self._drain, args=(sig,), name="drain", daemon=True).start()

    def _drain(self, sig: int) -> None:
        timeout_s = self._service.settings.server.drain_timeout_s
        log.info("draining", signal=sig, timeout_s=timeout_s)
        try:
            self._service.drain(timeout_s)
        finally:
            self.should_exit = True


def can_listen(host: str, port: int) -> bool:
    """Whether an address is free, to be asked before a model is loaded for it; why not is logged.

    Somebody may still be faster.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn will
            tried.bind(address)
    except (OSError, UnicodeError) as error:  # the latter of what no name of a machine can be
        reason = getattr(error, "strerror", str(error))
        log.error(
            "not_listening", host=host, port=port, reason=reason,
            hint="another server may be there; --port 0 picks a free one",
        )  # fmt: skip
        return False
    return True


def serve(
    service: Service,
    host: str | None = None,
    port: int | None = None,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; then drain, close the service, and return the exit code.

    Args:
        service: a running service; closed before this returns.
        host, port: where to listen; default `settings.server`. Port 0 picks a free one.
        on_ready: called with the base URL once connections are accepted.

    Returns:
        0 after a drain; 1 if the address could not be bound.
    """
    settings = service.settings.server
    options: dict[str, Any] = {
        "host": settings.host if host is None else host,
        "port": settings.port if port is None else port,
        "access_log": False,  # the Envelope layer logs requests, with their ids
        "log_config": None,  # its lines go where everybody's go
        "log_level": "warning",
        "http": impatient(settings.head_timeout_s),
        "lifespan": "off",
        "timeout_graceful_shutdown": _FLUSH_TIMEOUT_S,
    }
    try:
        app = create_app(service, options["host"])
        server = _DrainingServer(uvicorn.Config(app, **options), service, on_ready)
        try:
            server.run()
        except SystemExit:  # uvicorn's way to say that the address is taken
            log.error("not_listening", host=options["host"], port=options["port"])
            return 1
        return 0
    finally:
        service.close()
