"""Passages of equal length and the prompts made of them: as documents, and as token ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench_quality import data_folder

from chunkcache.cli.stdlib_pages import stdlib_pages
from chunkcache.config import Settings
from chunkcache.engine.loading import load_tokenizer
from chunkcache.engine.prompt import PromptBuilder
from chunkcache.evaluate.quality import read_questions
from chunkcache.protocol import GivenDocument, Message
from chunkcache.retrieval.splitter import Splitter
from chunkcache.service.given import GivenDocuments

FRAME_TOKENS = 12  # at most what the title line and the blank line around a passage take


@dataclass(frozen=True, slots=True)
class Asked:
    """A question over documents, and the prompt that chunkcache makes of them."""

    question: str
    documents: tuple[GivenDocument, ...]
    token_ids: tuple[int, ...]

    def told(self, max_tokens: int, **options: Any) -> dict[str, Any]:
        """What an arm is told; `options` are `ChunkCacheOptions`, which other engines ignore."""
        return {
            "do": "answer", "question": self.question, "token_ids": self.token_ids,
            "documents": [document.model_dump() for document in self.documents],
            "max_tokens": max_tokens, "options": options,
        }  # fmt: skip


class Passages:
    """`count` passages of `tokens` tokens in a prompt each, cut at even distances from one text.

    The text is the contexts of a question set, or without the sets the documentation of the
    interpreter. Where it is shorter than all passages together, neighbours overlap.
    """

    def __init__(self, settings: Settings, question_set: str, tokens: int, count: int) -> None:
        tokenizer: Any = load_tokenizer(settings)
        self.source, text = _text(question_set)
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        size = tokens - FRAME_TOKENS
        step = min(size, (len(offsets) - size) // max(1, count - 1))
        self.documents = []
        for number in range(count):
            first = number * step
            piece = text[offsets[first][0] : offsets[first + size - 1][1]]
            name = f"{tokens}-{number}"
            self.documents.append(GivenDocument(id=name, title="Passage", text=piece))
        self._given = GivenDocuments(Splitter(tokenizer, tokens))
        self._prompts = PromptBuilder(tokenizer, settings.prompt)

    def asked(self, question: str, numbers: Sequence[int] = ()) -> Asked:
        """The question over the passages of these numbers, in this order."""
        documents = tuple(self.documents[n] for n in numbers)
        chunks = self._given.chunks(documents, "public")
        assert len(chunks) == len(documents), "a passage was split"
        prompt = self._prompts.build([Message(role="user", content=question)], chunks)
        return Asked(question, documents, prompt.token_ids)


class Draws:
    """Passages of one prompt after another, no two of which begin with the same passage.

    So no prompt shares more with an earlier one than the head, and a cache of exact prefixes, as
    vLLM's, serves no part of a passage.
    """

    def __init__(self, seed: int, pool: int) -> None:
        self._draw = random.Random(seed)
        self._pool = range(pool)
        self._firsts = self._draw.sample(self._pool, pool)

    def next(self, count: int) -> list[int]:
        """`count` different numbers. Raises `RuntimeError` when each has begun a prompt."""
        if not self._firsts:
            raise RuntimeError(f"each of {len(self._pool)} passages has begun a prompt")
        first = self._firsts.pop()
        return [first, *self._draw.sample([n for n in self._pool if n != first], count - 1)]


def zipf_draw(draw: random.Random, pool: int, count: int) -> list[int]:
    """`count` different numbers below `pool`, drawn with weights 1, 1/2, 1/3, …"""
    weights = [1 / (rank + 1) for rank in range(pool)]
    drawn: list[int] = []
    while len(drawn) < count:
        number = draw.choices(range(pool), weights)[0]
        if number not in drawn:
            drawn.append(number)
    return drawn


def _text(question_set: str) -> tuple[str, str]:
    """Where the text is from, and the text."""
    folder = data_folder()
    if folder is None:
        return "documentation of the interpreter", "\n".join(page for _, page in stdlib_pages())
    questions = read_questions(folder / f"{question_set}.jsonl.gz")
    contexts = dict.fromkeys(c.text for q in questions for c in q.contexts or ())
    return question_set, "\n".join(contexts)
