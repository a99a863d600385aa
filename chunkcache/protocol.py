"""Wire models: what a request may say, what a response says. Pydantic only, no torch.

`ChunkCacheOptions` is the one namespaced request object (`"chunkcache": {...}`), `Report` the one
namespaced response object. OpenAI's own shapes live here too, with unknown fields forbidden.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .chunk import Rung, SpanKind
from .filters import AttributeFilter
from .forms import CallForm, FunctionCall, JsonForm
from .keep import Keep
from .policy_names import PassageOrder, RepairPolicyName
from .ranking import Ranking

Json = dict[str, Any]
MAX_CHOICES = 16
MAX_BIASES = 1024
MAX_LOGPROBS = 20


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")


# ---------------------------------------------------------------- options and report


class Exactness(_Wire):
    """How exact an answer must be at least; the service finds the cheapest way there."""

    drift: float = Field(gt=0.0, description="expected mean KL, nats; needs a calibration")


class ChunkCacheOptions(_Wire):
    """Per-request wishes about exactness. Omitted fields take the server's settings."""

    mode: Literal["auto", "exact", "full"] = Field(
        "auto",
        description="exact: only exact prefixes are reused, everything else is computed; "
        "full: nothing is reused, for comparison",
    )
    policy: RepairPolicyName | None = Field(None, description="which rows are recomputed")
    budget: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="share of the reused rows that is recomputed"
    )
    cfo_alpha: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="α of Cache-Craft's fix overhead, with policy cfo or focused"
    )
    exactness: Exactness | None = Field(None, description="a drift target instead of a budget")
    order: PassageOrder | None = Field(
        None,
        description="relevance: passages as ranked, or as given; cache_friendly: in the order that "
        "shares the longest exact prefix with earlier exact answers",
    )
    vector_store_id: str | None = Field(None, description="where to retrieve from")
    top_k: int | None = Field(
        None, ge=0, le=64, description="passages retrieved; 0: none. Not the sampling top_k"
    )
    match_messages: bool | None = Field(
        None, description="whether known passages in the messages are served from the cache"
    )
    keep: Keep | None = Field(None, description="on what terms KV made for it is kept")

    @model_validator(mode="after")
    def _one_way_to_say_how_exact(self) -> ChunkCacheOptions:
        others = (self.policy, self.budget, None if self.mode == "auto" else self.mode)
        if self.exactness is not None and any(other is not None for other in others):
            raise ValueError("exactness chooses policy and budget itself: leave them and mode out")
        if self.cfo_alpha is not None and self.policy not in {"cfo", "focused"}:
            raise ValueError("cfo_alpha is of the policies cfo and focused: name one of them")
        return self


class SpanReport(_Wire):
    """What one span of the prompt got."""

    kind: SpanKind = Field(description="head, chunk, history or question")
    start: int = Field(description="its first row in the prompt")
    tokens: int = Field(description="its rows")
    rung: Rung = Field(description="exact, repaired or full")
    reused: int = Field(description="rows taken from a cache and not recomputed")
    recomputed: int = Field(
        description="rows that were in a cache and were recomputed to the last layer"
    )
    computed: int = Field(description="rows that were in no cache")
    tier: str | None = Field(
        None, description="whence its reused rows: prefix, host, disk; null: none"
    )
    miss: str | None = Field(
        None, description="why its other rows were computed: absent, corrupt, ..."
    )
    codec: str | None = Field(
        None, description="lossy codec that its reused rows were stored in; null: as computed"
    )
    chunk_id: str | None = None
    document_id: str | None = None
    title: str | None = None
    matched: bool = Field(False, description="a known passage that stood in a message")
    first_row: int = Field(0, description="of the passage's rows: the first that is in the span")
    recomputed_positions: list[int] = Field(default_factory=list)


class Timings(_Wire):
    """Milliseconds of each phase of a request.

    No two phases overlap: those before `ttft_ms` add up to it.
    """

    retrieve_ms: float = Field(0.0, description="finding passages, or splitting those given")
    layout_ms: float = Field(0.0, description="building the prompt, and choosing what to look up")
    load_ms: float = Field(0.0, description="bringing up chunk KV; computing what no tier had")
    queue_ms: float = Field(0.0, description="waiting for room in the engine")
    probe_ms: float = Field(0.0, description="looking before rows to repair were chosen")
    wait_ms: float = Field(0.0, description="waiting for layers of chunk KV still coming up")
    compute_ms: float = Field(0.0, description="running rows, up to the first token's logits")
    ttft_ms: float = Field(0.0, description="from the request to the first token: all of the above")
    total_ms: float = Field(0.0, description="from the request to the last token")
    planned_ms: float | None = Field(None, description="load, probe, wait, compute, as planned")


class Report(_Wire):
    """The `chunkcache` object of every response: how exact the answer is and what it cost."""

    rung: Rung = Field(description="the weakest rung of any span")
    policy: str = Field(description="that chose the rows to recompute")
    budget: float = Field(description="share of the reused rows that was asked for")
    prompt_tokens: int = Field(description="the three that follow, added up")
    reused_tokens: int = Field(description="taken from a cache and not recomputed")
    recomputed_tokens: int = Field(description="were in a cache and were recomputed")
    computed_tokens: int = Field(description="were in no cache")
    probe_rows: int = Field(0, description="extra rows run to choose what to recompute")
    cost_ratio: float = Field(description="of full prefill's work, without chunks' own prefills")
    predicted_drift: float | None = Field(
        None,
        description="expected mean KL to full recompute, nats; null without a calibration, and "
        "where rows were repaired without asking the question",
    )
    spans: list[SpanReport]
    timings: Timings
    notes: list[str] = Field(default_factory=list)


class Citation(_Wire):
    """A passage the answer could draw on."""

    chunk_id: str
    document_id: str
    title: str
    url: str
    start_char: int
    end_char: int
    text: str
    score: float
    collection: str = Field("", description="where it is; empty: where the request asked")
    headings: list[str] = Field(default_factory=list, description="above it, outermost first")


class AnswerReport(Report):
    """The `chunkcache` object as sent: the report, and the passages in prompt order."""

    citations: list[Citation] = Field(default_factory=list)


# ---------------------------------------------------------------- internal request and result


class Sampling(_Wire):
    """How tokens are drawn. temperature 0 is greedy.

    Penalties and biases count under temperature 0 as well. The frequency and presence penalties
    are for tokens of the answer, the repetition penalty for those of the prompt, too.
    """

    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0, description="0: no limit")
    min_p: float = Field(0.0, ge=0.0, le=1.0, description="share of the likeliest's probability")
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10.0, description="1: none")
    logit_bias: dict[int, Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(
        default_factory=dict, max_length=MAX_BIASES, description="by token id"
    )
    seed: int | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES, description="choices; choice i draws with seed + i")
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0, description="no end-of-sequence token before so many tokens")
    ignore_eos: bool = Field(False, description="go on behind an end-of-sequence token")
    stop: tuple[str, ...] = ()
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="so many likely tokens beside each; null: none"
    )


class Message(_Wire):
    """One turn. Content is text; a tool's turn is the result of one call."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    calls: tuple[FunctionCall, ...] = Field((), description="of an assistant's turn")
    call_id: str = Field("", description="of a tool's turn: which call it answers")


class GivenDocument(_Wire):
    """A document in the request body, used instead of retrieval."""

    id: str = ""
    title: str = ""
    text: str
    url: str = ""


class AnswerRequest(_Wire):
    """What the service is asked: a conversation whose last turn is the user's question."""

    messages: list[Message] = Field(min_length=1)
    documents: list[GivenDocument] | None = None
    tenant: str = "public"
    collection: str = "default"
    also: tuple[str, ...] = Field((), description="collections searched together with it")
    top_k: int | None = Field(None, ge=0, le=64, description="0: no retrieval")
    filters: AttributeFilter | None = Field(None, description="of the documents searched")
    ranking: Ranking | None = Field(None, description="null: as the settings say")
    sampling: Sampling = Sampling()
    form: JsonForm | CallForm | None = Field(None, description="of the answer; null: any text")
    notes: tuple[str, ...] = Field((), description="to be passed on in the report")
    options: ChunkCacheOptions = ChunkCacheOptions()
    layout: Literal["chat", "plain", "raw"] = Field(
        "chat",
        description="plain: no system text of ours is put before a conversation without documents; "
        "raw: the one message is the prompt, without the model's chat template",
    )

    @model_validator(mode="after")
    def _raw_is_all_there_is(self) -> AnswerRequest:
        adds = len(self.messages) > 1 or self.documents is not None or self.top_k != 0
        if self.layout == "raw" and adds:
            raise ValueError("layout raw takes one message, no documents, and top_k 0")
        return self

    @property
    def question(self) -> str:
        """The last user turn, which is what passages are looked for."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @model_validator(mode="after")
    def _a_form_ends_by_itself(self) -> AnswerRequest:
        if self.form is not None and (self.sampling.ignore_eos or self.sampling.min_tokens):
            raise ValueError(
                "ignore_eos and min_tokens cannot be had with a JSON answer or a forced call, "
                "which ends where its schema does"
            )
        return self


class TokenLogprob(_Wire):
    """A token and its natural log probability."""

    token: str = Field(description="its text; of part of a character, its bytes written out")
    logprob: float
    bytes: list[int]


class ChosenToken(TokenLogprob):
    """A token of the answer, and the likeliest in its place."""

    top_logprobs: list[TokenLogprob] = Field(default_factory=list)


class AnswerStarted(_Wire):
    """First event: the passages, in prompt order."""

    type: Literal["started"] = "started"
    citations: list[Citation]
    prompt_tokens: int = Field(0, description="length of the prompt")


class AnswerDelta(_Wire):
    """A piece of a choice's text; with `call`, of the arguments of a call of that function."""

    type: Literal["delta"] = "delta"
    text: str
    completion_tokens: int = Field(0, description="tokens of all choices so far")
    index: int = 0
    call: str | None = None
    call_id: str = Field("", description="of the call; empty before it has one")
    logprobs: list[ChosenToken] | None = Field(None, description="null: not asked for")


class Choice(_Wire):
    """One of several answers to the same prompt."""

    text: str = Field(description="empty where the answer is a call")
    finish_reason: Literal["stop", "length"]
    call: FunctionCall | None = None
    logprobs: list[ChosenToken] | None = Field(None, description="null: not asked for")


class AnswerFinished(Choice):
    """Last event: the first choice, the others, and what is true of all."""

    type: Literal["finished"] = "finished"
    others: list[Choice] = Field(default_factory=list)
    completion_tokens: int = Field(description="of all choices")
    report: Report
    citations: list[Citation]

    @property
    def choices(self) -> list[Choice]:
        """All choices, by index."""
        return [self, *self.others]


AnswerEvent = AnswerStarted | AnswerDelta | AnswerFinished


class Passage(_Wire):
    """A search hit."""

    chunk_id: str
    document_id: str
    title: str
    url: str
    text: str
    score: float
    start_char: int
    end_char: int
    headings: list[str] = Field(default_factory=list, description="above it, outermost first")


class IngestReport(_Wire):
    """Outcome of one ingest."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    renamed: int = Field(0, description="known by their content, and now at another path")
    skipped: int = 0
    chunks: int = 0
    tokens: int = 0
    problems: list[str] = Field(
        default_factory=list,
        description="path: reason, per file or part of a file that was left out",
    )


class DocumentInfo(_Wire):
    """A document in the catalog."""

    document_id: str
    collection: str
    title: str
    url: str
    sha256: str
    num_chunks: int
    num_tokens: int
    size_bytes: int
    added_at: float
    attributes: dict[str, str | float | bool] = Field(default_factory=dict)
    name: str = Field("", description="of the file or the upload; empty for a text")
    path: str = Field("", exclude=True)  # of a file of the server's: no business of its clients
    problems: list[str] = Field(
        default_factory=list, description="parts that were left out when it was read, and why"
    )


class CollectionInfo(_Wire):
    """A named set of documents of one tenant: what OpenAI calls a vector store.

    Every tenant has the collection with id and name `default`.
    """

    id: str
    name: str
    created_at: float
    metadata: dict[str, str] = Field(default_factory=dict)
    expires_after_days: int | None = Field(None, description="days without a search; null: never")
    last_active_at: float | None = Field(None, description="when it was last searched or changed")

    @property
    def expires_at(self) -> float | None:
        """When it expires if nobody uses it until then, seconds since the epoch."""
        if self.expires_after_days is None:
            return None
        return (self.last_active_at or self.created_at) + self.expires_after_days * 86_400.0
