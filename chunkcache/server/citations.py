"""Citations in the one form chat applications show: `url_citation` annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from chunkcache.server.links import PassageRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.protocol import Citation, Json
    from chunkcache.server.links import LinkSigner


@dataclass(frozen=True, slots=True)
class Citer:
    """Makes the annotations of one answer.

    Args:
        signer: signs links to passages of the vector store; None when the documents came with the
            request: this server does not have them and cannot show them.
        base_url: where the reader's browser reaches this server.
        tenant, store: whose documents, and in which vector store.
    """

    signer: LinkSigner | None
    base_url: str
    tenant: str
    store: str

    def annotations(self, citations: Sequence[Citation], answer_chars: int) -> list[Json]:
        """One annotation per passage; each spans the whole answer, 0 to `answer_chars` characters.

        Which sentence draws on which passage is not known, and is not made up.
        """
        return [
            {
                "type": "url_citation",
                "url_citation": {
                    "url": self.url(citation),
                    "title": citation.title or citation.document_id,
                    "start_index": 0,
                    "end_index": answer_chars,
                },
            }
            for citation in citations
        ]

    def url(self, citation: Citation) -> str:
        """The document's own address, else this server's page of the passage.

        A document that came with the request and has no address gets a name that is no link,
        `urn:chunkcache:ID#chars=START-END` (RFC 5147), so that passages stay apart in a list.
        """
        if citation.url:
            return citation.url
        if self.signer is not None:
            ref = PassageRef.of(citation, tenant=self.tenant, store=self.store)
            return self.signer.url(self.base_url, ref)
        document = quote(citation.document_id, safe="")
        return f"urn:chunkcache:{document}#chars={citation.start_char}-{citation.end_char}"
