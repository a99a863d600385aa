"""`Client` and `AsyncClient`: the same methods, one waits and the other is awaited.

Requests and results are made in `flows` and `documents`; sending and waiting is `driver`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, Unpack

import httpx

from . import documents, flows, keeping
from . import texts as text_flows
from .calls import DEFAULT_URL, client_options
from .driver import AsyncDriver, Driver
from .failures import RetryRule
from .wishes import chat_call

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence

    from ..keep import Keep, Limit
    from ..protocol import DocumentInfo, IngestReport, Json
    from .keeping import Kept, Quota
    from .results import Answer, ModelInfo, StreamEvent
    from .sources import Given
    from .texts import Hit, StoredText, Text
    from .wishes import Documents, Question, Wishes

_DEFAULT_STORE = "default"


class Client:
    """A chunkcache server, from any thread. Also a context manager, which closes it.

    Every method raises the server's error as the class of `chunkcache.errors` that it was there,
    `ServerUnreachable` if there was no answer or only a part of one, and `InvalidResponse` if what
    answered is no chunkcache server.

    Args:
        base_url: the server's address; a trailing `/v1` is left off.
        api_key: for servers that ask for one.
        transport: where requests go instead of the network (tests, ASGI apps).
        timeout_s: longest silence of the server; a whole answer is one silence. None: no limit.
        retries: further tries when the server refuses for now (429, 503), cannot be reached, or,
            for calls that may be repeated, when the connection breaks. An answer is not asked for
            again once the request has been taken.
        max_retry_wait_s: longest wait before a try. If the server asks for more, its error is
            raised at once.

    Raises:
        InvalidRequest: the address or the key cannot be one.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        timeout_s: float | None = 600.0,
        retries: int = 2,
        max_retry_wait_s: float = 30.0,
    ) -> None:
        options = client_options(base_url, api_key, timeout_s)
        http = httpx.Client(transport=transport, **options)
        self._driver = Driver(http, RetryRule(retries, max_retry_wait_s))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._driver.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._driver.close()

    def ask(self, question: Question, **wishes: Unpack[Wishes]) -> Answer:
        """Answer a question, or the last turn of a conversation. See `Wishes` for the rest.

        >>> client.ask("Who may sign?", top_k=6, budget=0.2).report.rung  # doctest: +SKIP
        """
        return self._driver.run(flows.ask(question, wishes))

    def stream(
        self, question: Question, **wishes: Unpack[Wishes]
    ) -> Generator[StreamEvent, None, None]:
        """The same as it is made: `AnswerStarted`, `AnswerDelta`s, and the `Answer` last.

        The request is sent when the first event is asked for. Closing the generator, or letting go
        of it, cancels the answer. If the stream breaks off, `ServerUnreachable` is raised after the
        pieces that came; there is an `Answer` only if it is complete.
        """
        return self._driver.stream(chat_call(question, wishes, stream=True))

    def models(self) -> list[ModelInfo]:
        """The decoder by all its ids, those that retrieve first, then the embedder."""
        return self._driver.run(flows.models())

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text, by the server's embedder."""
        return self._driver.run(flows.embed(texts))

    def search(
        self,
        query: str,
        *,
        top_k: int = 4,
        vector_store_id: str = _DEFAULT_STORE,
        filters: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
    ) -> list[Hit]:
        """The best passages, best first; at most 50.

        `filters` are OpenAI's, on the attributes of documents: `{"type": "eq", "key": "language",
        "value": "de"}`, with `and` and `or` around several. With a `score_threshold` above 0
        passages are ranked by their cosine with the query alone, and those below it are left out.
        """
        return self._driver.run(
            flows.search(query, top_k, vector_store_id, filters, score_threshold)
        )

    def ingest(
        self, paths: Given | Iterable[Given], *, vector_store_id: str = _DEFAULT_STORE
    ) -> IngestReport:
        """Upload files, folders, or `(name, bytes)`, and make them searchable.

        A document is known by its name (in a folder: by its path from the folder on). What the
        vector store has already, with the same content, is not sent; other content replaces it.
        What the server cannot read is skipped and listed in the report with the reason.

        Raises:
            InvalidRequest: a path leads nowhere, or two things have the same name.
            NotFound: there is no such vector store.
        """
        return self._driver.run(documents.ingest(paths, vector_store_id))

    def documents(self, *, vector_store_id: str = _DEFAULT_STORE) -> list[DocumentInfo]:
        """All documents of a vector store, oldest first."""
        return self._driver.run(documents.documents(vector_store_id))

    def remove(self, document_id: str, *, vector_store_id: str = _DEFAULT_STORE) -> bool:
        """Remove a document, and its upload if no other vector store has it.

        False: it was not there.
        """
        return self._driver.run(documents.remove(document_id, vector_store_id))

    def put_texts(
        self, texts: Iterable[Text], *, vector_store_id: str = _DEFAULT_STORE
    ) -> list[str]:
        """Keep texts under ids of your own and make them searchable; returns the ids.

        A text with a known id takes its place. What is there already, with the same text, title and
        attributes, is not sent. An error leaves the texts before it kept.

        Raises:
            InvalidRequest: a text or an attribute that cannot be kept, or two texts with one id.
            NotFound: there is no such vector store.
        """
        return self._driver.run(text_flows.put(texts, vector_store_id))

    def texts(self, *, vector_store_id: str = _DEFAULT_STORE) -> list[StoredText]:
        """What a vector store holds, oldest first, by ids and attributes."""
        return self._driver.run(text_flows.stored(vector_store_id))

    def read_texts(
        self, ids: Sequence[str], *, vector_store_id: str = _DEFAULT_STORE
    ) -> list[Text]:
        """The texts with these ids, in this order; those that are not there are left out."""
        return self._driver.run(text_flows.read(ids, vector_store_id))

    def discard_texts(self, ids: Iterable[str], *, vector_store_id: str = _DEFAULT_STORE) -> int:
        """Take texts out, with their uploads; returns how many were there."""
        return self._driver.run(text_flows.discard(ids, vector_store_id))

    def create_vector_store(self, name: str = "") -> str:
        """A new, empty vector store; returns its id. Names need not differ."""
        return self._driver.run(documents.create_store(name))

    def delete_vector_store(self, vector_store_id: str) -> bool:
        """Forget a vector store and its documents, and uploads that are in no other.

        False: it was not there.
        """
        return self._driver.run(documents.delete_store(vector_store_id))

    def prefetch(
        self,
        texts: Documents | None = None,
        *,
        document_ids: Sequence[str] | None = None,
        keep: Keep | None = None,
        vector_store_id: str = _DEFAULT_STORE,
    ) -> Json:
        """Have the KV of texts, or of documents of a vector store, computed ahead of questions.

        Texts are what requests will bring as `documents`. Returns at once, with the state of the
        warm-up; `warm_up` says how far it is. Without `keep` it is kept as `warmed`.

        Raises:
            InvalidRequest: neither or both are given, or another warm-up runs.
            NotFound: there is no such document or vector store.
        """
        return self._driver.run(keeping.prefetch(texts, document_ids, keep, vector_store_id))

    def warm_up(self) -> Json:
        """The state of the current or last warm-up."""
        return self._driver.run(keeping.warm_up())

    def keep(
        self,
        keep: Keep,
        texts: Documents | None = None,
        *,
        document_ids: Sequence[str] | None = None,
        vector_store_id: str = _DEFAULT_STORE,
    ) -> Kept:
        """Put what is stored of texts or documents on other terms; `Keep()` takes wishes back.

        >>> client.keep(Keep(retention="pinned"), document_ids=["doc-1"])  # doctest: +SKIP
        """
        return self._driver.run(keeping.keep_on(keep, texts, document_ids, vector_store_id))

    def quota(self) -> Quota:
        """What you may hold in each tier, and what you hold on disk."""
        return self._driver.run(keeping.quota())

    def set_quota(self, limit: Limit, *, tenant: str | None = None) -> Quota:
        """Limit a tenant, or yourself: bytes; None: no limit; "default": as the server's settings.

        Raises:
            Forbidden: the server has keys, and this one is no operator's.
        """
        return self._driver.run(keeping.set_quota(limit, tenant))

    def health(self) -> Json:
        """The server's own statement, also while it is draining."""
        return self._driver.run(flows.health())

    def version(self) -> str:
        """The server's version of chunkcache."""
        return self._driver.run(flows.version())


class AsyncClient:
    """`Client`, awaited. Its methods, arguments and errors are the same; see there."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout_s: float | None = 600.0,
        retries: int = 2,
        max_retry_wait_s: float = 30.0,
    ) -> None:
        options = client_options(base_url, api_key, timeout_s)
        http = httpx.AsyncClient(transport=transport, **options)
        self._driver = AsyncDriver(http, RetryRule(retries, max_retry_wait_s))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._driver.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Client.close`."""
        await self._driver.close()

    async def ask(self, question: Question, **wishes: Unpack[Wishes]) -> Answer:
        """See `Client.ask`."""
        return await self._driver.run(flows.ask(question, wishes))

    def stream(
        self, question: Question, **wishes: Unpack[Wishes]
    ) -> AsyncGenerator[StreamEvent, None]:
        """See `Client.stream`; not awaited itself: `async for event in client.stream(...)`.

        To leave it early and have the answer cancelled at once, use `contextlib.aclosing`.
        """
        return self._driver.stream(chat_call(question, wishes, stream=True))

    async def models(self) -> list[ModelInfo]:
        """See `Client.models`."""
        return await self._driver.run(flows.models())

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See `Client.embed`."""
        return await self._driver.run(flows.embed(texts))

    async def search(
        self,
        query: str,
        *,
        top_k: int = 4,
        vector_store_id: str = _DEFAULT_STORE,
        filters: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
    ) -> list[Hit]:
        """See `Client.search`."""
        return await self._driver.run(
            flows.search(query, top_k, vector_store_id, filters, score_threshold)
        )

    async def ingest(
        self, paths: Given | Iterable[Given], *, vector_store_id: str = _DEFAULT_STORE
    ) -> IngestReport:
        """See `Client.ingest`. Files are read on the event loop's thread."""
        return await self._driver.run(documents.ingest(paths, vector_store_id))

    async def documents(self, *, vector_store_id: str = _DEFAULT_STORE) -> list[DocumentInfo]:
        """See `Client.documents`."""
        return await self._driver.run(documents.documents(vector_store_id))

    async def remove(self, document_id: str, *, vector_store_id: str = _DEFAULT_STORE) -> bool:
        """See `Client.remove`."""
        return await self._driver.run(documents.remove(document_id, vector_store_id))

    async def put_texts(
        self, texts: Iterable[Text], *, vector_store_id: str = _DEFAULT_STORE
    ) -> list[str]:
        """See `Client.put_texts`."""
        return await self._driver.run(text_flows.put(texts, vector_store_id))

    async def texts(self, *, vector_store_id: str = _DEFAULT_STORE) -> list[StoredText]:
        """See `Client.texts`."""
        return await self._driver.run(text_flows.stored(vector_store_id))

    async def read_texts(
        self, ids: Sequence[str], *, vector_store_id: str = _DEFAULT_STORE
    ) -> list[Text]:
        """See `Client.read_texts`."""
        return await self._driver.run(text_flows.read(ids, vector_store_id))

    async def discard_texts(
        self, ids: Iterable[str], *, vector_store_id: str = _DEFAULT_STORE
    ) -> int:
        """See `Client.discard_texts`."""
        return await self._driver.run(text_flows.discard(ids, vector_store_id))

    async def create_vector_store(self, name: str = "") -> str:
        """See `Client.create_vector_store`."""
        return await self._driver.run(documents.create_store(name))

    async def delete_vector_store(self, vector_store_id: str) -> bool:
        """See `Client.delete_vector_store`."""
        return await self._driver.run(documents.delete_store(vector_store_id))

    async def prefetch(
        self,
        texts: Documents | None = None,
        *,
        document_ids: Sequence[str] | None = None,
        keep: Keep | None = None,
        vector_store_id: str = _DEFAULT_STORE,
    ) -> Json:
        """See `Client.prefetch`."""
        return await self._driver.run(keeping.prefetch(texts, document_ids, keep, vector_store_id))

    async def warm_up(self) -> Json:
        """See `Client.warm_up`."""
        return await self._driver.run(keeping.warm_up())

    async def keep(
        self,
        keep: Keep,
        texts: Documents | None = None,
        *,
        document_ids: Sequence[str] | None = None,
        vector_store_id: str = _DEFAULT_STORE,
    ) -> Kept:
        """See `Client.keep`."""
        return await self._driver.run(keeping.keep_on(keep, texts, document_ids, vector_store_id))

    async def quota(self) -> Quota:
        """See `Client.quota`."""
        return await self._driver.run(keeping.quota())

    async def set_quota(self, limit: Limit, *, tenant: str | None = None) -> Quota:
        """See `Client.set_quota`."""
        return await self._driver.run(keeping.set_quota(limit, tenant))

    async def health(self) -> Json:
        """See `Client.health`."""
        return await self._driver.run(flows.health())

    async def version(self) -> str:
        """See `Client.version`."""
        return await self._driver.run(flows.version())
