"""Links to passages: signed addresses of `/documents/...` that a browser can open without a key.

A browser that follows a citation cannot send an API key. So the link itself carries the right to
see one passage and its surroundings: who was answered, which characters of which document, and a
signature over all of it. It says nothing that the answer did not say, cannot be altered to show
another passage, another document or another tenant's, and is dead once the document is removed.
Whoever is given the link can read the passage, as whoever is given the answer can.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

from pydantic import Field

from chunkcache.errors import NotFound
from chunkcache.server.shapes.body import Body

if TYPE_CHECKING:
    from chunkcache.protocol import Citation

FRAGMENT: Final = "passage"
"""The id of the highlighted element, so that the browser scrolls to it."""

_SIGNATURE_CHARS = 32  # of hexadecimal: 128 bits


class LinkQuery(Body):
    """The query string of a link."""

    tenant: str
    store: str
    start: int = Field(ge=0)
    end: int = Field(ge=0)
    text: str = Field(description="digest of the passage, to tell that the document has changed")
    signature: str


@dataclass(frozen=True, slots=True)
class PassageRef:
    """Which characters of which document of whom."""

    document_id: str
    tenant: str
    store: str
    start: int
    end: int
    text: str

    @classmethod
    def of(cls, citation: Citation, *, tenant: str, store: str) -> PassageRef:
        """The passage of a citation from a tenant's vector store."""
        return cls(
            document_id=citation.document_id,
            tenant=tenant,
            store=store,
            start=citation.start_char,
            end=citation.end_char,
            text=text_digest(citation.text),
        )


def text_digest(text: str) -> str:
    """A short digest that tells an edited passage from the one that was cited."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class LinkSigner:
    """Makes links below a base address, and reads them back.

    Args:
        key: `Service.link_key`.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def url(self, base_url: str, ref: PassageRef) -> str:
        """The address of a passage, its signature and the fragment included."""
        fields = {name: value for name, value in asdict(ref).items() if name != "document_id"}
        query = urlencode({**fields, "signature": self._signature(ref)})
        path = quote(ref.document_id, safe="")
        return f"{base_url.rstrip('/')}/documents/{path}?{query}#{FRAGMENT}"

    def read(self, document_id: str, query: LinkQuery) -> PassageRef:
        """What a link points to.

        Raises:
            NotFound: this server did not make it, or not like this.
        """
        ref = PassageRef(document_id, **query.model_dump(exclude={"signature"}))
        # Bytes, because compare_digest takes no text outside ASCII.
        if not hmac.compare_digest(self._signature(ref).encode(), query.signature.encode()):
            raise NotFound("No such passage: the link is incomplete or was altered.")
        return ref

    def _signature(self, ref: PassageRef) -> str:
        message = json.dumps(asdict(ref), sort_keys=True).encode()
        return hmac.digest(self._key, message, "sha256").hex()[:_SIGNATURE_CHARS]
