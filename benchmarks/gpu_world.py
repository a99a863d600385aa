"""A model with random weights on a device, an engine over it, and chunks with random KV."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from page_cache import drop
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from chunkcache.chunk import ChunkKey, ChunkKV, ChunkStats, Span, SpanKind
from chunkcache.config import EngineSettings, RepairSettings
from chunkcache.engine.core import Engine
from chunkcache.engine.generation import Generation
from chunkcache.engine.loader import Batch
from chunkcache.engine.model import wrap_model
from chunkcache.engine.prompt import Prompt
from chunkcache.engine.resident import Resident
from chunkcache.metrics import Metrics
from chunkcache.protocol import Sampling
from chunkcache.repair import policy_named
from chunkcache.store.base import RecordReader
from chunkcache.store.codec import codec_named
from chunkcache.store.disk import DiskTier
from chunkcache.store.reader import HeldRecord, kv_shape

SALT = b"bench"
HEAD, QUESTION = 16, 32  # tokens
_NOBODYS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
BringUp = Callable[[Callable[[], None]], dict[int, Resident]]
"""Chunks on their way up, leased for one request; what it is given is called when all are there."""
_COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 24}


def _let_go(*, on_gpu: bool) -> None:
    """What nobody holds any more is free on the device."""
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Shape:
    """A model's shape, and what is asked of it."""

    config: PreTrainedConfig
    prompts: tuple[int, ...]  # tokens
    chunk_tokens: int
    requests: tuple[int, ...]  # that decode together
    new_tokens: int
    step_tokens: int
    page_tokens: int


# contexts are longer than the models' own, so that an answer fits behind 32k tokens
SHAPES = {
    "llama-3-8b": Shape(
        LlamaConfig(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=65536,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, **_NOBODYS,
        ),
        (8192, 32768), 512, (1, 8, 32), 65, 4096, 64,
    ),
    "qwen2.5-7b": Shape(
        Qwen2Config(
            vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
            num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=65536,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, **_NOBODYS,
        ),
        (8192, 32768), 512, (1, 8, 32), 65, 4096, 64,
    ),
    "tiny": Shape(
        LlamaConfig(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, **_NOBODYS,
        ),
        (176,), 32, (1, 3), 5, 64, 16,
    ),
}  # fmt: skip


class World:
    """One shape on one device. Used in a `with`; its engine is closed at the end."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        with torch.device(device):
            network = AutoModelForCausalLM.from_config(
                shape.config, dtype=dtype, attn_implementation="sdpa"
            )
        nobodys = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
        self.model = wrap_model(network, nobodys, fingerprint=b"random weights", name="random")
        kv_bytes = self.model.geometry.bytes_per_token
        most = max(shape.prompts)
        rows = most + max(shape.requests) * (HEAD + QUESTION + shape.new_tokens + shape.page_tokens)
        self._settings = EngineSettings(
            kv_capacity_bytes=max(1 << 20, 2 * rows * kv_bytes),
            chunk_capacity_bytes=max(1 << 20, 2 * most * kv_bytes),
            step_tokens=shape.step_tokens, page_tokens=shape.page_tokens,
            max_running=max(shape.requests), queue_limit=2 * max(shape.requests),
        )  # fmt: skip
        self.engine = Engine(self.model, self._settings, Metrics())
        self.weight_bytes = sum(
            p.nbytes for name, p in network.named_parameters() if "embed_tokens" not in name
        )
        self.copy_bytes_per_s = self._copy_bytes_per_s(device)
        self._generator = torch.Generator().manual_seed(1)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        """What it held on the device is free for the next one."""
        on_gpu = self.model.device.type == "cuda"
        self.engine.close()
        del self.engine, self.model
        _let_go(on_gpu=on_gpu)

    def use_pages(self, chunk_pages: str) -> None:
        """Keep chunks in pages of that type from here on: another engine, if it is another type."""
        if self._settings.chunk_pages == chunk_pages:
            return
        self.engine.close()
        del self.engine
        _let_go(on_gpu=self.model.device.type == "cuda")
        self._settings = self._settings.model_copy(update={"chunk_pages": chunk_pages})
        self.engine = Engine(self.model, self._settings, Metrics())

    def _copy_bytes_per_s(self, device: torch.device) -> float:
        """Read and written, on the device."""
        source = torch.zeros(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        best = float("inf")
        for _ in range(5):
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            target.copy_(source)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        return 2 * source.nbytes / best

    def prompt(self, tokens: int) -> Prompt:
        """Head, chunks and question of random tokens, of about that length."""
        shape, spans, start = self.shape, [], 0
        chunks = (tokens - HEAD - QUESTION) // shape.chunk_tokens
        lengths = [HEAD, *[shape.chunk_tokens] * chunks, QUESTION]
        kinds = [SpanKind.HEAD, *[SpanKind.CHUNK] * chunks, SpanKind.QUESTION]
        for kind, length in zip(kinds, lengths, strict=True):
            ids = torch.randint(shape.config.vocab_size, (length,), generator=self._generator)
            spans.append(Span(kind, start, tuple(ids.tolist())))
            start += length
        return Prompt(tuple(spans), head_is_canonical=True)

    def records(self, prompt: Prompt) -> dict[int, ChunkKV]:
        """Of its chunks, by span index; all have the same numbers, in one place."""
        geometry, count = self.model.geometry, self.shape.chunk_tokens
        kv = torch.randn(kv_shape(geometry, count)).to(self.model.dtype)
        kv = kv.pin_memory() if self.model.device.type == "cuda" else kv
        nothing = np.zeros(count, dtype=np.float32)
        stats = ChunkStats(nothing, nothing, nothing[:0], float(count))
        head, made = prompt.spans[0].token_ids, {}
        for index, span in enumerate(prompt.spans):
            if span.kind is SpanKind.CHUNK:
                key = ChunkKey.of(
                    span.token_ids, fingerprint=self.model.fingerprint, born_prefix=head, salt=SALT
                )
                made[index] = ChunkKV(key, geometry, kv, stats)
        return made

    def prompt_bytes(self, tokens: int, of_chunks: int) -> int:
        """KV of a prompt as it lies in pages, those of chunks of the type they have."""
        pool = self.engine.pool
        own, chunks = (a.page_bytes / self.shape.page_tokens for a in (pool.own, pool.chunks))
        return int((tokens - of_chunks) * own + of_chunks * chunks)

    def pages_bytes(self, rows: int) -> int:
        """What a request's own rows take on the device, in whole pages."""
        return self.engine.pages.pages_for(rows) * self.engine.pool.own.page_bytes

    def ask(
        self, prompt: Prompt, residents: dict[int, Resident], budget: float, *, new_tokens: int
    ) -> Generation:
        """Submit the prompt over chunks, whose leases are the request's."""
        policy = policy_named("question" if budget else "none", RepairSettings())
        request = Generation(
            prompt, residents, policy=policy, budget=budget, exact_only=not residents,
            sampling=Sampling(ignore_eos=True), max_new_tokens=new_tokens, salt=SALT,
            takes_prefix=False, gives_prefix=False,
        )  # fmt: skip
        self.engine.submit(request)
        return request

    @contextmanager
    def held(self, records: dict[int, ChunkKV]) -> Iterator[dict[int, Resident]]:
        """The chunks in pages."""
        with self.engine.chunks.leases() as leases:
            held: dict[int, Resident] = {}
            for index, record in records.items():
                resident = self.engine.chunks.hold(record)
                assert resident is not None, "no room for the chunks of one prompt"
                leases.add(resident)
                held[index] = resident
            yield held
        self.engine.chunks.clear()

    def again(self, held: dict[int, Resident]) -> dict[int, Resident]:
        """The same with one lease more each, for one request."""
        for resident in held.values():
            self.engine.chunks.lease_again(resident)
        return dict(held)

    def bring_up(
        self, records: dict[int, ChunkKV], on_end: Callable[[], None]
    ) -> dict[int, Resident]:
        """The chunks on their way up from memory, leased for one request."""
        readers = {index: HeldRecord(record) for index, record in records.items()}
        return self._load("host", readers, on_end)

    def _load(
        self, tier: str, readers: dict[int, Any], on_end: Callable[[], None]
    ) -> dict[int, Resident]:
        pairs: list[tuple[RecordReader, Resident]] = []
        residents = {}
        for index, reader in readers.items():
            expected = self.engine.chunks.expect(reader.key, reader.stats)
            assert expected is not None and expected[1], "no room, or there already"
            residents[index] = expected[0]
            pairs.append((reader, expected[0]))
        batch = Batch(tier, time.perf_counter(), on_end=lambda _: on_end())
        self.engine.loader.load(batch, pairs)
        return residents

    @contextmanager
    def on_disk(
        self, records: dict[int, ChunkKV], folder: Path
    ) -> Iterator[tuple[Callable[[], None], BringUp]]:
        """The chunks in LMDB: what drops them from the page cache, and what brings them up."""
        size = sum(record.kv.nbytes for record in records.values())
        tier = DiskTier(
            folder / "kv", 2 * size + (64 << 20), codec_named("raw", folder),
            fingerprint=self.model.fingerprint,
        )  # fmt: skip
        try:
            for record in records.values():
                if not tier.contains(record.key):
                    assert tier.put(record), "no room on the disk"

            def bring_up(on_end: Callable[[], None]) -> dict[int, Resident]:
                readers = {index: tier.open(record.key) for index, record in records.items()}
                return self._load("disk", readers, on_end)

            yield partial(drop, folder / "kv" / "data.mdb"), bring_up
        finally:
            tier.close()
