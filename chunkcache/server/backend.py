"""What the server needs of the service, as a protocol: `chunkcache.service.ChunkCache` fits it.

Tests put a service without a model behind the same protocol, so every HTTP behaviour is checked
in milliseconds and without weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Sequence

    from chunkcache.config import Settings
    from chunkcache.console import Console
    from chunkcache.console.states import ChunkState, Cleared, DocumentState, Kept, RecordState
    from chunkcache.filters import Comparison, Compound, Membership
    from chunkcache.keep import Keep, Limit
    from chunkcache.metrics import Metrics
    from chunkcache.protocol import (
        AnswerEvent,
        AnswerRequest,
        CollectionInfo,
        DocumentInfo,
        GivenDocument,
        Passage,
    )
    from chunkcache.ranking import Ranking


class RunningAnswer(Protocol):
    """One admitted request."""

    def events(self) -> Iterator[AnswerEvent]:
        """Blocking: AnswerStarted, AnswerDelta*, AnswerFinished. Raises ChunkCacheError."""
        ...

    def cancel(self) -> None:
        """Stop the request; `events` then ends promptly. Any thread, any number of times."""
        ...


class KVStates(Protocol):
    """Where the KV of chunks is; looking counts as no use."""

    def of_chunks(
        self, document_id: str, *, tenant: str, collection: str, offset: int, limit: int
    ) -> tuple[DocumentInfo, list[ChunkState]]:
        """A document, and `limit` of its chunks from the `offset`th on. Raises NotFound."""
        ...

    def of_documents(
        self, document_ids: Sequence[str], *, tenant: str, collection: str
    ) -> list[DocumentState]:
        """One summary for each document. Raises NotFound."""
        ...


class Holdings(Protocol):
    """What the tiers of this machine keep for a tenant; looking counts as no use."""

    def records(self, tenant: str, *, after: str | None, limit: int) -> list[RecordState]:
        """At most `limit` records on disk, in order of id, behind the one with that id."""
        ...

    def disk_bytes(self, tenant: str) -> int:
        """What the tenant's records take on disk."""
        ...

    def clear(self, tenant: str) -> Cleared:
        """Forget all of the tenant's KV; what requests are reading lives until they end."""
        ...


class Keeping(Protocol):
    """Puts what is stored on other terms; no use."""

    def keep(
        self,
        keep: Keep,
        *,
        tenant: str,
        collection: str,
        document_ids: Sequence[str] | None = None,
        texts: Sequence[GivenDocument] | None = None,
    ) -> Kept:
        """Chunks of texts, else of documents, else of a collection.

        Raises:
            NotFound: a document, or the collection.
            StoreError: the terms cannot be written.
        """
        ...

    def check_documents(self, tenant: str, collection: str, document_ids: Iterable[str]) -> None:
        """Raises NotFound: one of them, or the collection, is not there. Asks no tier."""
        ...


class Quotas(Protocol):
    """How much of each tier a tenant may hold."""

    def limit_bytes(self, tenant: str) -> int | None:
        """None: no limit."""
        ...


class Service(Protocol):
    """A running chunkcache. Every method may be called from any thread, and may block."""

    @property
    def settings(self) -> Settings:
        """The settings it runs with; never changes."""
        ...

    @property
    def metrics(self) -> Metrics:
        """Its counters."""
        ...

    @property
    def console(self) -> Console:
        """Its last requests, its figures over time, its warm-ups."""
        ...

    @property
    def kv_states(self) -> KVStates:
        """Where the KV of its chunks is."""
        ...

    @property
    def holdings(self) -> Holdings:
        """What its tiers keep for a tenant."""
        ...

    @property
    def keeping(self) -> Keeping:
        """On what terms its KV is kept."""
        ...

    @property
    def quotas(self) -> Quotas:
        """What its tenants may hold."""
        ...

    def set_quota(self, tenant: str, limit: Limit) -> None:
        """Limit a tenant, now and after a restart; see `Limit`. Raises StoreError."""
        ...

    @property
    def model_id(self) -> str:
        """The id of the decoder, as shown by /v1/models."""
        ...

    @property
    def model_ids(self) -> tuple[str, ...]:
        """All ids of the decoder; the first is `model_id`."""
        ...

    @property
    def embedder_id(self) -> str:
        """The id of the embedder, as shown by /v1/models."""
        ...

    @property
    def created_at(self) -> float:
        """Start of the service, seconds since the epoch."""
        ...

    @property
    def link_key(self) -> bytes:
        """32 secret bytes, the same after a restart: signs links to passages.

        To be derived from the installation's secret, so that it tells nothing about tenants' salts.
        """
        ...

    def start(self, request: AnswerRequest, *, gone: threading.Event) -> RunningAnswer:
        """Retrieve and queue. Raises InvalidRequest, NotFound, Overloaded or ShuttingDown.

        May wait for the model, but tells at once when it is overloaded, so that the number of those
        who wait is bounded. Raises Cancelled soon after `gone` is set.
        """
        ...

    def search(
        self,
        query: str,
        *,
        top_k: int,
        tenant: str,
        collection: str,
        filters: Comparison | Membership | Compound | None = None,
        ranking: Ranking | None = None,
    ) -> list[Passage]:
        """The best passages, best first, of documents that pass the filters.

        Raises NotFound, or InvalidRequest for a blank query or an expired collection.
        """
        ...

    def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """One vector per text, and the tokens read."""
        ...

    def ingest_bytes(
        self,
        name: str,
        data: bytes,
        *,
        tenant: str,
        collection: str,
        attributes: dict[str, str | float | bool] | None = None,
        upload_id: str = "",
    ) -> DocumentInfo:
        """Load, split, embed and index one file; the same upload is replaced.

        `upload_id` says which upload it is; without one its name does.

        Raises InvalidRequest if it cannot be read (nothing has changed then), NotFound if there is
        no such collection.
        """
        ...

    def documents(self, *, tenant: str, collection: str) -> list[DocumentInfo]:
        """All documents of a collection. Raises NotFound."""
        ...

    def document_text(
        self, document_id: str, *, tenant: str, collection: str
    ) -> tuple[DocumentInfo, str]:
        """A document and its extracted text, in which citations' offsets count characters.

        Raises NotFound: no such document or collection.
        """
        ...

    def former_passage(
        self, document_id: str, digest: str, *, tenant: str, collection: str
    ) -> str | None:
        """A passage of that `passage_digest` that the document has, elsewhere, or once had.

        None: it has none, or no longer. Raises NotFound: no such collection.
        """
        ...

    def remove(self, document_id: str, *, tenant: str, collection: str) -> bool:
        """Forget a document. False: it was not there."""
        ...

    def create_collection(
        self,
        name: str,
        *,
        tenant: str,
        metadata: dict[str, str] | None = None,
        expires_after_days: int | None = None,
    ) -> CollectionInfo:
        """A new, empty collection."""
        ...

    def change_collection(
        self,
        collection_id: str,
        *,
        tenant: str,
        name: str,
        metadata: dict[str, str],
        expires_after_days: int | None,
    ) -> CollectionInfo:
        """Give a collection another name, metadata and expiry. Raises NotFound."""
        ...

    def set_attributes(
        self,
        document_id: str,
        attributes: dict[str, str | float | bool],
        *,
        tenant: str,
        collection: str,
    ) -> None:
        """Replace a document's attributes; nothing happens when it is gone."""
        ...

    def collections(self, *, tenant: str) -> list[CollectionInfo]:
        """All collections of a tenant, `default` among them."""
        ...

    def collection(self, collection_id: str, *, tenant: str) -> CollectionInfo:
        """One collection. Raises NotFound."""
        ...

    def delete_collection(self, collection_id: str, *, tenant: str) -> bool:
        """Forget a collection and its documents; `default` is emptied and stays.

        False: it was not there.
        """
        ...

    def health(self) -> dict[str, object]:
        """Status, model and gate verdict; does not block."""
        ...

    def drain(self, timeout_s: float) -> None:
        """Admit nothing new, wait for running requests, then cancel what is left."""
        ...

    def close(self) -> None:
        """Flush and release. A second call does nothing."""
        ...
