"""The server's search as a retriever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.retrievers import BaseRetriever
from pydantic import Field

from langchain_chunkcache.connection import Connection
from langchain_chunkcache.documents import passage_of_document
from langchain_chunkcache.filters import server_filter

if TYPE_CHECKING:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
    )
    from langchain_core.documents import Document


class ChunkCacheRetriever(Connection, BaseRetriever):
    """The best passages of a vector store, whoever filled it.

    Metadata of a passage: `title`, `source`, `document_id`, `start_index`, `score`, and the
    attributes of its document. `k` and `filter` may be given per call.
    """

    vector_store_id: str = "default"
    k: int = Field(4, ge=1, le=50)
    filter: Any = None

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Any = None,
    ) -> list[Document]:
        wanted = self._wanted(k, filter)
        return [passage_of_document(hit) for hit in self.client.search(query, **wanted)]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Any = None,
    ) -> list[Document]:
        async with self.async_client() as client:
            hits = await client.search(query, **self._wanted(k, filter))
        return [passage_of_document(hit) for hit in hits]

    def _wanted(self, k: int | None, given: Any) -> dict[str, Any]:
        return {
            "top_k": self.k if k is None else k,
            "vector_store_id": self.vector_store_id,
            "filters": server_filter(self.filter if given is None else given),
        }
