"""`ChunkCache`: the composition root. Everything is opened on first use and closed once.

The catalog, the embedder and the tokenizer are enough to ingest and search; the model, its engine
and the tiers are only loaded when chunks are warmed or questions are asked.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import structlog

from chunkcache.config import Settings, load_settings
from chunkcache.console import Console
from chunkcache.console.lookup_log import LookupLog
from chunkcache.engine.loading import model_ids
from chunkcache.errors import ShuttingDown
from chunkcache.protocol import AnswerFinished, AnswerRequest
from chunkcache.retrieval.retriever import OPEN_COLLECTIONS
from chunkcache.service.asking import Asker, Measure
from chunkcache.service.corpus_basis import fit_corpus_basis
from chunkcache.service.given import check_tokens, counts
from chunkcache.service.holdings import Holdings
from chunkcache.service.keeping import Keeping
from chunkcache.service.kv_states import KVStates
from chunkcache.service.levelling import Leveller
from chunkcache.service.library import DEFAULT, PUBLIC, Library
from chunkcache.service.log_lines import log_warnings_to_stderr
from chunkcache.service.lookups import record_facts
from chunkcache.service.order import distinct
from chunkcache.service.quotas import Quotas
from chunkcache.service.runtime import Runtime
from chunkcache.service.tenants import link_key, load_secret, salting_secret, tenant_salt
from chunkcache.service.warm import Shard, WarmProgress, warm_chunks
from chunkcache.service.wishes import answer_request
from chunkcache.store import bases_path

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from chunkcache.chunk import Chunk
    from chunkcache.console.warming import WarmReport
    from chunkcache.keep import Keep, Limit
    from chunkcache.protocol import AnswerEvent, GivenDocument
    from chunkcache.service.answer import AnswerHandle
    from chunkcache.service.given import GivenDocuments

log = structlog.get_logger(__name__)

_CHARS_WORTH_COUNTING = 50_000
_CUT_TOKENS = 8
_DEEPEST = 32  # times as many passages as wanted are looked through for different ones
_CONTEXTS_OF_DOCUMENTS = 4
"""Documents given beyond that many contexts are refused, whatever `engine.overflow` would drop."""


class ChunkCache(Library):
    """Ingest, warm, search and answer in this process. Thread-safe; also a context manager.

    Args:
        recompresses: it serves from this home, and rewrites cold records where `store.cold_codec`
            is set. Others do not know what is in use, and must not. `reads_only`: see `Library`.
    """

    def __init__(
        self, settings: Settings, *, recompresses: bool = False, reads_only: bool = False
    ) -> None:
        super().__init__(settings, reads_only=reads_only)
        self._recompresses = recompresses
        self.console = Console(self.metrics, self.warm)
        self.created_at = time.time()
        self._draining = False
        self._secret = load_secret(settings.home)
        self._leveller: Leveller | None = None
        self.quotas = Quotas(settings.home / "quotas.json", settings.store.quotas)
        self._salting_secret = salting_secret(settings)

    @classmethod
    def open(
        cls, settings: Settings | None = None, *, config: Path | None = None, **overrides: Any
    ) -> ChunkCache:
        """Open the cache at `settings.home`. Warnings go to stderr unless structlog is set up.

        Args:
            settings: complete settings; else they are read from `config`, the environment and
                `overrides` (see `load_settings`).

        Raises:
            ConfigError: a setting is wrong.
        """
        log_warnings_to_stderr()
        return cls(settings or load_settings(config, **overrides))

    def __enter__(self) -> ChunkCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------------------------------------------------------------ lazy parts

    @cached_property
    def kv_states(self) -> KVStates:
        """Where the KV of a document's chunks is."""
        return KVStates(self.catalog, lambda: self.runtime, self._salt)

    @cached_property
    def holdings(self) -> Holdings:
        """What the tiers of this machine keep for a tenant."""
        return Holdings(lambda: self.runtime, self._salt)

    @cached_property
    def keeping(self) -> Keeping:
        """Terms of what is stored."""
        return Keeping(
            self.catalog, lambda: self._splits, lambda: self.runtime, self._salt, self._refresh
        )

    @property
    def _splits(self) -> GivenDocuments:
        with self._lock:
            return self._given

    @cached_property
    def _runtime(self) -> Runtime:
        quotas = self.quotas.all()
        runtime = Runtime(self.settings, self.metrics, quotas, recompresses=self._recompresses)
        self.quotas.listen(runtime.on_quota, known=quotas)
        return runtime

    @cached_property
    def _lookups(self) -> LookupLog | None:
        limit_bytes = self.settings.store.lookup_log_bytes
        if not limit_bytes or self._reads_only:
            return None
        return LookupLog(self.settings.home, limit_bytes, record_facts(self.runtime))

    @property
    def runtime(self) -> Runtime:
        """Model, engine and tiers; loads them on first use (seconds).

        Raises:
            ModelNotFound, UnsupportedModel, GateFailed, StoreError: the model cannot be served.
        """
        loaded: Runtime | None = self.__dict__.get("_runtime")
        if loaded is not None and not self._closed:
            return loaded  # without waiting for whoever is loading something else
        with self._lock:
            if self._closed:
                raise ShuttingDown("this ChunkCache is closed")
            return self._runtime

    @property
    def model_id(self) -> str:
        """The name clients give as `model`."""
        return self.model_ids[0]

    @property
    def model_ids(self) -> tuple[str, ...]:
        """All the names that clients may give as `model`; the first is `model_id`."""
        return model_ids(self.settings.model)

    @property
    def link_key(self) -> bytes:
        """Signs links to passages; the same after a restart."""
        return link_key(self._secret)

    # ------------------------------------------------------------ chunk KV

    def warm(
        self,
        *,
        tenant: str = PUBLIC,
        collection: str = DEFAULT,
        document_ids: Sequence[str] | None = None,
        texts: Sequence[GivenDocument] | None = None,
        keep: Keep | None = None,
        shard: Shard | None = None,
        on_progress: Callable[[WarmProgress], None] = lambda _: None,
    ) -> WarmReport:
        """Compute the KV of every chunk of a collection that the disk tier lacks.

        With `document_ids`, of these documents alone; those that are gone are left out. With
        `texts`, of these instead, as requests will bring them (`documents`). Documents split with
        another tokenizer or chunk size are split again first. `keep`: see `warm_chunks`.
        """
        if texts is not None:
            self.catalog.collection(tenant, collection)  # named beside them, it must be there
        else:
            self._refresh(tenant, collection)
        which: Any = {"document_ids": document_ids, "texts": texts}
        return warm_chunks(
            self.runtime, lambda: self.keeping.chunks(tenant, collection, **which),
            self._salt(tenant), tenant=tenant, shard=shard or Shard(), keep=keep,
            limit_bytes=self.quotas.limit_bytes(tenant), on_progress=on_progress,
        )  # fmt: skip

    def fit_basis(
        self, *, tenant: str = PUBLIC, collection: str = DEFAULT, most_chunks: int = 200,
        layers: int = 1, on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> str:  # fmt: skip
        """Fit a basis to a collection; returns its name, for `store.codec`.

        Args:
            layers: how many go together: 1 for the codec `basis`, more for `joint`.

        Raises:
            NotFound: the collection has no chunks.
        """
        self._refresh(tenant, collection)
        return fit_corpus_basis(
            self.runtime, self.catalog.chunks(tenant, collection), self._salt(tenant),
            bases_path(self.settings), most_chunks=most_chunks, layers=layers,
            on_progress=on_progress,
        )  # fmt: skip

    def _salt(self, tenant: str) -> bytes:
        return tenant_salt(self._salting_secret, tenant)

    def set_quota(self, tenant: str, limit: Limit) -> None:
        """Limit what a tenant holds in each tier, now and after a restart.

        What it holds above that leaves when it brings more, whoever's is worth less. What another
        process sets on this home holds from the next answer or warm-up on.

        Raises:
            StoreError: it cannot be written down; all is as it was.
        """
        self.quotas.put(tenant, limit)

    # ------------------------------------------------------------ answers

    def start(
        self,
        request: AnswerRequest,
        *,
        measure: Measure | None = None,
        gone: threading.Event | None = None,
    ) -> AnswerHandle:
        """Retrieve, look up and queue; the answer comes from the handle's events.

        Blocks while passages that no tier has are computed. Whoever sets `gone` before this returns
        does not wait for the answer any more. `measure` asks for logits beside it (see `evaluate`).

        Raises:
            Overloaded: at once; all places in the queue are taken.
            NotFound: a vector store is named that there is none of, whether it is searched or not.
            InvalidRequest, PromptTooLong, Cancelled, ShuttingDown: before anything was queued.
        """
        if self._draining or self._closed:
            raise ShuttingDown("the service is shutting down and admits nothing new")
        with self._lock:
            matcher = self._matcher
        asker = Asker(
            self.runtime, self.settings, self.metrics, matcher,
            lookups=None if measure else self._lookups,
        )  # fmt: skip
        self.quotas.follow()
        with self.runtime.engine.reserve() as submit:
            self._check_stores(request)
            self._check_messages(request)
            return asker.start(
                request, lambda: self._passages(request), self._salt(request.tenant),
                measure or Measure(), submit=submit, gone=gone,
                on_end=None if measure else self.console.follow(request),
            )  # fmt: skip

    def stream(self, question: str | AnswerRequest, **wishes: Any) -> Iterator[AnswerEvent]:
        """The events of one answer; closing the iterator cancels it. Wishes: see `ask`."""
        return self.start(answer_request(question, wishes)).events()

    def ask(self, question: str | AnswerRequest, **wishes: Any) -> AnswerFinished:
        """Answer a question.

        Args:
            question: a text, or a whole `AnswerRequest`.
            wishes: `documents` (list of texts or GivenDocument, instead of retrieval), `top_k`,
                `tenant`, `collection`, fields of `ChunkCacheOptions` (`mode`, `policy`, `budget`)
                and of `Sampling` (`temperature`, `max_tokens`, `stop`, …).

        Raises:
            InvalidRequest: a wish is unknown or out of range.
        """
        for event in self.stream(question, **wishes):
            if isinstance(event, AnswerFinished):
                return event
        raise AssertionError("an answer ended without its last event")

    @property
    def _room_tokens(self) -> int:
        return min(self.runtime.model.context_tokens, self.runtime.engine.capacity_tokens)

    def _check_stores(self, request: AnswerRequest) -> None:
        """Raises NotFound or InvalidRequest for a store that is named and could not be searched.

        It may be that none is: with passages given, known ones in the messages, or `top_k` 0.
        """
        for store in (request.collection, *request.also):
            if store != DEFAULT:  # which everybody has
                self._check_alive(request.tenant, store)

    def _check_messages(self, request: AnswerRequest) -> None:
        """Raises PromptTooLong for a text that is far too long, before anything is done with it."""
        texts = [message.content for message in request.messages]
        if sum(map(len, texts)) <= _CHARS_WORTH_COUNTING:
            return
        with self._lock:
            splitter = self._splitter
        # a little less: where a text is cut to be counted, one word becomes two
        parts = (max(0, n - _CUT_TOKENS) for text in texts for n in counts(splitter, text))
        check_tokens("messages", parts, self._room_tokens)

    def _passages(self, request: AnswerRequest) -> list[Chunk]:
        if request.documents is not None:
            most_tokens = _CONTEXTS_OF_DOCUMENTS * self._room_tokens
            return self._splits.chunks(request.documents, request.tenant, most_tokens=most_tokens)
        top_k = self.settings.retrieval.top_k if request.top_k is None else request.top_k
        question = request.question
        if top_k == 0 or not question.strip():
            return []
        depth = 2 * top_k
        while True:  # deeper where copies took the places of others
            ranked = self._search(
                question, depth, tenant=request.tenant, collection=request.collection,
                also=request.also, filters=request.filters, ranking=request.ranking,
            )  # fmt: skip
            found = distinct(ranked)[:top_k]
            self._foresee(request, found)
            if len(found) == top_k or len(ranked) < depth or depth >= _DEEPEST * top_k:
                return found
            depth *= 4

    def _foresee(self, request: AnswerRequest, candidates: Sequence[Chunk]) -> None:
        """Let what is likely to be in the prompt come up while the prompt is being laid out."""
        if request.options.mode == "auto" and self.runtime.reuses:
            passages = [self.runtime.prompts.chunk_ids(chunk) for chunk in candidates]
            self.runtime.foresee(passages, self._salt(request.tenant))

    # ------------------------------------------------------------ life cycle

    def load(self) -> dict[str, object]:
        """Load the model now instead of at the first question; returns `health`.

        Raises:
            ModelNotFound, UnsupportedModel, GateFailed, StoreError: the model cannot be served.
        """
        log.info("model_ready", model=self.model_id, reuse=self.runtime.reuses)
        return self.health()

    def keep_level(self) -> None:
        """From now on, bring indexes level in the background; else a search does that. Once."""
        self._leveller = Leveller(
            self.catalog.entries.generations, self._prepare, self._prepare_tenant,
            most=OPEN_COLLECTIONS,
        )  # fmt: skip
        self._leveller.start()

    def health(self) -> dict[str, object]:
        """Whether it serves, which model, what the gate said, and whether searches would wait.

        `indexes` is `opening` until all have been opened for the first time, then `level` with the
        catalog or `behind` it; `on demand` where nobody keeps them level.
        """
        loaded = "_runtime" in self.__dict__
        return {
            "status": "draining" if self._draining else "ok",
            "model": self.model_id,
            "loaded": loaded,
            "reuse": self._runtime.reuses if loaded else None,
            "indexes": self._leveller.state if self._leveller else "on demand",
        }

    def drain(self, timeout_s: float) -> None:
        """Admit nothing new and wait for running answers, at most `timeout_s`."""
        self._draining = True
        self.console.close()
        if "_runtime" in self.__dict__:
            self._runtime.drain(timeout_s)

    def close(self) -> None:
        """Cancel what runs, flush the store, release everything. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._leveller is not None:
            self._leveller.stop()
        self.console.close()
        lookups: LookupLog | None = self.__dict__.get("_lookups")
        if lookups is not None:
            lookups.close()
        if "_runtime" in self.__dict__:
            self._runtime.close()
        self._close_catalog()
        if self._leveller is not None:
            self._leveller.join()
