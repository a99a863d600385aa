"""The advice from a service's log, tried: a service of that size, asked the same, hits as often.

`CHUNKCACHE_TEST_SIZE` makes documents and questions so many times as many.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chunkcache.evaluate.hitrate import Workload, advise, measure, read_service_log
from chunkcache.evaluate.hitrate.policies import SHIPPED
from chunkcache.store.cost import CostModel, LoadPlan

SIZE = int(os.environ.get("CHUNKCACHE_TEST_SIZE", "1"))
KINDS = (
    "otter", "heron", "badger", "lynx", "stoat", "raven", "viper", "newt", "crane", "ibis", "tapir",
    "okapi", "bison", "gecko",
)  # fmt: skip
ANIMALS = tuple(f"{kind}{n or ''}" for n in range(SIZE) for kind in KINDS)
QUESTIONS = 30 * SIZE
WANTED = 0.5


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "animals"
    folder.mkdir()
    for number, animal in enumerate(ANIMALS):
        text = f"The {animal} lives in valley {number}, " + "far from roads and towns, " * (
            number % 3
        )
        (folder / f"{animal}.txt").write_text(text + "and sleeps by day.")
    return folder


def ask_all(cache: Any, corpus: Path) -> float:
    """Zipf's questions, two passages each. Returns: share of passage tokens that a tier had."""
    cache.ingest([corpus])
    draw = np.random.default_rng(5)
    weights = np.arange(1, len(ANIMALS) + 1) ** -1.1
    tokens = hits = 0
    for _ in range(QUESTIONS):
        first, second = draw.choice(ANIMALS, 2, replace=False, p=weights / weights.sum())
        question = f"{first} {second}"
        answer = cache.ask(question, max_tokens=1, top_k=2, policy="none")
        cache.runtime.store.flush()  # a replay writes at once
        for span in answer.report.spans:
            if span.kind == "chunk":
                tokens += span.tokens
                hits += 0 if span.miss else span.tokens
    return hits / tokens


def test_a_service_of_the_advised_size_hits_as_often_as_the_replay(
    open_cache: Callable[..., Any], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whether a tiny model or a busy disk is faster is a matter of luck
    monkeypatch.setattr(CostModel, "choose", lambda _, chunks, *__: LoadPlan((True,) * len(chunks)))
    retrieval = {"mode": "lexical", "chunk_tokens": 256}
    first = open_cache(home=tmp_path / "first", retrieval=retrieval)
    most = ask_all(first, corpus)
    trace = read_service_log(tmp_path / "first")
    assert trace.sizes is not None
    facts = measure(trace, trace.sizes)
    assert facts.accesses == 2 * QUESTIONS
    assert most == pytest.approx(facts.highest_token_hit_rate)
    workload = Workload(trace, trace.sizes, facts)
    advice = advise(workload, WANTED, policy=SHIPPED)
    assert advice.memory_bytes < facts.footprint_bytes
    assert advice.disk_bytes < facts.disk_footprint_bytes
    store = {"host_capacity_bytes": advice.memory_bytes, "disk_capacity_bytes": advice.disk_bytes}
    second = open_cache(home=tmp_path / "second", retrieval=retrieval, store=store)
    hit_rate = ask_all(second, corpus)
    assert hit_rate == pytest.approx(advice.replay.hit_rate, abs=0.04)
    assert hit_rate > WANTED - 0.04
