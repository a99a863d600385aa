"""A vector store of a chunkcache server as Haystack's document store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from haystack import Document, default_from_dict, default_to_dict
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.utils import Secret
from haystack.utils.filters import document_matches_filter
from haystack_integrations.document_stores.chunkcache.filters import server_filter

from chunkcache_client import DEFAULT_URL, Client, Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chunkcache_client import Hit

API_KEY = "CHUNKCACHE_API_KEY"


class ChunkCacheDocumentStore:
    """Documents under their own ids; the server embeds and searches them itself.

    Kept of a document: id, content and meta (texts of up to 512 characters, numbers and truths, 15
    fields at most; anything else is refused by name). Embeddings are not: the server has its own.
    Documents without content cannot be kept. `filter_documents` lists the store, 100 documents a
    request, and compares here; a retriever's filters are the server's.

    Args:
        vector_store_id: of a vector store that exists; every server has `default`.
        api_base_url: the server's address.
        api_key: for servers that ask for one.
        timeout: seconds.
    """

    def __init__(
        self,
        vector_store_id: str = "default",
        api_base_url: str = DEFAULT_URL,
        api_key: Secret | None = Secret.from_env_var(API_KEY, strict=False),  # noqa: B008
        timeout: float | None = 600.0,
        max_retries: int = 2,
    ) -> None:
        self.vector_store_id = vector_store_id
        self.api_base_url = api_base_url
        self.api_key = api_key
        self.timeout = timeout
        self.max_retries = max_retries
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The client, which is made when it is first used."""
        if self._client is None:
            self._client = Client(
                self.api_base_url,
                self.api_key.resolve_value() if self.api_key is not None else None,
                timeout_s=self.timeout,
                retries=self.max_retries,
            )
        return self._client

    def to_dict(self) -> dict[str, Any]:
        """How to make it again; the key is named and not shown."""
        return default_to_dict(
            self,
            vector_store_id=self.vector_store_id,
            api_base_url=self.api_base_url,
            api_key=self.api_key.to_dict() if self.api_key is not None else None,
            timeout=self.timeout,
            max_retries=self.max_retries,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChunkCacheDocumentStore:
        """Made again from `to_dict`."""
        given = data["init_parameters"].get("api_key")
        if isinstance(given, dict):
            data["init_parameters"]["api_key"] = Secret.from_dict(given)
        return default_from_dict(cls, data)

    def count_documents(self) -> int:
        """How many there are."""
        return len(self._stored())

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Those that pass, oldest first, by any filter of Haystack's.

        Raises:
            FilterError: the filter is malformed.
        """
        documents = self._matching(filters)
        texts = self.client.read_texts(
            [document.id for document in documents], vector_store_id=self.vector_store_id
        )
        content = {text.id: text.text for text in texts}
        return [replace(one, content=content[one.id]) for one in documents if one.id in content]

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Keep documents; returns how many were written. Without a policy duplicates fail.

        Raises:
            ValueError: they are not a list of documents.
            DuplicateDocumentError: one is there already, and the policy is to fail.
            DocumentStoreError: one has no content.
        """
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise ValueError("documents: must be a list of haystack.Document")
        known = set(self._stored())
        texts = {}  # of documents with one id the last, if it may overwrite the others
        written = 0
        for document in documents:
            if document.id in known and policy != DuplicatePolicy.OVERWRITE:
                if policy == DuplicatePolicy.SKIP:
                    continue
                raise DuplicateDocumentError(f"ID '{document.id}' already exists.")
            known.add(document.id)
            texts[document.id] = _text_of(document)
            written += 1
        self.client.put_texts(texts.values(), vector_store_id=self.vector_store_id)
        return written

    def delete_documents(self, document_ids: list[str]) -> None:
        """Take documents out; ids that are not there are passed over."""
        self.client.discard_texts(document_ids, vector_store_id=self.vector_store_id)

    def delete_all_documents(self) -> None:
        """Take everything out, however it came in."""
        self.delete_documents(list(self._stored()))

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Take those out that pass; returns how many."""
        return self.client.discard_texts(
            [document.id for document in self._matching(filters)],
            vector_store_id=self.vector_store_id,
        )

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Put these fields into the meta of those that pass; returns how many. Texts stay."""
        documents = self.filter_documents(filters)
        changed = [replace(one, meta={**one.meta, **meta}) for one in documents]
        self.client.put_texts(
            [_text_of(document) for document in changed], vector_store_id=self.vector_store_id
        )
        return len(changed)

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """How many pass."""
        return len(self._matching(filters))

    def search(
        self, query: str, *, filters: dict[str, Any] | None = None, top_k: int = 10
    ) -> list[Document]:
        """The best passages, best first; at most 50. What retrievers call.

        A document that is one chunk to the server comes back under its id. Of a longer one come
        passages, under ids of their own, with `document_id` and `split_idx_start` in the meta.

        Raises:
            FilterError: the server has nothing that says the same.
        """
        hits = self.client.search(
            query,
            top_k=top_k,
            vector_store_id=self.vector_store_id,
            filters=server_filter(filters),
        )
        return [_passage_of(hit) for hit in hits]

    async def count_documents_async(self) -> int:
        """See `count_documents`."""
        return await asyncio.to_thread(self.count_documents)

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """See `filter_documents`."""
        return await asyncio.to_thread(self.filter_documents, filters)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """See `write_documents`."""
        return await asyncio.to_thread(self.write_documents, documents, policy)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """See `delete_documents`."""
        await asyncio.to_thread(self.delete_documents, document_ids)

    def _stored(self) -> dict[str, Mapping[str, Any]]:
        """Ids and meta of everything, oldest first."""
        found = self.client.texts(vector_store_id=self.vector_store_id)
        return {one.id: one.attributes for one in found}

    def _matching(self, filters: dict[str, Any] | None) -> list[Document]:
        """Documents that pass, without content."""
        if filters and "field" not in filters and "conditions" not in filters:
            raise FilterError(f"'conditions' key missing in {filters}")
        stored = self._stored()
        content: dict[str, str] = {}
        if filters and _asks_for_content(filters):
            texts = self.client.read_texts(list(stored), vector_store_id=self.vector_store_id)
            content = {text.id: text.text for text in texts}
        found = [
            Document(id=one, content=content.get(one), meta=dict(meta))
            for one, meta in stored.items()
        ]
        return [one for one in found if not filters or document_matches_filter(filters, one)]


def _asks_for_content(filters: dict[str, Any]) -> bool:
    if "field" in filters:
        return bool(filters["field"] == "content")
    return any(_asks_for_content(condition) for condition in filters.get("conditions", []))


def _text_of(document: Document) -> Text:
    if document.content is None:
        raise DocumentStoreError(
            f"document {document.id!r}: content: got None, must be a text. "
            "Hint: convert files to documents first."
        )
    title = document.meta.get("title") or document.meta.get("file_path") or ""
    return Text(document.id, document.content, str(title), document.meta)


def _passage_of(hit: Hit) -> Document:
    if hit.num_chunks == 1:
        return Document(id=hit.text_id, content=hit.text, meta=hit.attributes, score=hit.score)
    place = {"document_id": hit.text_id, "split_idx_start": hit.start_char}
    meta = {**place, **hit.attributes}
    return Document(id=hit.chunk_id, content=hit.text, meta=meta, score=hit.score)
