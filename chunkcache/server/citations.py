"""Citations as chat applications show them: `url_citation` annotations, or a list of sources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from chunkcache.server.links import PassageRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.protocol import Citation, Json
    from chunkcache.server.links import LinkSigner

_LABEL_CHARS = 200
_HTTP = re.compile(r"https?://[^\s/?#][^\s<>\"]*", re.IGNORECASE)
"""An address that may become a link: nothing else does, for documents can say what they like."""


@dataclass(frozen=True, slots=True)
class Citer:
    """Makes the annotations of one answer.

    Args:
        signer: signs links to passages of the vector store; None when the documents came with the
            request: this server does not have them and cannot show them.
        base_url: where the reader's browser reaches this server.
        tenant, store: whose documents, and in which vector store.
        as_text: whether answers are to end with a list of their sources.
    """

    signer: LinkSigner | None
    base_url: str
    tenant: str
    store: str
    as_text: bool = False

    def annotations(self, citations: Sequence[Citation], answer_chars: int) -> list[Json]:
        """One annotation per passage; each spans the whole answer, 0 to `answer_chars` characters.

        Which sentence draws on which passage is not known, and is not made up.
        """
        return [
            {
                "type": "url_citation",
                "url_citation": {
                    "url": self.url(citation),
                    "title": label(citation),
                    "start_index": 0,
                    "end_index": answer_chars,
                },
            }
            for citation in citations
        ]

    def sources(self, citations: Sequence[Citation]) -> str:
        """The passages as lines that follow an answer; nothing unless that is asked for.

        They follow a blank line and `Sources:`, one a line: `[1] title: address`.
        """
        if not self.as_text or not citations:
            return ""
        lines = dict.fromkeys(self._source(citation) for citation in citations)
        return "\n\nSources:\n" + "\n".join(
            f"[{number}] {line}" for number, line in enumerate(lines, start=1)
        )

    def _source(self, citation: Citation) -> str:
        url = self.url(citation)
        return f"{label(citation)}: {url}" if _HTTP.fullmatch(url) else label(citation)

    def url(self, citation: Citation) -> str:
        """The document's own address (http or https), else this server's page of the passage.

        A document that came with the request and has no address gets a name that is no link,
        `urn:chunkcache:ID#chars=START-END` (RFC 5147), so that passages stay apart in a list.
        """
        if _HTTP.fullmatch(citation.url):
            return citation.url
        if self.signer is not None:
            store = citation.collection or self.store
            ref = PassageRef.of(citation, tenant=self.tenant, store=store)
            return self.signer.url(self.base_url, ref)
        document = quote(citation.document_id, safe="")
        return f"urn:chunkcache:{document}#chars={citation.start_char}-{citation.end_char}"


def label(citation: Citation) -> str:
    """What a reader calls the document: its title, of an address the last part, else its id."""
    title = " ".join(citation.title.split())
    if _HTTP.fullmatch(title):
        parts = urlsplit(title)
        title = unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.netloc
    return title[:_LABEL_CHARS] or citation.document_id
