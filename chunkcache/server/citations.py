"""Citations in the one form chat applications show: `url_citation` annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.protocol import Citation, Json


def citation_url(citation: Citation) -> str:
    """The document's own address, or `chunkcache://DOCUMENT#chars=START-END`."""
    if citation.url:
        return citation.url
    document = quote(citation.document_id, safe="")
    return f"chunkcache://{document}#chars={citation.start_char}-{citation.end_char}"


def url_citations(citations: Sequence[Citation], answer_chars: int) -> list[Json]:
    """One annotation per passage; each spans the whole answer, 0 to `answer_chars` characters.

    Which sentence draws on which passage is not known, and is not made up.
    """
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "url": citation_url(citation),
                "title": citation.title,
                "start_index": 0,
                "end_index": answer_chars,
            },
        }
        for citation in citations
    ]
