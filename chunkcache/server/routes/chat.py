"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from chunkcache.errors import ChunkCacheError
from chunkcache.protocol import AnswerFinished, AnswerStarted
from chunkcache.server.citations import Citer
from chunkcache.server.deps import ServiceDep, TenantDep, require_model
from chunkcache.server.links import LinkSigner
from chunkcache.server.pump import AnswerPump
from chunkcache.server.shapes.chat import ChatRequest
from chunkcache.server.sse import EventStream, Reply, frames

if TYPE_CHECKING:
    import threading

    from chunkcache.protocol import AnswerRequest
    from chunkcache.server.backend import RunningAnswer, Service

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    body: ChatRequest, request: Request, service: ServiceDep, tenant: TenantDep
) -> Response:
    """Answer the last user turn from retrieved or given documents, with citations."""
    require_model(body.model, service.model_id)
    asked = body.to_answer_request(tenant)
    reply = Reply(service.model_id, _citer(asked, request, service))

    def start(gone: threading.Event) -> RunningAnswer:
        return service.start(asked, gone=gone)

    pump = AnswerPump(start, request.receive)
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return await _stream(pump, reply, include_usage=include_usage)
    return JSONResponse(reply.completion(await _finish(pump)))


def _citer(asked: AnswerRequest, request: Request, service: Service) -> Citer:
    held = asked.documents is None
    return Citer(
        signer=LinkSigner(service.link_key) if held else None,
        base_url=service.settings.server.public_url or str(request.base_url),
        tenant=asked.tenant,
        store=asked.collection,
    )


async def _stream(pump: AnswerPump, reply: Reply, *, include_usage: bool) -> EventStream:
    try:
        # An error before the first event still gets its own HTTP status.
        started = await anext(pump)
        if not isinstance(started, AnswerStarted):
            raise ChunkCacheError("The answer did not open with its passages.")
    except BaseException:
        pump.close()
        raise
    return EventStream(frames(reply, started, pump, include_usage), pump)


async def _finish(pump: AnswerPump) -> AnswerFinished:
    finished: AnswerFinished | None = None
    try:
        # To the very end: an answer that is left before it is cancelled.
        async for event in pump:
            if isinstance(event, AnswerFinished):
                finished = event
    finally:
        pump.close()
    if finished is None:
        raise ChunkCacheError("The answer ended without a result.")
    return finished
