"""A vector store of the server's, which embeds and searches itself."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from chunkcache_client.errors import InvalidRequest, UnsupportedField
from langchain_core.vectorstores import VectorStore

from langchain_chunkcache.documents import document_of, passage_of_text, text_of
from langchain_chunkcache.embeddings import ChunkCacheEmbeddings
from langchain_chunkcache.filters import server_filter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings

    from chunkcache_client import Client


_ANY_COSINE = 1e-6


class ChunkCacheVectorStore(VectorStore):
    """Documents under ids of your own; one that is longer than a chunk is found by its passages.

    Metadata may hold texts of up to 512 characters, numbers and truths, 15 fields at most. Adding
    under a known id replaces; the same content again is not sent. Calls that need ids (adding,
    deleting, `get_by_ids`) list the store first, 100 documents a request.

    Args:
        vector_store_id: of a vector store that exists; every server has `default`.
        connection: `base_url`, `api_key`, `timeout`, `max_retries`.
    """

    def __init__(self, vector_store_id: str = "default", **connection: Any) -> None:
        self.vector_store_id = vector_store_id
        self._embeddings = ChunkCacheEmbeddings(**connection)

    @property
    def client(self) -> Client:
        """The client that it sends through."""
        return self._embeddings.client

    @property
    def embeddings(self) -> Embeddings:
        """The server's own embedder."""
        return self._embeddings

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store with these texts in it. See the constructor for the rest.

        Raises:
            UnsupportedField: an embedder that is not the server's.
        """
        if embedding is not None and not isinstance(embedding, ChunkCacheEmbeddings):
            raise UnsupportedField(
                f"embedding: got {type(embedding).__name__}, must be ChunkCacheEmbeddings or None. "
                "Hint: the server embeds what it searches; choose its embedder there.",
                param="embedding",
            )
        store = cls(**kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Keep texts; returns their ids, made up where none is given.

        Raises:
            InvalidRequest: a text or its metadata cannot be kept; the message names the field.
        """
        _refuse_others("add_texts", kwargs)
        contents = list(texts)
        metadata = metadatas if metadatas is not None else [{} for _ in contents]
        named = [one or str(uuid.uuid4()) for one in ids or [None] * len(contents)]
        kept = [text_of(*item) for item in zip(named, contents, metadata, strict=True)]
        self.client.put_texts(kept, vector_store_id=self.vector_store_id)
        return named

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Take documents out; ids that are not there are passed over.

        Raises:
            InvalidRequest: there are no ids. Nothing is deleted by leaving them out.
        """
        _refuse_others("delete", kwargs)
        if ids is None:
            raise InvalidRequest.of("ids", ids, "a list of ids", "delete the store on the server")
        self.client.discard_texts(ids, vector_store_id=self.vector_store_id)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Whole documents, in the order of the ids; those that are not there are left out."""
        found = self.client.read_texts(ids, vector_store_id=self.vector_store_id)
        return [document_of(text) for text in found]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The best passages, best first; at most 50. `filter` as `filters.server_filter` has it."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The same with scores, which only compare within one result (higher is better)."""
        _refuse_others("similarity_search", kwargs)
        hits = self.client.search(
            query, top_k=k, vector_store_id=self.vector_store_id, filters=server_filter(filter)
        )
        return [(passage_of_text(hit), hit.score) for hit in hits]

    def max_marginal_relevance_search(self, *_: Any, **__: Any) -> list[Document]:
        """Not to be had: the server gives no vectors of what it found.

        Raises:
            UnsupportedField: always.
        """
        raise UnsupportedField(
            "search_type 'mmr' is not supported: the server gives no vectors of passages. "
            "Hint: use 'similarity'.",
            param="search_type",
        )

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, *, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """By cosine with the query alone, which is the score; passages without any are left out.

        The scores of other searches are ranks put together and say nothing of how well one fits.
        """
        _refuse_others("similarity_search_with_relevance_scores", kwargs)
        hits = self.client.search(
            query,
            top_k=k,
            vector_store_id=self.vector_store_id,
            filters=server_filter(filter),
            score_threshold=_ANY_COSINE,
        )
        return [(passage_of_text(hit), min(hit.score, 1.0)) for hit in hits]


def _refuse_others(method: str, kwargs: dict[str, Any]) -> None:
    for name, value in kwargs.items():
        raise UnsupportedField(f"{method}: there is no {name!r}, got {value!r}.", param=name)
