"""From a request and its passages to a running generation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.chunk import Retention, Terms, content_digest
from chunkcache.engine.generation import Generation
from chunkcache.errors import InvalidRequest, PromptTooLong
from chunkcache.repair import policy_named
from chunkcache.service.answer import AnswerHandle, Preparation, chunk_spans, elapsed_ms
from chunkcache.service.calibration import CALIBRATED_POLICY
from chunkcache.service.calls import told_messages
from chunkcache.service.keeping import terms_of
from chunkcache.service.lookups import logged_parts
from chunkcache.service.order import RankedPassage
from chunkcache.service.recognition import Recognised, Recogniser
from chunkcache.store.cost import Rows

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from chunkcache.chunk import Chunk
    from chunkcache.config import RepairSettings, Settings
    from chunkcache.console.lookup_log import LookupLog
    from chunkcache.engine.prompt import Prompt
    from chunkcache.engine.resident import Resident
    from chunkcache.metrics import Metrics
    from chunkcache.protocol import AnswerFinished, AnswerRequest, ChunkCacheOptions
    from chunkcache.retrieval.passage_matcher import PassageMatcher
    from chunkcache.service.announcement import Announcement
    from chunkcache.service.runtime import Runtime
    from chunkcache.store.codec.base import Codec


@dataclass(frozen=True, slots=True)
class Measure:
    """What a measurement wants beside the answer (see `Generation`); a user wants nothing."""

    forced_ids: tuple[int, ...] = ()
    keep_logits: bool = False
    takes_no_prefix: bool = False  # an arm must not be served by what was asked before it
    leaves_no_prefix: bool = False  # nor hand its exact pages to the next one
    reads_through: Codec | None = None  # chunks that are computed now come as if from this store


class Asker:
    """Lays out the prompt, finds chunk KV, queues the generation."""

    def __init__(
        self,
        runtime: Runtime,
        settings: Settings,
        metrics: Metrics,
        matcher: PassageMatcher,
        lookups: LookupLog | None = None,
    ) -> None:
        self._runtime = runtime
        self._settings = settings
        self._metrics = metrics
        self._recogniser = Recogniser(runtime, matcher)
        self._lookups = lookups

    def start(
        self,
        request: AnswerRequest,
        passages: Callable[[], list[Chunk]],
        salt: bytes,
        measure: Measure,
        *,
        submit: Callable[[Generation], None],
        gone: threading.Event | None = None,
        on_end: Callable[[str, AnswerFinished | None], None] | None = None,
    ) -> AnswerHandle:
        """Queue the answer to `request` from `passages`, which come in prompt order.

        They are not asked for where the request's own messages bring passages. `submit` takes the
        answer to the place in the queue that is kept for it; `gone` is set if nobody waits for it
        any more; `on_end` is called when it has ended, see `AnswerHandle`.

        Raises:
            InvalidRequest, PromptTooLong, Cancelled, ShuttingDown: nothing was queued.
        """
        runtime, repair, options = self._runtime, self._settings.repair, request.options
        notes = [*request.notes, *_sampling_notes(request)]
        self._check_biases(request)
        new_matcher = runtime.grammars.compile(request.form) if request.form else None
        started_at = time.perf_counter()
        recognised = self._recognise(request)
        chunks, retrieve_ms = self._choose(request, recognised, passages, notes)
        prompt, chunks = self._fit(request, chunks, recognised.prompt, notes)
        shares = self._settings.engine.prefix_cache  # without it no order is better than another
        if shares and (options.order or self._settings.retrieval.order) == "cache_friendly":
            prompt, chunks = self._reorder(request, prompt, chunks, salt, notes)
        if not runtime.reuses:
            notes.append("chunk reuse is off for this model: it did not pass the gate")
        exact_only = options.mode != "auto" or not runtime.reuses
        name = options.policy or repair.policy
        budget = repair.budget if options.budget is None else options.budget
        max_residual = None
        if options.exactness is not None:
            name, budget = CALIBRATED_POLICY, 1.0
            max_residual = self._residual_for(options.exactness.drift)
        root, order = _digests_of(prompt, salt)
        prompt = self._recogniser.cut(request, prompt, recognised, salt, reuses=not exact_only)
        preparation = Preparation(
            prompt, _cited(prompt), policy=_mode_name(options.mode, name, exact_only),
            budget=1.0 if exact_only else budget, started_at=started_at, retrieve_ms=retrieve_ms,
            notes=notes, calibration=runtime.calibration,
        )  # fmt: skip
        policy = policy_named(name, self._repair(options))
        gives_prefix = options.mode != "full" and not measure.leaves_no_prefix
        if shares and gives_prefix:
            preparation.on_exact = lambda: runtime.orders.remember(root, order)
        with runtime.announcement() as announced:
            residents: dict[int, Resident] = {}
            if not exact_only:
                residents = self._find(request, salt, preparation, announced, gone, measure)
            generation = Generation(
                prompt, residents,
                policy=policy, budget=budget, exact_only=exact_only, max_residual=max_residual,
                sampling=request.sampling, salt=salt,
                max_new_tokens=self._most_new_tokens(request, prompt),
                takes_prefix=options.mode != "full" and not measure.takes_no_prefix,
                gives_prefix=gives_prefix, new_matcher=new_matcher,
                forced_ids=measure.forced_ids, keep_logits=measure.keep_logits,
            )  # fmt: skip
            generation.wait_over = announced.pass_on()
        submit(generation)
        return AnswerHandle(generation, preparation, request, runtime, self._metrics, on_end)

    def _check_biases(self, request: AnswerRequest) -> None:
        tokens = self._runtime.model.num_tokens
        for token in request.sampling.logit_bias:
            if not 0 <= token < tokens:
                raise InvalidRequest.of(
                    "logit_bias", token, f"the id of a token of the model, 0 to {tokens - 1}",
                    "ids are those of this model's tokenizer",
                )  # fmt: skip

    def _recognise(self, request: AnswerRequest) -> Recognised:
        """The known passages in the messages, if they are to be looked for."""
        wish = request.options.match_messages
        if not (self._settings.retrieval.match_messages if wish is None else wish):
            return Recognised()
        prompt = self._runtime.prompts.build(told_messages(request), [], request.layout)
        learns = self._settings.retrieval.learn_messages
        recognised = self._recogniser.recognise(request, prompt, learns=learns)
        for _, match in recognised.found:
            self._metrics.matched.inc(match.end - match.start)
        return recognised

    def _choose(
        self,
        request: AnswerRequest,
        recognised: Recognised,
        passages: Callable[[], list[Chunk]],
        notes: list[str],
    ) -> tuple[list[Chunk], float]:
        """The passages beside those in the messages, and the milliseconds it took to find them.

        None are retrieved for a client that brings its own, half a chunk of them or more, unless
        the request says how many it wants: a quoted sentence is a question still. Which ones are
        known decides, never which ones are warm: what is asked must not depend on the cache.
        """
        retrieval, given = self._settings.retrieval, request.documents is not None
        brings = 2 * recognised.tokens_now >= retrieval.chunk_tokens
        if brings and not given and request.top_k is None:
            if retrieval.top_k:
                notes.append(
                    f"the messages bring {recognised.tokens_now} tokens of known passages: nothing "
                    "was retrieved beside them. Hint: chunkcache.top_k asks for passages all the "
                    "same"
                )
            return [], 0.0
        began = time.perf_counter()
        found = passages()
        retrieve_ms = elapsed_ms(began)
        if given:
            self._recogniser.remember(request, found)
            return found, retrieve_ms
        wanted = retrieval.top_k if request.top_k is None else request.top_k
        if wanted and not found and request.question.strip():
            searched = ", ".join((request.collection, *request.also))
            notes.append(
                f"no passage was found in {searched}. Hint: chunkcache ingest, or files of a "
                "vector store, bring what is missing there"
            )
        chunks = [chunk for chunk in found if not recognised.holds(chunk)]
        if len(chunks) < len(found):
            notes.append(
                f"{len(found) - len(chunks)} of {len(found)} passages found stand in the messages "
                "already, and were not put in twice"
            )
        return chunks, retrieve_ms

    def _reorder(
        self,
        request: AnswerRequest,
        prompt: Prompt,
        chunks: list[Chunk],
        salt: bytes,
        notes: list[str],
    ) -> tuple[Prompt, list[Chunk]]:
        """The prompt with its passages in the order that shares the longest exact prefix."""
        order = self._runtime.orders.arrange(*_order_of(prompt, salt))
        if order != sorted(order):
            notes.append("passages were put into the order of an earlier exact answer")
            chunks = [chunks[i] for i in order]
            prompt = self._runtime.prompts.build(told_messages(request), chunks, request.layout)
        return prompt, chunks

    def _repair(self, options: ChunkCacheOptions) -> RepairSettings:
        """The settings, with α of this request, of the installation or of its calibration."""
        repair, calibration = self._settings.repair, self._runtime.calibration
        calibrated = calibration.cfo_alpha if calibration else None
        alpha = options.cfo_alpha or repair.cfo_alpha or calibrated
        return repair.model_copy(update={"cfo_alpha": alpha})

    def _residual_for(self, drift: float) -> float:
        calibration = self._runtime.calibration
        if calibration is None:
            raise InvalidRequest.of(
                "chunkcache.exactness", drift, "used with a calibration of this model and prompt",
                "run chunkcache calibrate once, with questions of yours",
            )  # fmt: skip
        return calibration.curve.residual_for(drift)

    def _find(
        self,
        request: AnswerRequest,
        salt: bytes,
        into: Preparation,
        announced: Announcement,
        gone: threading.Event | None,
        measure: Measure,
    ) -> dict[int, Resident]:
        began, prompt = time.perf_counter(), into.prompt
        into.rows = _rows_of(prompt, 0.0 if into.policy == "none" else into.budget)
        spans = chunk_spans(prompt)
        keys = [self._runtime.key(prompt.spans[i].record_ids, salt) for i in spans]
        residents = {}
        if self._lookups is not None:
            self._lookups.note(logged_parts(prompt, dict(zip(spans, keys, strict=True)), salt))
        announced.of(keys)
        finding = self._runtime.find(
            keys, salt, gone, _terms_of(request), measure.reads_through, into.rows
        )
        into.planned, into.from_memory = finding.planned, finding.from_memory
        into.is_stored = finding.is_stored
        for index, found in zip(spans, finding.found, strict=True):
            if found.resident is not None:
                residents[index] = found.resident
                if found.resident.codec is not None:
                    into.codecs[index] = found.resident.codec
            if found.tier is not None:
                into.tiers[index] = found.tier
            if found.miss is not None:
                into.misses[index] = found.miss
        into.load_ms = elapsed_ms(began)
        return residents

    def _fit(
        self,
        request: AnswerRequest,
        chunks: list[Chunk],
        without: Prompt | None,
        notes: list[str],
    ) -> tuple[Prompt, list[Chunk]]:
        """The prompt, with as few of the last-ranked chunks dropped as the context asks for."""
        runtime, named = self._runtime, request.sampling.max_tokens
        room = min(runtime.model.context_tokens, runtime.engine.capacity_tokens)
        limit = room - (named or self._settings.engine.max_new_tokens_default)
        given = len(chunks)
        messages = told_messages(request)
        made = without if not chunks else None  # the one without passages may be there already
        prompt = made or runtime.prompts.build(messages, chunks, request.layout)
        if prompt.num_tokens > limit and self._settings.engine.overflow == "drop":
            total = prompt.num_tokens
            sizes = [len(prompt.spans[index]) for index in chunk_spans(prompt)]
            while chunks and total > limit:
                total -= sizes.pop()
                chunks = chunks[:-1]
            prompt = runtime.prompts.build(messages, chunks, request.layout)
        least = named or 1  # who names no limit gets what room there is
        if prompt.num_tokens > room - least:
            raise PromptTooLong(
                f"messages: got {prompt.num_tokens} prompt tokens and {least} for the answer, "
                f"must be at most {room} together. Hint: fewer or shorter documents, a "
                "smaller max_tokens, or engine.overflow = drop.",
                param="messages",
            )
        if len(chunks) < given:
            notes.append(
                f"{given - len(chunks)} of {given} passages were dropped, the lowest-ranked first: "
                f"the prompt must fit {limit} tokens"
            )
        return prompt, chunks

    def _most_new_tokens(self, request: AnswerRequest, prompt: Prompt) -> int:
        """What the request says; else the setting, or the room that the prompt leaves."""
        sampling, runtime = request.sampling, self._runtime
        if sampling.max_tokens is not None:
            return sampling.max_tokens
        pages = runtime.engine.capacity_tokens - prompt.num_tokens
        if sampling.n > 1:  # each choice in pages of its own, the last of them not full
            pages = pages // sampling.n - self._settings.engine.page_tokens
        room = min(runtime.model.context_tokens - prompt.num_tokens, pages)
        return max(1, min(self._settings.engine.max_new_tokens_default, room))


def _sampling_notes(request: AnswerRequest) -> list[str]:
    if request.sampling.n > 1 and request.sampling.temperature == 0.0:
        return ["n: at temperature 0 all choices are the same"]
    return []


def _terms_of(request: AnswerRequest) -> Terms:
    """On what terms chunks that are computed for a request are kept.

    Raises:
        InvalidRequest: they are firmer than what a request leaves behind may be.
    """
    keep = request.options.keep
    if keep is None:
        given = request.documents is not None
        return Terms(request.tenant, retention=Retention.PASSING if given else Retention.NORMAL)
    if keep.retention != "normal":
        raise InvalidRequest.of(
            "chunkcache.keep.retention", keep.retention, "normal in a request",
            "POST /v1/chunkcache/cache/prefetches warms and pins ahead of requests",
        )  # fmt: skip
    return terms_of(request.tenant, keep)


def _rows_of(prompt: Prompt, budget: float) -> Rows:
    """What a prompt runs when all its chunks are there: the rows that are in none, which come late
    in it, and those that are repaired, anywhere.
    """
    total = prompt.num_tokens
    reused = sum(len(prompt.spans[i]) for i in chunk_spans(prompt))
    own, repaired = total - reused, budget * reused
    return Rows(own + repaired, own * total + repaired * total / 2)


def _order_of(prompt: Prompt, salt: bytes) -> tuple[bytes, list[RankedPassage]]:
    """What stands before the passages (the head, for this tenant), and the passages."""
    passages = [prompt.spans[i] for i in chunk_spans(prompt)]
    root = salt + content_digest(prompt.spans[0].token_ids)
    return root, [RankedPassage(content_digest(p.token_ids), len(p)) for p in passages]


def _digests_of(prompt: Prompt, salt: bytes) -> tuple[bytes, list[bytes]]:
    """What stands before the passages, and the passages."""
    root, passages = _order_of(prompt, salt)
    return root, [passage.digest for passage in passages]


def _cited(prompt: Prompt) -> list[Chunk]:
    """The chunks in the prompt, in its order; one that messages hold in parts stands there once."""
    chunks: list[Chunk] = []
    for span in prompt.spans:
        if span.chunk is not None and not (span.passage_ids and span.chunk in chunks):
            chunks.append(span.chunk)
    return chunks


def _mode_name(mode: str, policy: str, exact_only: bool) -> str:
    """What the report calls the policy: the rule that was in force, not the one asked for."""
    if not exact_only:
        return policy
    return "full" if mode == "full" else "exact"
