"""Where the KV of a document's chunks is: a look that counts as no use and moves nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from chunkcache.console.states import COUNTED_CHUNKS, ChunkState, DocumentState
from chunkcache.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.chunk import Chunk
    from chunkcache.protocol import DocumentInfo
    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.service.runtime import Runtime


class KVStates:
    """Looks up chunks in the tiers. Thread-safe.

    Args:
        runtime: gives the tiers; loads the model if nobody has yet.
        salt_of: the salt of a tenant's keys.
    """

    def __init__(
        self, catalog: Catalog, runtime: Callable[[], Runtime], salt_of: Callable[[str], bytes]
    ) -> None:
        self._catalog = catalog
        self._runtime = runtime
        self._salt_of = salt_of

    def of_chunks(
        self, document_id: str, *, tenant: str, collection: str, offset: int, limit: int
    ) -> tuple[DocumentInfo, list[ChunkState]]:
        """A document, and `limit` of its chunks from the `offset`th on.

        Cost: tokenising a title and one header read for each chunk.

        Raises:
            NotFound: no such document or collection.
        """
        info = self._info(document_id, tenant, collection)
        chunks = self._catalog.entries.page_of_document(
            tenant, collection, document_id, offset=offset, limit=limit
        )
        tiers = self._tiers(chunks, tenant)
        return info, [
            ChunkState(
                chunk_id=c.chunk_id, ordinal=ordinal, title=c.title, headings=list(c.headings),
                text=c.text, tokens=len(c.token_ids), start_char=c.start_char,
                end_char=c.end_char, tier=tier,
            )
            for ordinal, (c, tier) in enumerate(zip(chunks, tiers, strict=True), start=offset)
        ]  # fmt: skip

    def of_documents(
        self, document_ids: Sequence[str], *, tenant: str, collection: str
    ) -> list[DocumentState]:
        """One summary for each document, over its first `COUNTED_CHUNKS` chunks.

        Raises:
            NotFound: no such document or collection.
        """
        states = []
        for document_id in document_ids:
            info = self._info(document_id, tenant, collection)
            chunks = self._catalog.entries.page_of_document(
                tenant, collection, document_id, offset=0, limit=COUNTED_CHUNKS
            )
            tiers = Counter(tier for tier in self._tiers(chunks, tenant) if tier is not None)
            states.append(
                DocumentState(
                    document_id=document_id, chunks=info.num_chunks, counted=len(chunks),
                    tiers=dict(tiers),
                )
            )  # fmt: skip
        return states

    def _info(self, document_id: str, tenant: str, collection: str) -> DocumentInfo:
        info = self._catalog.document_info(tenant, collection, document_id)
        if info is None:
            raise NotFound(f"No such document: '{document_id[:80]}'.", param="document_id")
        return info

    def _tiers(self, chunks: Sequence[Chunk], tenant: str) -> list[str | None]:
        runtime, salt = self._runtime(), self._salt_of(tenant)
        keys = [runtime.key(runtime.prompts.chunk_ids(chunk), salt) for chunk in chunks]
        return runtime.tiers_of(keys)
