"""`/documents/{id}`: the page that a citation links to. No key is asked for, a signature is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from chunkcache.errors import NotFound
from chunkcache.server.deps import ServiceDep
from chunkcache.server.links import LinkQuery, LinkSigner, text_digest
from chunkcache.server.passage_page import HEADERS, notice_page, passage_page

router = APIRouter()


@router.get("/documents/{document_id}", response_class=HTMLResponse)
def get_passage(
    document_id: str, query: Annotated[LinkQuery, Query()], service: ServiceDep
) -> HTMLResponse:
    """The cited passage in its document, as HTML. Links come with answers and cannot be guessed."""
    try:
        ref = LinkSigner(service.link_key).read(document_id, query)
        info, text = service.document_text(document_id, tenant=ref.tenant, collection=ref.store)
    except NotFound as error:
        return HTMLResponse(notice_page("Not found", error.message), 404, HEADERS)
    title = info.title or document_id
    if text_digest(text[ref.start : ref.end]) != ref.text:
        notice = "This document has changed since it was cited; the passage is no longer in it."
        return HTMLResponse(notice_page(title, notice), 410, HEADERS)
    return HTMLResponse(passage_page(title, text, ref.start, ref.end), headers=HEADERS)
