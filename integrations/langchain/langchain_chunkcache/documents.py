"""Documents and passages in both directions."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document

from chunkcache_client import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chunkcache_client import Hit

START_INDEX = "start_index"  # as LangChain's text splitters call it


def text_of(text_id: str, content: str, metadata: Mapping[str, Any]) -> Text:
    """What the server keeps of a document. Its title is that of the metadata, else the source's."""
    title = metadata.get("title") or PurePath(str(metadata.get("source") or "")).name
    return Text(text_id, content, str(title), metadata)


def document_of(text: Text) -> Document:
    """A document as it was added."""
    return Document(id=text.id, page_content=text.text, metadata=dict(text.attributes))


def passage_of_text(hit: Hit) -> Document:
    """A passage of a document that was added, under the document's id.

    Where a long document was split by the server, `start_index` says where the passage begins.
    """
    metadata: dict[str, Any] = dict(hit.attributes)
    if hit.num_chunks != 1:
        metadata.setdefault(START_INDEX, hit.start_char)
    return Document(id=hit.text_id, page_content=hit.text, metadata=metadata)


def passage_of_document(hit: Hit) -> Document:
    """A passage of whatever the vector store holds, under an id of its own."""
    found = {
        "title": hit.title,
        "source": hit.url or hit.filename,
        "document_id": hit.text_id,
        START_INDEX: hit.start_char,
        "score": hit.score,
    }
    return Document(id=hit.chunk_id, page_content=hit.text, metadata={**found, **hit.attributes})


def given_document(document: Any) -> Any:
    """A document for a question, as the server takes it."""
    if not isinstance(document, Document):
        return document
    metadata = document.metadata
    title, url = str(metadata.get("title") or ""), str(metadata.get("source") or "")
    is_address = url.startswith(("http://", "https://"))
    return {
        "id": document.id or "",
        "title": title or ("" if is_address else PurePath(url).name),
        "text": document.page_content,
        "url": url if is_address else "",
    }
