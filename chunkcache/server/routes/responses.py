"""`/v1/responses`: the same answers as chat completions, in OpenAI's newer shape."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.server.answering import begun, citer_of, finished, pump_of
from chunkcache.server.attachments import attachments_of
from chunkcache.server.bodies import BoundedRoute
from chunkcache.server.deps import ModelsDep, ResponsesDep, ServiceDep, ShelfDep, TenantDep
from chunkcache.server.paging import PageQuery, page
from chunkcache.server.response_events import ResponseEvents
from chunkcache.server.response_reply import ResponseReply, input_items
from chunkcache.server.shapes.responses import ResponseRequest
from chunkcache.server.sse import EventStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.protocol import Json, Message
    from chunkcache.server.backend import Service
    from chunkcache.server.files import FileShelf
    from chunkcache.server.response_reply import Files
    from chunkcache.server.response_store import ResponseStore

router = APIRouter(prefix="/v1/responses", route_class=BoundedRoute)


@router.post("", response_model=None)
async def create_response(
    body: ResponseRequest,
    request: Request,
    service: ServiceDep,
    shelf: ShelfDep,
    models: ModelsDep,
    responses: ResponsesDep,
    tenant: TenantDep,
) -> Response:
    """Answer the last message, from the vector store of a `file_search` or as a chat would."""
    model = models.chat(body.model)
    earlier: Sequence[Message] = ()
    if body.previous_response_id is not None:
        earlier = await to_thread.run_sync(_earlier, responses, tenant, body.previous_response_id)
    top_k = service.settings.retrieval.top_k
    asked = body.to_answer_request(tenant, model, earlier, top_k)
    searches = body.file_search is not None
    citer = citer_of(asked, body, request, service)
    query = asked.question if searches else None
    reply = ResponseReply(body, model.id, citer, asked.collection, query)
    stores = (asked.collection, *asked.also) if searches else ()
    files = await to_thread.run_sync(_files, service, shelf, tenant, stores)
    await to_thread.run_sync(_require_stores, service, tenant, body.stores_not_searched)
    pump = pump_of(asked, request, service)

    async def keep(response: Json) -> None:
        if body.store is False:
            return
        turns = [*earlier, *body.turns(), reply.turn(response["output"][-1])]
        await to_thread.run_sync(responses.keep, tenant, response, input_items(body), turns)

    if body.stream:
        started = await begun(pump)
        events = ResponseEvents(reply, files, keep)
        return EventStream(events.frames(started, pump), pump)
    response = reply.finished(await finished(pump), files)
    await keep(response)
    return JSONResponse(response)


@router.get("/{response_id}", response_model=None)
def get_response(response_id: str, responses: ResponsesDep, tenant: TenantDep) -> Response:
    """A response that was kept."""
    kept = responses.get(tenant, response_id)
    return Response(kept.body, media_type="application/json")


@router.delete("/{response_id}", response_model=None)
def delete_response(response_id: str, responses: ResponsesDep, tenant: TenantDep) -> JSONResponse:
    """Forget a response; those that went on from it stay."""
    responses.delete(tenant, response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.get("/{response_id}/input_items", response_model=None)
def list_input_items(
    response_id: str,
    query: Annotated[PageQuery, Query()],
    responses: ResponsesDep,
    tenant: TenantDep,
) -> JSONResponse:
    """What was asked; the turns before it are those of the response it went on from."""
    kept = responses.get(tenant, response_id)
    return JSONResponse(page(json.loads(kept.input_items), query))


def _earlier(responses: ResponseStore, tenant: str, response_id: str) -> Sequence[Message]:
    try:
        return responses.get(tenant, response_id).turns
    except NotFound as error:
        refused = InvalidRequest(f"Previous {error.message[0].lower()}{error.message[1:]}")
        refused.param, refused.code = "previous_response_id", "previous_response_not_found"
        raise refused from error


def _require_stores(service: Service, tenant: str, store_ids: Sequence[str]) -> None:
    """Raises NotFound: one of them is not there."""
    for store_id in store_ids:
        service.collection(store_id, tenant=tenant)


def _files(service: Service, shelf: FileShelf, tenant: str, store_ids: Sequence[str]) -> Files:
    """The files of vector stores by store and document, which is what passages name."""
    return {
        (store_id, held.document.document_id): (
            file_id,
            shelf.name(tenant, file_id) or held.document.title or file_id,
            held.attributes,
        )
        for store_id in store_ids
        for file_id, held in attachments_of(service, shelf, tenant, store_id).items()
        if held.document is not None
    }
