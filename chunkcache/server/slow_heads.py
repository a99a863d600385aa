"""Connections whose request head does not come: uvicorn waits for one without end.

Its keep-alive time-out runs between requests only. A client that opens a connection and sends
nothing, or a byte now and then, would hold a file descriptor for as long as it likes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from chunkcache.errors import RequestTimeout
from chunkcache.server.errors import body_of

if TYPE_CHECKING:
    import asyncio

    from uvicorn.config import Config
    from uvicorn.server import ServerState


class ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # chosen when imported
    """uvicorn's own, but a head that is not whole in time ends its connection.

    The time runs from the opening of the connection, and from the first byte of each later request;
    more bytes do not prolong it. `timeout_s` is set in a subclass, see `impatient`.
    """

    timeout_s: float

    def __init__(self, config: Config, server_state: ServerState, *args: Any, **more: Any) -> None:
        super().__init__(config, server_state, *args, **more)
        self._head_timer: asyncio.TimerHandle | None = None
        self._has_begun = False  # whether a byte of the head has come

    def connection_made(self, transport: asyncio.Transport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._lacks_head:
            self._wait_for_head()
            self._has_begun = True
        super().data_received(data)
        if not self._lacks_head:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """See uvicorn. Who has been answered and still has not sent his request, ends here.

        `Linger` has waited for the rest as long as it may; uvicorn would read on for ever.
        """
        if self.cycle.response_complete and self.cycle.more_body:
            self.transport.close()
        super().on_response_complete()

    @property
    def _lacks_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer, self._has_begun = None, False

    def _give_up(self) -> None:
        if self._has_begun:  # or it may be a browser's spare connection, which asked for nothing
            error = RequestTimeout(
                f"The head of the request was not whole after {self.timeout_s:g} s. Hint: send it "
                "faster, or raise server.head_timeout_s."
            )
            body = json.dumps(body_of(error))
            self.transport.write(
                "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                f"{body}".encode()
            )
        self.transport.close()


def impatient(timeout_s: float) -> type[asyncio.Protocol]:
    """The protocol with a time-out, for `uvicorn.Config(http=...)`."""
    return type("ImpatientProtocol", (ImpatientProtocol,), {"timeout_s": timeout_s})
