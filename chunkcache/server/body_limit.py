"""`BodyLimit`: how large a request body may be, how slowly it may come, how much all may hold."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from chunkcache.errors import ChunkCacheError, Overloaded, RequestTimeout, RequestTooLarge
from chunkcache.server.errors import response_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from chunkcache.server_settings import ServerSettings

_UPLOADS: Final = frozenset({("POST", "/v1/files")})
"""Routes that put their body on disk piece by piece."""
_LEAST_BYTES_PER_S: Final = 1024
_RETRY_AFTER_S: Final = 1  # bodies in memory come and go


@dataclass(slots=True)
class _Body:
    """One body on its way in."""

    limit_bytes: int
    limit_name: str
    in_memory: bool
    seen_bytes: int = 0
    began_s: float = math.nan
    is_whole: bool = False
    refusal: ChunkCacheError | None = None


class BodyLimit:
    """Refuses a body over its route's limit: at once by Content-Length, else while it arrives.

    A body that comes more slowly than 1 KiB/s, `body_timeout_s` aside, is given up, and so is one
    that finds the memory taken by the bodies of others.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        self._held_bytes = 0  # by bodies in memory, until their requests have ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = self._body_of(scope)
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > body.limit_bytes:
            await _refuse(_too_large(body), scope, receive, send)
            return
        started = False

        async def receive_bounded() -> Message:
            if body.is_whole:
                return await receive()  # only tells that the client has gone
            message = await self._next(body, receive)
            body.is_whole = not message.get("more_body", False)
            return message

        async def send_unless_refused(message: Message) -> None:
            nonlocal started
            # The framework answers the exception of a refusal in its own words: left out.
            if body.refusal is None or started:
                started = True
                await send(message)

        try:
            await self._app(scope, receive_bounded, send_unless_refused)
        finally:
            self._held_bytes -= body.seen_bytes if body.in_memory else 0
            if body.refusal is not None and not started:
                await _refuse(body.refusal, scope, receive, send)

    def _body_of(self, scope: Scope) -> _Body:
        settings = self._settings
        if (scope["method"], scope["path"]) in _UPLOADS:
            return _Body(settings.max_upload_bytes, "server.max_upload_bytes", in_memory=False)
        return _Body(settings.max_body_bytes, "server.max_body_bytes", in_memory=True)

    async def _next(self, body: _Body, receive: Receive) -> Message:
        """The next piece of a body. Raises HTTPException, which frameworks let through as it is."""
        now_s = asyncio.get_running_loop().time()
        if math.isnan(body.began_s):
            body.began_s = now_s
        allowed_s = self._settings.body_timeout_s + body.seen_bytes / _LEAST_BYTES_PER_S
        try:
            async with asyncio.timeout_at(body.began_s + allowed_s):
                message = await receive()
        except TimeoutError as error:
            body.refusal = RequestTimeout(
                f"The request body came too slowly: {body.seen_bytes} bytes in {allowed_s:.0f} s. "
                "Hint: send it faster, or raise server.body_timeout_s."
            )
            raise HTTPException(body.refusal.status) from error
        size_bytes = len(message.get("body", b""))
        body.seen_bytes += size_bytes
        self._held_bytes += size_bytes if body.in_memory else 0
        if body.seen_bytes > body.limit_bytes:
            body.refusal = _too_large(body)
        elif body.in_memory and self._held_bytes > self._settings.max_bodies_bytes:
            body.refusal = Overloaded(
                f"The bodies of all requests hold {self._held_bytes} bytes, the limit is "
                f"server.max_bodies_bytes = {self._settings.max_bodies_bytes}.",
                retry_after_s=_RETRY_AFTER_S,
            )
        if body.refusal is not None:
            raise HTTPException(body.refusal.status)
        return message


def _too_large(body: _Body) -> RequestTooLarge:
    return RequestTooLarge(
        f"The request body is larger than {body.limit_bytes} bytes. Hint: send less, or raise "
        f"{body.limit_name}."
    )


async def _refuse(error: ChunkCacheError, scope: Scope, receive: Receive, send: Send) -> None:
    response = response_of(error)
    # What is left of the body is not read, so the connection cannot be used again.
    response.headers["connection"] = "close"
    await response(scope, receive, send)
