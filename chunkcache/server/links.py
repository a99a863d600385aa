"""Links to passages: signed addresses of `/documents/...` that a browser can open without a key.

A browser that follows a citation cannot send an API key. So the link itself carries the right to
see one passage and its surroundings: who was answered, which characters of which document, and a
signature over all of it. It says nothing that the answer did not say, cannot be altered to show
another passage, another document or another tenant's, and is dead once the document is removed or
its time is over. Whoever is given the link can read the passage, as whoever has the answer can.
"""

from __future__ import annotations

import hmac
import json
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

from pydantic import Field

from chunkcache.errors import LinkExpired, NotFound
from chunkcache.retrieval.documents import passage_digest
from chunkcache.server.shapes.body import Parameters

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.protocol import Citation

FRAGMENT: Final = "passage"
"""The id of the highlighted element, so that the browser scrolls to it."""

_SIGNATURE_CHARS = 32  # of hexadecimal: 128 bits


class LinkQuery(Parameters):
    """The query string of a link."""

    tenant: str
    store: str
    start: int = Field(ge=0)
    end: int = Field(ge=0)
    text: str = Field(description="digest of the passage, to tell that the document has changed")
    expires: int = Field(ge=0, description="seconds since the epoch")
    signature: str


@dataclass(frozen=True, slots=True)
class PassageRef:
    """Which characters of which document of whom."""

    document_id: str
    tenant: str
    store: str
    start: int
    end: int
    text: str  # its `passage_digest`

    @classmethod
    def of(cls, citation: Citation, *, tenant: str, store: str) -> PassageRef:
        """The passage of a citation from a tenant's vector store."""
        return cls(
            document_id=citation.document_id,
            tenant=tenant,
            store=store,
            start=citation.start_char,
            end=citation.end_char,
            text=passage_digest(citation.text),
        )


class LinkSigner:
    """Makes links below a base address, and reads them back.

    Args:
        key: `Service.link_key`.
        lifetime_s: how long a link works, from when it is made; `server.link_lifetime_s`.
        clock: seconds since the epoch.
    """

    def __init__(
        self, key: bytes, lifetime_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self._lifetime_s = lifetime_s
        self._clock = clock

    def url(self, base_url: str, ref: PassageRef) -> str:
        """The address of a passage, its signature and the fragment included."""
        expires = math.ceil(self._clock() + self._lifetime_s)
        fields = {name: value for name, value in asdict(ref).items() if name != "document_id"}
        fields |= {"expires": expires, "signature": self._signature(ref, expires)}
        path = quote(ref.document_id, safe="")
        return f"{base_url.rstrip('/')}/documents/{path}?{urlencode(fields)}#{FRAGMENT}"

    def read(self, document_id: str, query: LinkQuery) -> PassageRef:
        """What a link points to.

        Raises:
            NotFound: this server did not make it, or not like this.
            LinkExpired: it did, too long ago.
        """
        ref = PassageRef(document_id, **query.model_dump(exclude={"expires", "signature"}))
        expected = self._signature(ref, query.expires)
        # Bytes, because compare_digest takes no text outside ASCII.
        if not hmac.compare_digest(expected.encode(), query.signature.encode()):
            raise NotFound("No such passage: the link is incomplete or was altered.")
        if self._clock() >= query.expires:
            raise LinkExpired("This link has expired. Ask again for an answer with a new one.")
        return ref

    def _signature(self, ref: PassageRef, expires: int) -> str:
        message = json.dumps({**asdict(ref), "expires": expires}, sort_keys=True).encode()
        return hmac.digest(self._key, message, "sha256").hex()[:_SIGNATURE_CHARS]
