"""`Linger`: what a client still sends behind an answer is read, so that it gets to the answer.

Closing a connection with unread bytes resets it, and a client that has not read the answer by then
may report the reset instead of it: urllib and Node's fetch do. Whatever is answered without its
body (too large, no key, no such route, another site's page) is such an answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Linger:
    """Keeps the end of an answer back until the body of its request is in, within bounds.

    The answer itself is sent at once. A client that waits for leave to send its body (`expect:
    100-continue`) is given none, and its connection ends: the body may come all the same, or the
    next request, and nobody could tell which it is.

    Args:
        most_bytes, most_s: how much of a body is thrown away, and for how long.
        silence_s: nothing came for so long: the client sends no more.
    """

    def __init__(
        self, app: ASGIApp, most_bytes: int = 256 << 20, most_s: float = 30.0, silence_s: float = 10
    ) -> None:
        self._app = app
        self._most_bytes = most_bytes
        self._most_s = most_s
        self._silence_s = silence_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(headers := Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        is_coming = headers.get("expect", "").lower() != "100-continue"  # without being asked for
        is_in = is_held_back = False

        async def receive_noting() -> Message:
            nonlocal is_coming, is_in
            is_coming = True
            message = await receive()
            is_in = is_in or not message.get("more_body", False)
            return message

        async def send_but_the_end(message: Message) -> None:
            nonlocal is_held_back
            if message["type"] == "http.response.start" and not is_coming:
                MutableHeaders(scope=message)["connection"] = "close"
            is_end = "body" in message and not message.get("more_body", False)
            is_held_back = is_end and is_coming and not is_in
            await send({**message, "more_body": True} if is_held_back else message)

        await self._app(scope, receive_noting, send_but_the_end)
        if is_held_back:
            await self._throw_away(receive)
            await send({"type": "http.response.body", "body": b""})

    async def _throw_away(self, receive: Receive) -> None:
        """Read up to the end of the body, or a bound, or the end of the server."""
        clock = asyncio.get_running_loop().time
        end_s = clock() + self._most_s
        seen_bytes = 0
        while seen_bytes <= self._most_bytes:
            try:
                async with asyncio.timeout_at(min(end_s, clock() + self._silence_s)):
                    message = await receive()
            except (TimeoutError, asyncio.CancelledError):  # see `Envelope` for the latter
                return
            if not message.get("more_body", False):  # its end, or the client has gone
                return
            seen_bytes += len(message["body"])


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
