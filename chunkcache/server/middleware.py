"""Plain ASGI layers around the app: envelope, authentication; `guard`, `body_limit` are others.

Plain ASGI and not Starlette's BaseHTTPMiddleware: that one buffers streams and hides disconnects.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import TYPE_CHECKING

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from chunkcache.errors import ShuttingDown, Unauthorized
from chunkcache.server.errors import incident_body, response_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from chunkcache.server.auth import ApiKeys

log = structlog.get_logger(__name__)

_SHOWN_CHARS = 200  # of a path, in a log line
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Envelope:
    """The outermost layer: `x-request-id` on every response, one log line, no leaked exception.

    A client's own `x-request-id` is kept if it is 1 to 64 letters, digits, dots, dashes or
    underscores; otherwise a fresh one is made.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else f"req_{uuid.uuid4().hex}"
        began_s = time.monotonic()
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_marked)
            except asyncio.CancelledError:
                # the server ends: uvicorn has given it as long as it may, and logs what gets out
                if not status:
                    ending = ShuttingDown("The server has shut down before the request was whole.")
                    await response_of(ending)(scope, receive, send_marked)
            except ClientDisconnect:
                log.info("client_disconnected", path=scope["path"][:_SHOWN_CHARS])
            except Exception as error:
                response = JSONResponse(incident_body(error), status_code=500)
                if not status:
                    await response(scope, receive, send_marked)
            duration_ms = round(1000 * (time.monotonic() - began_s), 1)
            method, path = scope["method"][:16], scope["path"][:_SHOWN_CHARS]
            log.info("request", method=method, path=path, status=status, duration_ms=duration_ms)


class Authenticate:
    """Everything under /v1 needs a key, checked before the body is read; sets the tenant."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and f"{scope['path']}/".startswith("/v1/"):
            try:
                tenant = self._keys.tenant_of(Headers(scope=scope).get("authorization"))
            except Unauthorized as error:
                response = response_of(error)
                response.headers["www-authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
            scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)


class HeadAsGet:
    """HEAD wherever there is GET, as probes send it: the same status and headers, no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)
