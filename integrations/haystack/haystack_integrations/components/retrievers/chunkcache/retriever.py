"""The server's search as a component."""

from __future__ import annotations

import asyncio
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.document_stores.types import FilterPolicy, apply_filter_policy
from haystack_integrations.document_stores.chunkcache import ChunkCacheDocumentStore


@component
class ChunkCacheRetriever:
    """The best passages of a `ChunkCacheDocumentStore`, as the server ranks them.

    Args:
        filters: of the metadata; what the server cannot search by is a `FilterError`.
        top_k: at most 50.
        filter_policy: whether filters of a run replace these or are joined with them.
    """

    def __init__(
        self,
        document_store: ChunkCacheDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: FilterPolicy | str = FilterPolicy.REPLACE,
    ) -> None:
        if not isinstance(document_store, ChunkCacheDocumentStore):
            raise ValueError("document_store: must be a ChunkCacheDocumentStore")
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        self.filter_policy = (
            FilterPolicy.from_str(filter_policy)
            if isinstance(filter_policy, str)
            else filter_policy
        )

    def to_dict(self) -> dict[str, Any]:
        """How to make it again."""
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChunkCacheRetriever:
        """Made again from `to_dict`."""
        given = data["init_parameters"]["document_store"]
        if isinstance(given, dict):
            made = ChunkCacheDocumentStore.from_dict(given)
            data["init_parameters"]["document_store"] = made
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """The best passages, best first."""
        wanted = apply_filter_policy(self.filter_policy, self.filters, filters)
        number = self.top_k if top_k is None else top_k
        return {"documents": self.document_store.search(query, filters=wanted, top_k=number)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """See `run`."""
        return await asyncio.to_thread(self.run, query, filters, top_k)
