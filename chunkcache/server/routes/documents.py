"""`/documents/{id}`: the page that a citation links to. No key is asked for, a signature is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from chunkcache.errors import LinkExpired, NotFound
from chunkcache.retrieval.documents import passage_digest
from chunkcache.server.deps import ServiceDep
from chunkcache.server.links import LinkQuery, LinkSigner
from chunkcache.server.passage_page import HEADERS, notice_page, passage_page

router = APIRouter()
_CHANGED = "This document has changed since. Here is the passage as the answer had it."
_LOST = (
    "This document has changed since it was cited, and what it said then is no longer kept. "
    "Ask again for an answer from what it says now."
)


@router.get("/documents/{document_id}", response_class=HTMLResponse)
def get_passage(
    document_id: str, query: Annotated[LinkQuery, Query()], service: ServiceDep
) -> HTMLResponse:
    """The cited passage in its document, as HTML. Links come with answers and cannot be guessed.

    What is shown is what was cited: in its surroundings while they are what they were, else alone.
    """
    signer = LinkSigner(service.link_key, service.settings.server.link_lifetime_s)
    try:
        ref = signer.read(document_id, query)
        info, text = service.document_text(document_id, tenant=ref.tenant, collection=ref.store)
        title = info.title or document_id
        if passage_digest(text[ref.start : ref.end]) == ref.text:
            return HTMLResponse(passage_page(title, text, ref.start, ref.end), headers=HEADERS)
        former = service.former_passage(
            document_id, ref.text, tenant=ref.tenant, collection=ref.store
        )
    except LinkExpired as error:
        return HTMLResponse(notice_page("Link expired", error.message), 410, HEADERS)
    except NotFound as error:
        return HTMLResponse(notice_page("Not found", error.message), 404, HEADERS)
    if former is None:
        return HTMLResponse(notice_page(title, _LOST), 410, HEADERS)
    return HTMLResponse(passage_page(title, former, 0, len(former), _CHANGED), headers=HEADERS)
