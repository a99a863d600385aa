"""The server's search as a retriever, over nodes and whatever else a vector store holds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import (
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.retrievers.chunkcache.filters import server_filter

from chunkcache_client import DEFAULT_URL, AsyncClient, Client, Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.schema import BaseNode, QueryBundle
    from llama_index.core.vector_stores.types import MetadataFilters

    from chunkcache_client import Hit

API_KEY = "CHUNKCACHE_API_KEY"
_REF_DOC_ID = "ref_doc_id"


class ChunkCacheRetriever(BaseRetriever):
    """The best passages of a vector store as nodes.

    A node that was added comes back under its own id, with its metadata and `ref_doc_id`. What came
    otherwise, and passages of nodes that are longer than the server's chunks, have the ids of the
    server's chunks and their document as source.

    Args:
        vector_store_id: of a vector store that exists; every server has `default`.
        similarity_top_k: at most 50.
        filters: of the metadata; what the server cannot search by is refused by name.
        api_key: for servers that ask for one; else CHUNKCACHE_API_KEY of the environment.
        timeout: seconds.
    """

    def __init__(
        self,
        vector_store_id: str = "default",
        *,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        similarity_top_k: int = 4,
        filters: MetadataFilters | None = None,
        timeout: float | None = 600.0,
        max_retries: int = 2,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        self.vector_store_id = vector_store_id
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self._connection: dict[str, Any] = {
            "base_url": base_url,
            "api_key": api_key or os.environ.get(API_KEY) or None,
            "timeout_s": timeout,
            "retries": max_retries,
        }
        self.client = Client(**self._connection)
        super().__init__(callback_manager=callback_manager)

    def add_nodes(self, nodes: Sequence[BaseNode]) -> list[str]:
        """Keep nodes under their ids, in place of those with the same; returns the ids.

        Raises:
            InvalidRequest: a node or its metadata cannot be kept; the message names the field.
        """
        texts = [_text_of(node) for node in nodes]
        return self.client.put_texts(texts, vector_store_id=self.vector_store_id)

    def delete_nodes(self, node_ids: Sequence[str]) -> int:
        """Take nodes out; returns how many were there."""
        return self.client.discard_texts(node_ids, vector_store_id=self.vector_store_id)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self.client.search(query_bundle.query_str, **self._wanted())
        return [_node_of(hit) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        async with AsyncClient(**self._connection) as client:
            hits = await client.search(query_bundle.query_str, **self._wanted())
        return [_node_of(hit) for hit in hits]

    def _wanted(self) -> dict[str, Any]:
        return {
            "top_k": self.similarity_top_k,
            "vector_store_id": self.vector_store_id,
            "filters": server_filter(self.filters),
        }


def _text_of(node: BaseNode) -> Text:
    metadata = dict(node.metadata)
    title = metadata.get("title") or metadata.get("file_name") or ""
    if node.ref_doc_id is not None:
        metadata[_REF_DOC_ID] = node.ref_doc_id
    return Text(node.node_id, node.get_content(MetadataMode.NONE), str(title), metadata)


def _node_of(hit: Hit) -> NodeWithScore:
    metadata: dict[str, Any] = dict(hit.attributes)
    is_whole = hit.num_chunks == 1
    source = metadata.pop(_REF_DOC_ID, None if is_whole else hit.text_id)
    relationships: Any = {}
    if source is not None:
        relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=str(source))
    node = TextNode(
        id_=hit.text_id if is_whole else hit.chunk_id,
        text=hit.text,
        metadata=metadata,
        relationships=relationships,
        start_char_idx=hit.start_char,
        end_char_idx=hit.end_char,
    )
    return NodeWithScore(node=node, score=hit.score)
