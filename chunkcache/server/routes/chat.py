"""`POST /v1/chat/completions` and `POST /v1/completions`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from chunkcache.server.answering import begun, citer_of, finished, pump_of
from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.deps import ModelsDep, ServiceDep, TenantDep
from chunkcache.server.replies import ChatReply, TextReply
from chunkcache.server.shapes.chat import ChatRequest
from chunkcache.server.shapes.completions import CompletionRequest
from chunkcache.server.shapes.generation import StreamOptions
from chunkcache.server.sse import EventStream, frames

if TYPE_CHECKING:
    from chunkcache.server.pump import AnswerPump
    from chunkcache.server.replies import Reply
    from chunkcache.server.shapes.generation import GenerationRequest

router = APIRouter(route_class=BoundedRoute)


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    body: ChatRequest, request: Request, service: ServiceDep, models: ModelsDep, tenant: TenantDep
) -> Response:
    """Answer the last user turn from retrieved or given documents, with citations."""
    model = models.chat(body.model)
    asked = body.to_answer_request(tenant, model)
    citer = citer_of(asked, body, request, service)
    reply = ChatReply(model.id, citer, body.call_finish_reason)
    return await _response(body, reply, pump_of(asked, request, service))


@router.post("/v1/completions", response_model=None)
async def create_completion(
    body: CompletionRequest,
    request: Request,
    service: ServiceDep,
    models: ModelsDep,
    tenant: TenantDep,
) -> Response:
    """Answer a prompt as a question; under a plain model id continue it as it stands."""
    model = models.chat(body.model)
    asked = body.to_answer_request(tenant, model)
    reply = TextReply(model.id, citer_of(asked, body, request, service))
    return await _response(body, reply, pump_of(asked, request, service))


async def _response(body: GenerationRequest, reply: Reply, pump: AnswerPump) -> Response:
    if not body.stream:
        return JSONResponse(reply.whole(await finished(pump)))
    started = await begun(pump)
    options = body.stream_options or StreamOptions()
    return EventStream(frames(reply, started, pump, options, body.n or 1), pump)
