"""The gate: a model's KV is served from the cache only after reuse was shown to be right for it.

Everything runs in fp32 through the real engine, on random tokens. Each figure is the largest
difference of next-token logits between two ways that must agree; the tolerance is 1e-3, tightened
for models whose logits are small. One check must *fail* to agree: reuse without repair in another
context has to be visible, or the other figures would show nothing.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

import chunkcache_kernels as kernels
from chunkcache.chunk import ChunkKey, Span, SpanKind
from chunkcache.config import EngineSettings, RepairSettings
from chunkcache.engine.core import Engine
from chunkcache.engine.generation import Generation
from chunkcache.engine.outcome import Outcome
from chunkcache.engine.prefill import ChunkPrefill
from chunkcache.engine.prompt import Prompt
from chunkcache.metrics import Metrics
from chunkcache.protocol import Sampling
from chunkcache.repair import policy_named

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from chunkcache.chunk import ChunkKV
    from chunkcache.engine.decoder import DecoderModel

GATE_VERSION = 1
TOLERANCE = 1e-3
_LENGTHS = {"head": 21, "chunks": (40, 33, 1, 26), "question": 9}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found. `serves`: our full prefill is transformers'; `reuses`: so is reuse."""

    serves: bool
    reuses: bool
    tolerance: float
    figures: dict[str, float]
    problems: tuple[str, ...]


def stored_verdict(fingerprint: bytes, cache: Path) -> Verdict | None:
    """The verdict of an earlier run of this gate on this very model, if there is one."""
    try:
        data = json.loads(_verdict_path(fingerprint, cache).read_text())
        if data.pop("gate_version") != GATE_VERSION:
            return None
        return Verdict(**{**data, "problems": tuple(data["problems"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_verdict(verdict: Verdict, fingerprint: bytes, cache: Path) -> None:
    """Remember a verdict beside the model's fingerprint; written whole or not at all."""
    path = _verdict_path(fingerprint, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps({"gate_version": GATE_VERSION, **asdict(verdict)}, indent=1))
    partial.rename(path)


def _verdict_path(fingerprint: bytes, cache: Path) -> Path:
    return cache / "gates" / f"{fingerprint.hex()}.json"


def run_gate(model: DecoderModel) -> Verdict:
    """Run all checks. Cost: a dozen prefills of about 130 tokens, in fp32.

    The model is cast to fp32 and back when it runs in another type; that round trip is exact.
    """
    if model.dtype is torch.float32:
        return _judge(model)
    network: Any = model.hf  # transformers types .to() for its own hooks only
    network.float()
    try:
        return _judge(model.in_dtype(torch.float32))
    finally:
        network.to(model.dtype)


def _judge(model: DecoderModel) -> Verdict:
    trial = _Trial(model)
    try:
        figures = trial.figures()
    finally:
        trial.close()
    tolerance = TOLERANCE * min(1.0, figures["logits_std"])
    must_agree = {
        "reference": "our full prefill differs from transformers' own forward pass",
        "continuation": "decoding after our prefill differs from transformers' forward pass",
        "repair_all": "repairing every row differs from full prefill",
        "exact_first_chunk": "a chunk placed right after the head differs from full prefill",
        "prefix_reuse": "reusing an exact prefix differs from full prefill",
        "identity": "placing a chunk where it was made does not give the same bits",
        "rope_relative": "rotated keys do not depend on relative positions alone",
    }
    limits = dict.fromkeys(must_agree, tolerance) | {"identity": 0.0, "rope_relative": 1e-3}
    bad = [name for name in must_agree if not figures[name] <= limits[name]]
    problems = [f"{n}: {must_agree[n]} ({figures[n]:.2e} > {limits[n]:.0e})" for n in bad]
    if not figures["unrepaired"] > 10 * tolerance:
        problems.append("unrepaired: reuse without repair changes nothing, the gate is blind")
    serves = not {"reference", "continuation"} & set(bad)
    return Verdict(serves, not problems, tolerance, figures, tuple(problems))


class _Trial:
    """One engine, one random prompt, and the ways to answer it."""

    def __init__(self, model: DecoderModel) -> None:
        self.model = model
        block = 16
        capacity = 4096 * model.geometry.bytes_per_token
        settings = EngineSettings(
            kv_capacity_bytes=max(capacity, 1 << 20), block_size_tokens=block, step_tokens=48
        )
        self.engine = Engine(model, settings, Metrics())
        generator = torch.Generator().manual_seed(20260101)
        vocabulary = int(model.hf.config.vocab_size)

        def tokens(count: int) -> tuple[int, ...]:
            return tuple(torch.randint(vocabulary, (count,), generator=generator).tolist())

        lengths: Any = _LENGTHS
        self.head = tokens(lengths["head"])
        self.chunks = [tokens(n) for n in lengths["chunks"]]
        self.question = tokens(lengths["question"])

    def close(self) -> None:
        self.engine.close()

    def figures(self) -> dict[str, float]:
        """Every measured difference, by name."""
        records = [self._record(ids) for ids in self.chunks]
        full = self._answer(self.chunks, {}, salt=b"full")
        tokens = [*self._prompt(self.chunks).token_ids, *full.token_ids[:1]]
        reference = self._reference(tokens)
        placed = {i + 1: record for i, record in enumerate(records)}
        alone = self._answer(self.chunks[:1], {}, salt=b"alone")
        first = self._answer(self.chunks[:1], {1: records[0]}, salt=b"first")
        repaired = self._answer(self.chunks, placed, salt=b"all", policy="all")
        unrepaired = self._answer(self.chunks, placed, salt=b"none", policy="none")
        # the first answer left its exact prefix behind under the same salt
        again = self._answer(self.chunks, {}, salt=b"full")
        if not again.plan.spans[0].prefix:
            raise AssertionError("the prefix cache did not match a repeated prompt")
        return {
            "logits_std": float(reference[-2].std()),
            "reference": _difference(full.first_logits, reference[-2]),
            "continuation": _difference(self._continued(tokens), reference[-1]),
            "repair_all": _difference(repaired.first_logits, full.first_logits),
            "exact_first_chunk": _difference(first.first_logits, alone.first_logits),
            "prefix_reuse": _difference(again.first_logits, full.first_logits),
            "identity": self._identity(),
            "rope_relative": self._rope_relative(),
            "unrepaired": _difference(unrepaired.first_logits, full.first_logits),
        }

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
        salt: bytes, policy: Any = "none",
    ) -> Outcome:  # fmt: skip
        request = Generation(
            self._prompt(chunks), records,
            policy=policy_named(policy, RepairSettings()),
            budget=1.0, exact_only=not records, sampling=Sampling(), max_new_tokens=2, salt=salt,
        )  # fmt: skip
        self.engine.submit(request)
        return next(e for e in request.events() if isinstance(e, Outcome))

    def _continued(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits after the prompt and its first answer token, given as one prompt."""
        spans = (
            Span(SpanKind.HEAD, 0, tuple(tokens[:-1])),
            Span(SpanKind.QUESTION, len(tokens) - 1, (tokens[-1],)),
        )
        request = Generation(
            Prompt(spans, head_is_canonical=False), {},
            policy=policy_named("none", RepairSettings()), budget=0.0, exact_only=True,
            sampling=Sampling(), max_new_tokens=1, salt=b"full",
        )  # fmt: skip
        self.engine.submit(request)
        return next(e for e in request.events() if isinstance(e, Outcome)).first_logits

    @torch.inference_mode()
    def _reference(self, tokens: Sequence[int]) -> torch.Tensor:
        """transformers' own forward pass, its own attention and its own (fresh) rotary."""
        with _as_transformers_runs_it(self.model):
            ids = torch.tensor([list(tokens)], device=self.model.device)
            hf: Any = self.model.hf
            return hf(ids, use_cache=False).logits[0].float().cpu()  # type: ignore[no-any-return]

    def _identity(self) -> float:
        """Largest difference between the pool a prefill wrote and its record placed there again."""
        request = self._prefill(self.chunks[0])
        record = request.future.result()
        start, count = len(self.head), record.num_tokens
        slots = request.slots[start : start + count]
        pool = self.engine.pool
        scratch = self.model.new_pool(pool.keys[0].shape[0])
        where = torch.arange(start, start + count, device=self.model.device)
        self.model.place(record.kv, where, scratch, slots)
        worst = 0.0
        for ours, theirs in zip(
            [*scratch.keys, *scratch.values], [*pool.keys, *pool.values], strict=True
        ):
            worst = max(worst, float((ours[slots] - theirs[slots]).abs().max()))
        return worst

    def _rope_relative(self) -> float:
        """|⟨R(p)q, R(s)k⟩ − ⟨R(p+d)q, R(s+d)k⟩| for unit vectors, far apart and far out."""
        generator = torch.Generator().manual_seed(7)
        dim = self.model.geometry.head_dim
        q, k = (
            torch.nn.functional.normalize(torch.randn(64, 1, dim, generator=generator), dim=-1)
            for _ in range(2)
        )
        at = torch.randint(0, 1000, (64,), generator=generator)
        to = torch.randint(0, 1000, (64,), generator=generator)
        span = min(self.model.context_tokens, 32768) - 1001

        def dots(offset: int) -> torch.Tensor:
            device = self.model.device
            turned = [
                kernels.rotate(x.to(device), *self.model.angles.at((p + offset).to(device)))
                for x, p in ((q, at), (k, to))
            ]
            return (turned[0] * turned[1]).sum(-1)

        return float((dots(0) - dots(max(span, 1))).abs().max())


def _as_transformers_runs_it(model: DecoderModel) -> AbstractContextManager[None]:
    from contextlib import contextmanager

    @contextmanager
    def swapped() -> Iterator[None]:
        hf: Any = model.hf
        ours, rotary = hf.config._attn_implementation, hf.model.rotary_emb
        hf.config._attn_implementation = "eager"
        hf.model.rotary_emb = type(rotary)(config=hf.config).to(model.device)
        try:
            yield
        finally:
            hf.config._attn_implementation, hf.model.rotary_emb = ours, rotary

    return swapped()


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference; NaN anywhere counts as infinite."""
    worst = float((a - b).abs().max())
    return worst if worst == worst else float("inf")
