"""Tiny random models of every supported family, a tiny tokenizer, and an engine to run them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from chunkcache.chunk import ChunkKey, ChunkKV, Span, SpanKind
from chunkcache.config import EngineSettings, RepairSettings
from chunkcache.engine.core import Engine
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.generation import Generation
from chunkcache.engine.model import (
    geometry_of,
    model_fingerprint,
    wrap_model,
)
from chunkcache.engine.outcome import Outcome
from chunkcache.engine.pool import KVPool
from chunkcache.engine.prefill import ChunkPrefill
from chunkcache.engine.prompt import Prompt
from chunkcache.engine.sequence_kv import SequenceKV
from chunkcache.metrics import Metrics
from chunkcache.protocol import Sampling
from chunkcache.repair import policy_named
from chunkcache_kernels import turned

_SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
_FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama-tied-llama3-rope": (
        LlamaConfig, LlamaForCausalLM,
        {"tie_word_embeddings": True, "rope_parameters": _LLAMA3},
    ),
    "llama-wide-heads": (LlamaConfig, LlamaForCausalLM, {"head_dim": 16}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16, "tie_word_embeddings": True}),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM, {"no_rope_layers": [1, 0, 1]}),
}  # fmt: skip


@pytest.fixture(scope="session")
def families() -> list[str]:
    return list(_FAMILIES)


def pytest_generate_tests(metafunc: Any) -> None:
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", list(_FAMILIES))


@pytest.fixture(scope="session")
def build(tokenizer: PreTrainedTokenizerFast) -> Callable[..., DecoderModel]:
    """A fresh random model of a family; weights large enough for attention to be far from flat."""

    def make(
        family: str = "llama", dtype: torch.dtype = torch.float32, **sizes: Any
    ) -> DecoderModel:
        config_class, model_class, extra = _FAMILIES[family]
        torch.manual_seed(11)
        config = config_class(**{**_SIZES, **extra, **sizes})
        config._attn_implementation = "eager"
        network = model_class(config)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "norm" not in name:
                    parameter.normal_(std=0.25)
        mark = model_fingerprint(config, tokenizer, f"random-{family}", geometry_of(config, dtype))
        return wrap_model(network.to(dtype), tokenizer, fingerprint=mark, name=f"tiny-{family}")

    return make


@pytest.fixture(scope="session")
def tiny(build: Callable[..., DecoderModel]) -> DecoderModel:
    """A tiny random Llama in fp32, shared by tests that change nothing in it."""
    return build()


def collect_kv(model: DecoderModel, pool: KVPool, kv: SequenceKV, num_tokens: int) -> torch.Tensor:
    """What a sequence sees, layer by layer: K turned on from its place in a segment to its position
    in the prompt, and V: `[layers, 2, tokens, heads, dim]`. Every position must be there once.
    """
    geometry = model.geometry
    shape = (2, num_tokens, geometry.num_kv_heads, geometry.head_dim)
    layers = []
    for layer, facts in enumerate(model.facts.layers):
        seen, times = torch.full(shape, torch.nan), np.zeros(num_tokens, int)
        for segment in kv.segments(layer + 1):
            parts = pool.arenas[segment.arena].read_rows(layer, segment.pages)
            index = np.flatnonzero(segment.key_positions < num_tokens)
            keys, values = (part[index].float() for part in parts)
            if facts.turned:
                cos, sin = model.facts.kinds[0].angles.at(torch.full((len(index),), segment.begin))
                length = (cos.square() + sin.square()).sqrt()  # yarn's angles scale what they turn
                keys = turned(keys, cos / length, sin / length)
            positions = segment.key_positions[index]
            seen[0, positions], seen[1, positions] = keys, values
            np.add.at(times, positions, 1)
        assert (times == 1).all(), f"layer {layer}: positions seen so often: {times}"
        layers.append(seen)
    return torch.stack(layers)


@pytest.fixture(scope="session", name="collect_kv")
def collect_kv_fixture() -> Callable[..., torch.Tensor]:
    """`collect_kv`, for tests without a bench."""
    return collect_kv


@dataclass
class Bench:
    """An engine, and the ways tests talk to it."""

    engine: Engine
    model: DecoderModel
    head: tuple[int, ...]
    question: tuple[int, ...]
    outcomes: list[Outcome] = field(default_factory=list)

    def tokens(self, count: int, seed: int) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randint(3, 380, (count,), generator=generator).tolist())

    def prompt(
        self,
        chunks: Sequence[Sequence[int]],
        *,
        history: Sequence[int] = (),
        canonical: bool = True,
    ) -> Prompt:
        pieces = [(SpanKind.HEAD, self.head), *[(SpanKind.CHUNK, ids) for ids in chunks]]
        pieces += [(SpanKind.HISTORY, history), (SpanKind.QUESTION, self.question)]
        spans, start = [], 0
        for kind, ids in pieces:
            if ids:
                spans.append(Span(kind, start, tuple(ids)))
                start += len(ids)
        return Prompt(tuple(spans), head_is_canonical=canonical)

    def prefill(self, ids: Sequence[int], **options: Any) -> ChunkPrefill:
        request = self.begin(ids, **options)
        request.future.result(timeout=60)
        return request

    def begin(
        self, ids: Sequence[int], *, prior: Sequence[Sequence[int]] = (), salt: bytes = b"chunks"
    ) -> ChunkPrefill:
        born = [*self.head, *(t for chunk in prior for t in chunk)]
        key = ChunkKey.of(ids, fingerprint=self.model.fingerprint, born_prefix=born, salt=salt)
        request = ChunkPrefill(
            key, head=self.head, salt=salt, prior=prior, lowers=self.engine.lowering
        )
        self.engine.submit(request)
        return request

    def record(self, ids: Sequence[int], **options: Any) -> ChunkKV:
        return self.prefill(ids, **options).future.result()

    def submit(
        self,
        prompt: Prompt,
        records: dict[int, ChunkKV],
        policy: Any = "none",
        *,
        budget: float = 1.0,
        exact_only: bool = False,
        salt: bytes = b"answers",
        max_new_tokens: int = 3,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Generation:
        chosen = policy_named(policy, RepairSettings()) if isinstance(policy, str) else policy
        residents = {}
        for index, record in records.items():
            # a doctored record has the key of the true one: nobody else may find it
            resident = self.engine.chunks.hold(record, listed=False)
            assert resident is not None, "no room for the chunks of a test"
            residents[index] = resident
        request = Generation(
            prompt, residents, policy=chosen, budget=budget, exact_only=exact_only,
            sampling=sampling or Sampling(), max_new_tokens=max_new_tokens, salt=salt, **options,
        )  # fmt: skip
        self.engine.submit(request)
        return request

    def answer(self, prompt: Prompt, records: dict[int, ChunkKV], *args: Any, **kw: Any) -> Outcome:
        request = self.submit(prompt, records, *args, **kw)
        return next(e for e in request.events() if isinstance(e, Outcome))

    def kv(self, request: Generation, num_tokens: int) -> torch.Tensor:
        """`collect_kv` of a request. Read at once: pages it has let go are the next request's."""
        assert request.kv is not None
        return collect_kv(self.model, self.engine.pool, request.kv, num_tokens)

    def answer_and_kv(
        self, prompt: Prompt, *args: Any, **options: Any
    ) -> tuple[Outcome, torch.Tensor]:
        """The outcome, and K and V of the prompt's rows: `[layers, 2, tokens, heads, dim]`."""
        request = self.submit(prompt, *args, max_new_tokens=1, **options)
        outcome = next(e for e in request.events() if isinstance(e, Outcome))
        return outcome, self.kv(request, prompt.num_tokens)

    def wait_until_idle(self) -> None:
        """A request's result may be read a moment before the engine has let go of its pages."""
        deadline = time.monotonic() + 30
        while self.engine.unfinished:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def full(self, prompt: Prompt, **options: Any) -> Outcome:
        """The slow twin: everything computed, nothing shared."""
        salt = options.pop("salt", b"full-%d" % len(self.outcomes))
        self.outcomes.append(self.answer(prompt, {}, exact_only=True, salt=salt, **options))
        return self.outcomes[-1]


@pytest.fixture
def bench(tiny: DecoderModel, open_bench: Callable[..., Bench]) -> Bench:
    return open_bench(tiny)


@pytest.fixture
def open_bench() -> Iterator[Callable[..., Bench]]:
    """Engines over a model; afterwards each is closed and its page books must balance."""
    opened: list[Engine] = []

    def make(model: DecoderModel, **settings: Any) -> Bench:
        defaults = {
            "kv_capacity_bytes": 1 << 22, "chunk_capacity_bytes": 1 << 22,
            "page_tokens": 8, "step_tokens": 48,
        }  # fmt: skip
        engine = Engine(model, EngineSettings(**{**defaults, **settings}), Metrics())
        opened.append(engine)
        result = Bench(engine, model, (), ())
        result.head, result.question = result.tokens(13, 101), result.tokens(7, 102)
        for arena in engine.pool.arenas:
            for part in (arena.keys, arena.values, arena.key_scales, arena.value_scales):
                if part is not None and part.is_floating_point():
                    part.fill_(float("nan"))  # reading a slot nobody wrote must show
        return result

    yield make
    for engine in opened:
        engine.close()
        engine.pages.check()
        assert engine.unfinished == 0
        assert engine.pages.available == engine.pages.num_pages
        assert engine.chunks.leased == 0
