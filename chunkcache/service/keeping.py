"""Terms of chunks that are stored: pinned, preferred, left to expire, or as usual again."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from chunkcache.chunk import Retention, Terms
from chunkcache.console.states import Kept
from chunkcache.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from chunkcache.chunk import Chunk
    from chunkcache.keep import Keep
    from chunkcache.protocol import GivenDocument
    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.service.given import GivenDocuments
    from chunkcache.service.runtime import Runtime


def terms_of(tenant: str, keep: Keep) -> Terms:
    """What a user wishes, as of now."""
    expires_s = math.inf if keep.expires_after_s is None else time.time() + keep.expires_after_s
    return Terms(tenant, keep.priority, Retention[keep.retention.upper()], expires_s)


class Keeping:
    """Finds the chunks that are meant, and puts what is stored of them on other terms. Thread-safe.

    Args:
        given: splits texts as documents of a request's body are split.
        runtime: gives the tiers; loads the model if nobody has yet.
        salt_of: the salt of a tenant's keys.
        refresh: splits again what another tokenizer or chunk size split, of a tenant and a
            collection: what that left in the store is wanted by nobody any more.
    """

    def __init__(
        self,
        catalog: Catalog,
        given: Callable[[], GivenDocuments],
        runtime: Callable[[], Runtime],
        salt_of: Callable[[str], bytes],
        refresh: Callable[[str, str], None],
    ) -> None:
        self._catalog = catalog
        self._given = given
        self._runtime = runtime
        self._salt_of = salt_of
        self._refresh = refresh

    def chunks(
        self,
        tenant: str,
        collection: str,
        *,
        document_ids: Sequence[str] | None = None,
        texts: Sequence[GivenDocument] | None = None,
    ) -> Iterator[Chunk]:
        """Of the texts, else of the documents, else of the whole collection.

        Documents that are gone are left out.
        """
        if texts is not None:
            return iter(self._given().chunks(texts, tenant))
        if document_ids is None:
            return self._catalog.chunks(tenant, collection)
        read = self._catalog.entries.of_document
        return (chunk for one in document_ids for chunk in read(tenant, collection, one))

    def check_documents(self, tenant: str, collection: str, document_ids: Iterable[str]) -> None:
        """Raises NotFound: one of them, or the collection, is not there. The catalog alone says."""
        self._catalog.collection(tenant, collection)
        for document_id in document_ids:
            if self._catalog.document_info(tenant, collection, document_id) is None:
                raise NotFound(f"No such document: '{document_id[:80]}'.", param="document_ids")

    def keep(
        self,
        keep: Keep,
        *,
        tenant: str,
        collection: str,
        document_ids: Sequence[str] | None = None,
        texts: Sequence[GivenDocument] | None = None,
    ) -> Kept:
        """Put stored chunks on these terms, whatever theirs are; no use.

        Cost: one header read and, where the terms change, one transaction for each chunk.

        Raises:
            NotFound: one of the documents, or the collection, is not there; nothing has changed.
            StoreError: terms could not be written; those written until then stand.
        """
        self.check_documents(tenant, collection, document_ids or ())
        if texts is None:
            self._refresh(tenant, collection)
        runtime, salt, terms = self._runtime(), self._salt_of(tenant), terms_of(tenant, keep)
        runtime.store.flush(remote=False)  # what is still on its way to a tier that keeps terms
        seen: set[bytes] = set()
        stored = warmed_only = 0
        for chunk in self.chunks(tenant, collection, document_ids=document_ids, texts=texts):
            key = runtime.key(runtime.prompts.chunk_ids(chunk), salt)
            if key.digest not in seen:
                seen.add(key.digest)
                kept = runtime.store.retain(key, terms, exactly=True)
                stored += kept is not None
                warmed_only += kept is not None and kept < terms.retention
        return Kept(chunks=len(seen), stored=stored, warmed_only=warmed_only)
