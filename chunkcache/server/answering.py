"""One way to an answer, whatever the route: start it, read its first event, or all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.errors import ChunkCacheError
from chunkcache.protocol import AnswerFinished, AnswerStarted
from chunkcache.server.citations import Citer
from chunkcache.server.links import LinkSigner
from chunkcache.server.pump import AnswerPump

if TYPE_CHECKING:
    import threading

    from fastapi import Request

    from chunkcache.protocol import AnswerRequest
    from chunkcache.server.backend import RunningAnswer, Service
    from chunkcache.server.shapes.generation import AnyRequest


def pump_of(asked: AnswerRequest, request: Request, service: Service) -> AnswerPump:
    """Ask; the answer's events come from the pump, which is to be closed."""

    def start(gone: threading.Event) -> RunningAnswer:
        return service.start(asked, gone=gone)

    return AnswerPump(start, request.receive)


def citer_of(asked: AnswerRequest, body: AnyRequest, request: Request, service: Service) -> Citer:
    """What cites the passages of the answer to `asked`, which `body` stands for."""
    held = asked.documents is None
    wish = body.chunkcache.citations if body.chunkcache else None
    signer = LinkSigner(service.link_key, service.settings.server.link_lifetime_s)
    return Citer(
        signer=signer if held else None,
        base_url=service.settings.server.public_url or str(request.base_url),
        tenant=asked.tenant,
        store=asked.collection,
        # behind JSON, or a call's arguments, a list of sources would make it none
        as_text=(wish or service.settings.server.citations) == "text" and asked.form is None,
    )


async def begun(pump: AnswerPump) -> AnswerStarted:
    """The first event. An error before it still gets its own HTTP status.

    Raises:
        ChunkCacheError: there is no answer; the pump is closed.
    """
    try:
        started = await anext(pump)
        if not isinstance(started, AnswerStarted):
            raise ChunkCacheError("The answer did not open with its passages.")
    except BaseException:
        pump.close()
        raise
    return started


async def finished(pump: AnswerPump) -> AnswerFinished:
    """The whole answer; the pump is closed then.

    Raises:
        ChunkCacheError: there is no answer.
    """
    last: AnswerFinished | None = None
    try:
        # To the very end: an answer that is left before it is cancelled.
        async for event in pump:
            if isinstance(event, AnswerFinished):
                last = event
    finally:
        pump.close()
    if last is None:
        raise ChunkCacheError("The answer ended without a result.")
    return last
