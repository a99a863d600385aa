"""A service without a model: real threads, real queueing, deterministic answers.

The question's words steer it: `hold` waits for `go_on` (or cancellation) after the first word,
`nap` does so for two seconds at most, `breakdown` raises an unexpected error there, `refused`
raises InvalidRequest there, `long N` answers with N words, `cold` waits in `start` for `warm`,
`absent` gets a passage that was in no tier. A warm-up takes `WARM_CHUNKS` steps of `warm_steps`.
"""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING, Any

from chunkcache.chunk import Rung, SpanKind
from chunkcache.config import Settings
from chunkcache.console import Console
from chunkcache.console.warming import WarmReport
from chunkcache.errors import (
    Cancelled,
    ChunkCacheError,
    InvalidRequest,
    NotFound,
    Overloaded,
    ShuttingDown,
)
from chunkcache.metrics import Metrics
from chunkcache.protocol import (
    AnswerDelta,
    AnswerEvent,
    AnswerFinished,
    AnswerRequest,
    AnswerStarted,
    Citation,
    CollectionInfo,
    DocumentInfo,
    Passage,
    Report,
    SpanReport,
    Timings,
)
from chunkcache.retrieval.documents import passage_digest
from chunkcache.service.warm import WarmProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WARM_CHUNKS = 4
Found = tuple[str, Passage]  # where, if not in the collection that was asked, and what


class FakeAnswer:
    def __init__(self, service: FakeService, request: AnswerRequest, found: list[Found]) -> None:
        self.service = service
        self.request = request
        self.cancelled = threading.Event()
        self.go_on = threading.Event()
        self.ended = threading.Event()
        self.deltas_read = 0
        self._on_end = service.console.follow(request)
        self._citations = [
            Citation(**passage.model_dump(), collection=place) for place, passage in found
        ]

    def cancel(self) -> None:
        self.cancelled.set()
        self.go_on.set()

    def events(self) -> Iterator[AnswerEvent]:
        outcome, finished = "error", None
        try:
            yield AnswerStarted(citations=self._citations, prompt_tokens=20)
            for event in self._words():
                if isinstance(event, AnswerFinished):
                    outcome, finished = "ok", event
                yield event
        except Cancelled:
            outcome = "cancelled"
            raise
        finally:
            self._on_end(outcome, finished)
            self.ended.set()
            self.service.ended(self)

    def _words(self) -> Iterator[AnswerEvent]:
        question = self.request.messages[-1].content
        words = [f"{word} " for word in f"You asked: {question} — voilà".split()]
        if question.startswith("long "):
            words = ["word "] * int(question.split()[1])
        limit = self.request.sampling.max_tokens or len(words)
        said = words[:limit]
        for index, word in enumerate(said):
            if self.cancelled.is_set():
                raise Cancelled("cancelled")
            self.deltas_read += 1
            yield AnswerDelta(text=word, completion_tokens=index + 1)
            if index == 0:
                self._misbehave(question)
        yield AnswerFinished(
            text="".join(said),
            finish_reason="length" if limit < len(words) else "stop",
            completion_tokens=len(said),
            report=self._report(),
            citations=self._citations,
        )

    def _misbehave(self, question: str) -> None:
        if "hold" in question:
            self.go_on.wait(20)
        if "nap" in question:
            self.go_on.wait(2)
        if "breakdown" in question:
            raise RuntimeError("the secret inner state")
        if "refused" in question:
            raise InvalidRequest("refused half way", param="messages")

    def _report(self) -> Report:
        misses = "absent" in self.request.messages[-1].content
        first = self._citations[0] if self._citations else None
        chunk = SpanReport(
            kind=SpanKind.CHUNK, start=4, tokens=10, rung=Rung.REPAIRED,
            reused=0 if misses else 8, recomputed=2, computed=8 if misses else 0,
            tier=None if misses else "host", miss="absent" if misses else None,
            chunk_id=first and first.chunk_id, title=first and first.title,
            recomputed_positions=[5, 6],
        )  # fmt: skip
        options = self.request.options
        return Report(
            rung=Rung.REPAIRED if self._citations else Rung.FULL,
            policy=options.policy or "question",
            budget=0.15 if options.budget is None else options.budget,
            prompt_tokens=20,
            reused_tokens=8 if self._citations else 0,
            recomputed_tokens=2,
            computed_tokens=10,
            cost_ratio=0.6,
            spans=[chunk] if self._citations else [],
            timings=Timings(ttft_ms=1.5),
            notes=list(self.request.notes),
        )


class FakeService:
    model_id = "tiny-chat"
    embedder_id = "tiny-embed"
    link_key = b"k" * 32

    def __init__(self, settings: Settings, *, queue_limit: int = 8) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.warm_steps = threading.Semaphore(0)
        self.warmed: list[Any] = []  # of each warm-up, which documents or texts
        self.warmed_on: list[Any] = []  # and on what terms
        self.console = Console(self.metrics, self._warm_up)
        self.kv_states: Any = None  # see `fake_states`
        self.holdings: Any = None  # likewise
        self.keeping: Any = None  # likewise
        self.quotas: Any = None  # likewise
        self.set_quota: Any = None  # likewise
        self.created_at = 1_700_000_000.0
        self.answers: list[FakeAnswer] = []
        self.requests: list[AnswerRequest] = []
        self.rankings: list[Any] = []  # one for each search
        self.ingested: list[tuple[str, Any]] = []
        self.drained = False
        self.closed = False
        self._queue_limit = queue_limit
        self._num_created = 0
        self.warm = threading.Event()
        self.preparing: list[threading.Event] = []  # of each cold request, what tells it to go
        self._changed = threading.Condition()
        self._running: list[FakeAnswer] = []
        self._collections: dict[tuple[str, str], CollectionInfo] = {}
        self._former: dict[tuple[str, str], str] = {}
        self._documents: dict[tuple[str, str], dict[str, tuple[DocumentInfo, str]]] = {}

    @property
    def model_ids(self) -> tuple[str, ...]:
        alias = self.settings.model.alias
        return tuple(alias.split(",")) if alias else (self.model_id,)

    def let_go(self) -> None:
        """End whatever runs, and let nobody wait for anything."""
        self.warm.set()
        self.warm_steps.release(100)
        self.console.close()
        for answer in self.answers:
            answer.cancel()

    def start(self, request: AnswerRequest, *, gone: threading.Event) -> FakeAnswer:
        with self._changed:
            if self.drained:
                raise ShuttingDown("draining")
            if "cold" in request.messages[-1].content:
                self._prepare(gone)
            if len(self._running) >= self._queue_limit:
                raise Overloaded("the queue is full", retry_after_s=7)
            self.requests.append(request)
            answer = FakeAnswer(self, request, self._passages_for(request))
            self.answers.append(answer)
            self._running.append(answer)
            self._changed.notify_all()
            self.metrics.requests.labels("started").inc()
            return answer

    def _warm_up(self, *, on_progress: Callable[[Any], None], **task: Any) -> WarmReport:
        texts = task["texts"] and [text.text for text in task["texts"]]
        self.warmed.append(texts or task["document_ids"])
        self.warmed_on.append(task["keep"])
        for done in range(1, WARM_CHUNKS + 1):
            assert self.warm_steps.acquire(timeout=20)
            on_progress(WarmProgress(done, WARM_CHUNKS, tokens=100, tokens_per_s=50.0, eta_s=6.0))
        return WarmReport(chunks=WARM_CHUNKS, computed=WARM_CHUNKS, kept=WARM_CHUNKS, tokens=100)

    def _prepare(self, gone: threading.Event) -> None:
        self.preparing.append(gone)
        self._changed.notify_all()
        while not self.warm.is_set():
            self._changed.wait(0.01)
            if gone.is_set():
                raise Cancelled("gone")

    def wait_for_preparing(self, count: int) -> None:
        """Block until so many cold requests are being prepared, or have been."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.preparing) >= count, timeout=10)

    def _passages_for(self, request: AnswerRequest) -> list[Found]:
        if request.documents is not None:
            return [
                ("", _passage(f"given-{i}", given.id or f"d{i}", given, given.text, 1.0))
                for i, given in enumerate(request.documents)
            ]
        top_k = 4 if request.top_k is None else request.top_k
        wish: Any = {"top_k": top_k, "filters": request.filters, "ranking": request.ranking}
        question, tenant = request.messages[-1].content, request.tenant
        found = [
            (place if place in request.also else "", passage)
            for place in (request.collection, *request.also)
            for passage in self.search(question, tenant=tenant, collection=place, **wish)
        ]
        return sorted(found, key=lambda one: -one[1].score)[:top_k]

    def ended(self, answer: FakeAnswer) -> None:
        with self._changed:
            self._running.remove(answer)
            self._changed.notify_all()

    def wait_for_answers(self, count: int) -> FakeAnswer:
        """Block until so many answers have started; the last of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.answers) >= count, timeout=10)
            return self.answers[count - 1]

    def search(
        self, query: str, *, top_k: int, tenant: str, collection: str, filters: Any = None,
        ranking: Any = None,
    ) -> list[Passage]:  # fmt: skip
        self.collection(collection, tenant=tenant)
        if not query.strip():
            raise InvalidRequest.of("query", query, "a text with words", "ask something")
        self.rankings.append(ranking)
        words = set(query.lower().split())
        held = self._documents.get((tenant, collection), {}).values()
        scored = [
            (len(words & set(text.lower().split())), info, text)
            for info, text in held
            if filters is None or filters.matches(info.attributes)
        ]
        scored.sort(key=lambda item: (-item[0], item[1].document_id))
        return [
            _passage(f"{info.document_id}-0", info.document_id, info, text, float(score))
            for score, info, text in scored[:top_k]
            if score
        ]

    def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        vectors = [[len(text) / 7, *(b / 255 for b in _digest(text)[:3])] for text in texts]
        return vectors, sum(len(text.split()) for text in texts)

    def ingest_bytes(
        self, name: str, data: bytes, *, tenant: str, collection: str, upload_id: str = "",
        attributes: dict[str, str | float | bool] | None = None,
    ) -> DocumentInfo:  # fmt: skip
        self.collection(collection, tenant=tenant)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{name}: not text", param="file") from error
        if not text.strip():
            raise InvalidRequest(f"{name}: the file is empty", param="file")
        document_id = f"doc-{_digest(upload_id or name).hex()[:12]}"
        info = DocumentInfo(
            document_id=document_id, collection=collection, title=name, url="",
            sha256=hashlib.sha256(data).hexdigest(), num_chunks=1, num_tokens=len(text.split()),
            size_bytes=len(data), added_at=time.time(), attributes=attributes or {}, name=name,
        )  # fmt: skip
        held = self._documents.setdefault((tenant, collection), {})
        if document_id in held and held[document_id][0].sha256 == info.sha256:
            return held[document_id][0]
        if document_id in held:
            _, former = held[document_id]
            self._former[document_id, passage_digest(former)] = former
        held[document_id] = (info, text)
        self.ingested.append((name, attributes))
        return info

    def document_text(
        self, document_id: str, *, tenant: str, collection: str
    ) -> tuple[DocumentInfo, str]:
        self.collection(collection, tenant=tenant)
        held = self._documents.get((tenant, collection), {})
        if document_id not in held:
            raise NotFound("No such document.", param="document_id")
        return held[document_id]

    def former_passage(
        self, document_id: str, digest: str, *, tenant: str, collection: str
    ) -> str | None:
        return self._former.get((document_id, digest))

    def documents(self, *, tenant: str, collection: str) -> list[DocumentInfo]:
        self.collection(collection, tenant=tenant)
        return [info for info, _ in self._documents.get((tenant, collection), {}).values()]

    def remove(self, document_id: str, *, tenant: str, collection: str) -> bool:
        held = self._documents.get((tenant, collection), {})
        return held.pop(document_id, None) is not None

    def create_collection(
        self, name: str, *, tenant: str, metadata: dict[str, str] | None = None,
        expires_after_days: int | None = None,
    ) -> CollectionInfo:  # fmt: skip
        self._num_created += 1
        made = CollectionInfo(
            id=f"vs_{self._num_created}", name=name, created_at=time.time(),
            metadata=metadata or {}, expires_after_days=expires_after_days,
            last_active_at=time.time(),
        )  # fmt: skip
        self._collections[tenant, made.id] = made
        return made

    def change_collection(self, store_id: str, *, tenant: str, **changes: Any) -> CollectionInfo:
        changes["last_active_at"] = time.time()
        changed = self.collection(store_id, tenant=tenant).model_copy(update=changes)
        self._collections[tenant, store_id] = changed
        return changed

    def set_attributes(
        self, document_id: str, attributes: Any, *, tenant: str, collection: str
    ) -> None:
        info, text = self.document_text(document_id, tenant=tenant, collection=collection)
        changed = info.model_copy(update={"attributes": attributes})
        self._documents[tenant, collection][document_id] = (changed, text)

    def collections(self, *, tenant: str) -> list[CollectionInfo]:
        default = CollectionInfo(id="default", name="default", created_at=self.created_at)
        own = {info.id: info for (owner, _), info in self._collections.items() if owner == tenant}
        return list({"default": default, **own}.values())

    def collection(self, collection_id: str, *, tenant: str) -> CollectionInfo:
        known = {info.id: info for info in self.collections(tenant=tenant)}
        if collection_id not in known:
            raise NotFound(f"No such vector store: '{collection_id}'.", param="vector_store_id")
        return known[collection_id]

    def delete_collection(self, collection_id: str, *, tenant: str) -> bool:
        self._documents.pop((tenant, collection_id), None)
        known = self._collections.pop((tenant, collection_id), None) is not None
        return known or collection_id == "default"

    def health(self) -> dict[str, object]:
        return {"status": "draining" if self.drained else "ok", "model": self.model_id}

    def drain(self, timeout_s: float) -> None:
        with self._changed:
            self.drained = True
            self._changed.wait_for(lambda: not self._running, timeout=timeout_s)
            left = list(self._running)
        for answer in left:
            answer.cancel()

    def close(self) -> None:
        if self.closed:
            raise ChunkCacheError("closed twice")
        self.closed = True


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _passage(chunk_id: str, document_id: str, of: Any, text: str, score: float) -> Passage:
    return Passage(
        chunk_id=chunk_id, document_id=document_id, title=of.title, url=of.url, text=text,
        score=score, start_char=0, end_char=len(text), headings=["Pets", "Cats"],
    )  # fmt: skip
