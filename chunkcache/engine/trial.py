"""What the gate measures: one random prompt, answered in every way that must agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from chunkcache.chunk import ChunkKey, Span, SpanKind
from chunkcache.config import EngineSettings, RepairSettings
from chunkcache.engine.core import Engine
from chunkcache.engine.generation import Generation
from chunkcache.engine.outcome import Outcome
from chunkcache.engine.prefill import ChunkPrefill
from chunkcache.engine.prompt import Prompt
from chunkcache.engine.reference import difference, transformers_logits, type_noise
from chunkcache.metrics import Metrics
from chunkcache.protocol import Sampling
from chunkcache.repair import policy_named
from chunkcache_kernels import HIDDEN, turned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.chunk import ChunkKV
    from chunkcache.engine.angles import RotaryAngles
    from chunkcache.engine.decoder import DecoderModel
    from chunkcache_kernels import Segment

_PAGE_TOKENS = 16
_FORCED_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of each part of a prompt, and rows the engine runs in a step."""

    head: int
    chunks: tuple[int, ...]
    question: int
    step_tokens: int

    @property
    def total(self) -> int:
        """Tokens of the whole prompt."""
        return self.head + sum(self.chunks) + self.question


SHORT = Lengths(21, (40, 33, 1, 26), 9, 48)


def long_lengths(tokens: int) -> Lengths:
    """A prompt of that many tokens: chunks large and small, steps that end inside of them.

    The last one is short: what it would have read before it is near enough to be seen through a
    small window.
    """
    head, question, last = 61, 19, 29
    rest = tokens - head - question - last - 1
    first, second = rest * 2 // 5, rest // 4
    return Lengths(head, (first, second, rest - first - second, 1, last), question, 500)


class Trial:
    """One engine, one random prompt, and the ways to answer it."""

    def __init__(self, model: DecoderModel, lengths: Lengths) -> None:
        self.model = model
        capacity = (4 * lengths.total + 8 * _PAGE_TOKENS) * model.geometry.bytes_per_token
        settings = EngineSettings(
            kv_capacity_bytes=max(capacity, 1 << 20),
            chunk_capacity_bytes=max(capacity, 1 << 20),
            page_tokens=_PAGE_TOKENS,
            step_tokens=lengths.step_tokens,
        )
        generator = torch.Generator().manual_seed(20260101)
        vocabulary = int(model.config.vocab_size)

        def tokens(count: int) -> tuple[int, ...]:
            return tuple(torch.randint(vocabulary, (count,), generator=generator).tolist())

        self.head = tokens(lengths.head)
        self.chunks = [tokens(n) for n in lengths.chunks]
        self.question = tokens(lengths.question)
        self.forced = tokens(_FORCED_TOKENS)
        self.engine = Engine(model, settings, Metrics())

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def figures(self) -> dict[str, float]:
        """Every measured difference of the logits after the prompt, by name."""
        full = self._answer(self.chunks, {}, salt=b"full")
        # the first answer left its exact prefix behind under the same salt
        again = self._answer(self.chunks, {}, salt=b"full")
        if not again.plan.spans[0].prefix:
            raise AssertionError("the prefix cache did not match a repeated prompt")
        tokens = [*self._prompt(self.chunks).token_ids, *full.token_ids[:1]]
        reference = transformers_logits(self.model, tokens)
        continued = self._continued(tokens)
        records = [self._record(ids) for ids in self.chunks]
        placed = {i + 1: record for i, record in enumerate(records)}
        alone = self._answer(self.chunks[:1], {}, salt=b"alone")
        first = self._answer(self.chunks[:1], {1: records[0]}, salt=b"first")
        repaired = self._answer(self.chunks, placed, salt=b"all", policy="all")
        unrepaired = self._answer(self.chunks, placed, salt=b"none")
        return {
            "logits_std": float(reference[-2].std()),
            "reference": difference(full.first_logits, reference[-2]),
            "continuation": difference(continued, reference[-1]),
            "repair_all": difference(repaired.first_logits, full.first_logits),
            "exact_first_chunk": difference(first.first_logits, alone.first_logits),
            "prefix_reuse": difference(again.first_logits, full.first_logits),
            "turned_queries": turned_queries(self.engine, self._prefill(self.chunks[0])),
            "rope_relative": rope_relative(self.model),
            "unrepaired": difference(unrepaired.first_logits, full.first_logits),
        }

    def unrounded(self) -> dict[str, float]:
        """How far ours are from transformers' where its angles are not rounded, and how far that
        alone moves transformers' own (`angle_noise`); both behind the prompt and a token more.
        """
        full = self._answer(self.chunks, {}, salt=b"full")
        tokens = [*self._prompt(self.chunks).token_ids, *full.token_ids[:1]]
        ours = torch.stack([full.first_logits, self._continued(tokens)])
        rounded, exact = (
            transformers_logits(self.model, tokens, exact_angles=exact)[-2:]
            for exact in (False, True)
        )
        return {"unrounded": difference(ours, exact), "angle_noise": difference(rounded, exact)}

    def repaired_logits(self) -> torch.Tensor:
        """fp32 `[vocab]` behind the prompt whose chunks were all repaired."""
        placed = {i + 1: self._record(ids) for i, ids in enumerate(self.chunks)}
        return self._answer(self.chunks, placed, salt=b"all", policy="all").first_logits

    def moved(self) -> float:
        """Full prefill against reuse without repair: of one layer, K and V know no context."""
        full = self._answer(self.chunks, {}, salt=b"full")
        records = {i + 1: self._record(ids) for i, ids in enumerate(self.chunks)}
        reused = self._answer(self.chunks, records, salt=b"none")
        return difference(reused.first_logits, full.first_logits)

    def own_figures(self) -> dict[str, float]:
        """The model as it is served, against transformers on the same modules, in their own type.

        Differences of the logits after the prompt and after each token of a given continuation.
        `own_noise` is what the type itself makes of them: see `type_noise`.
        """
        records = {i + 1: self._record(ids) for i, ids in enumerate(self.chunks)}
        full = self._forced({}, salt=b"forced")
        repaired = self._forced(records, salt=b"forced all", policy="all")
        tokens = [*self._prompt(self.chunks).token_ids, *self.forced[:-1]]
        reference = transformers_logits(self.model, tokens)[-_FORCED_TOKENS:]
        return {
            "own_logits_std": float(reference.std()),
            "own_logits_max": float(reference.abs().max()),
            "own_reference": difference(full, reference),
            "own_repair_all": difference(repaired, reference),
            "own_noise": type_noise(self.model, tokens, reference),
        }

    def differs_by(self, size: int) -> float:
        """Of our logits behind so many tokens, the last run alone, to transformers'."""
        tokens = self._prompt(self.chunks).token_ids[:size]
        return difference(self._continued(tokens), transformers_logits(self.model, tokens)[-1])

    def agreement(self, tolerance: float) -> str:
        """Up to how many tokens our full prefill is transformers', in words."""
        tokens = self._prompt(self.chunks).token_ids
        good = 0
        sizes = [s for k in range(4, 20) if (s := 1 << k) < len(tokens)]
        for size in [*sizes, len(tokens)]:
            if self.differs_by(size) <= tolerance:
                good = size
            elif good:
                return f"they agree at {good} tokens and differ at {size}"
            else:
                return f"they differ at {size} tokens already"
        return f"they agree at {good} tokens"

    def _prompt(self, chunks: Sequence[Sequence[int]]) -> Prompt:
        spans, start = [], 0
        kinds = [SpanKind.HEAD, *[SpanKind.CHUNK] * len(chunks), SpanKind.QUESTION]
        for kind, ids in zip(kinds, [self.head, *chunks, self.question], strict=True):
            spans.append(Span(kind, start, tuple(ids)))
            start += len(ids)
        return Prompt(tuple(spans), head_is_canonical=True)

    def _prefill(self, ids: Sequence[int]) -> ChunkPrefill:
        key = ChunkKey.of(
            ids, fingerprint=self.model.fingerprint, born_prefix=self.head, salt=b"gate"
        )
        request = ChunkPrefill(key, head=self.head, salt=b"chunks")
        self.engine.submit(request)
        request.future.result()
        return request

    def _record(self, ids: Sequence[int]) -> ChunkKV:
        return self._prefill(ids).future.result()

    def _answer(
        self, chunks: Sequence[Sequence[int]], records: dict[int, ChunkKV], *,
        salt: bytes, policy: Any = "none", forced: Sequence[int] = (),
    ) -> Outcome:  # fmt: skip
        residents = {}
        for index, record in records.items():
            held = self.engine.chunks.hold(record)
            assert held is not None, "no room for the gate's own chunks"
            residents[index] = held
        request = Generation(
            self._prompt(chunks), residents,
            policy=policy_named(policy, RepairSettings()),
            budget=1.0, exact_only=not records, sampling=Sampling(), max_new_tokens=2, salt=salt,
            forced_ids=forced or self.forced[:1],
        )  # fmt: skip
        return self._outcome(request)

    def _forced(
        self, records: dict[int, ChunkKV], *, salt: bytes, policy: str = "none"
    ) -> torch.Tensor:
        """Logits `[forced, vocab]` each token of the continuation would be drawn from."""
        outcome = self._answer(self.chunks, records, salt=salt, policy=policy, forced=self.forced)
        assert outcome.step_logits is not None
        return outcome.step_logits

    def _continued(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits after the tokens, the last of them run alone where the others are known."""
        spans = (
            Span(SpanKind.HEAD, 0, tuple(tokens[:-1])),
            Span(SpanKind.QUESTION, len(tokens) - 1, (tokens[-1],)),
        )
        request = Generation(
            Prompt(spans, head_is_canonical=False), {},
            policy=policy_named("none", RepairSettings()), budget=0.0, exact_only=True,
            sampling=Sampling(), max_new_tokens=1, salt=b"full", forced_ids=self.forced[:1],
        )  # fmt: skip
        return self._outcome(request).first_logits

    def _outcome(self, request: Generation) -> Outcome:
        self.engine.submit(request)
        return next(e for e in request.events() if isinstance(e, Outcome))


def turned_queries(engine: Engine, request: ChunkPrefill) -> float:
    """|⟨R(p)q, k where it was made⟩ − ⟨R(p−s)q, k in the chunk's pages⟩| over all layers, keys and
    some far positions p, relative to the largest: what reading a chunk at any position rests on.
    """
    record, model, kv = request.future.result(), engine.model, request.kv
    resident = engine.chunks.hold(record)
    assert kv is not None and resident is not None
    resident.arrival.follow()
    count, start = record.num_tokens, len(request.token_ids) - record.num_tokens
    made = torch.Generator().manual_seed(5)
    query = torch.randn(8, 1, model.geometry.head_dim, generator=made).to(model.device)
    far = torch.arange(8, device=model.device) * (model.context_tokens // 9) + start + count
    worst = 0.0
    try:
        for layer, facts in enumerate(model.facts.layers):
            own = kv.segments(model.geometry.num_layers)[-1]
            keys, _ = engine.pool.own.read_rows(layer, own.pages)
            where = torch.from_numpy(
                own.key_positions.argsort(kind="stable")[-count - _spare(own) :]
            )
            here = keys[where[:count]]
            there, _ = engine.pool.chunks.read_rows(layer, resident.pages)
            asked = [query.float(), query.float()]
            if facts.turned:
                angles = model.facts.kinds[facts.kind].angles
                asked = [turned(query, *angles.at(p)) for p in (far, far - start)]
            scores = [
                torch.einsum("qd,thd->qth", q[:, 0], k.float())
                for q, k in zip(asked, (here, there[:count]), strict=True)
            ]
            worst = max(worst, difference(*scores) / float(scores[0].abs().max()))
    finally:
        engine.chunks.release([resident])
    return worst


def _spare(segment: Segment) -> int:
    return int((segment.key_positions == HIDDEN).sum())


def rope_relative(model: DecoderModel) -> float:
    """|⟨R(p)q, R(s)k⟩ − ⟨R(p+d)q, R(s+d)k⟩| for unit vectors, far apart and far out."""
    generator = torch.Generator().manual_seed(7)
    dim = model.geometry.head_dim
    q, k = (
        torch.nn.functional.normalize(torch.randn(64, 1, dim, generator=generator), dim=-1)
        for _ in range(2)
    )
    at = torch.randint(0, 1000, (64,), generator=generator)
    to = torch.randint(0, 1000, (64,), generator=generator)
    span = min(model.context_tokens, 32768) - 1001

    def dots(angles: RotaryAngles, offset: int) -> torch.Tensor:
        pair = [
            turned(x.to(model.device), *angles.at((p + offset).to(model.device)))
            for x, p in ((q, at), (k, to))
        ]
        return (pair[0] * pair[1]).sum(-1)

    return max(
        float((dots(kind.angles, 0) - dots(kind.angles, max(span, 1))).abs().max())
        for kind in model.facts.kinds
    )
