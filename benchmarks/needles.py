"""Needles in hay: does repair recompute the rows that hold the answer?

Five passages of unrelated sentences, each with a made-up number of some thing; the question asks
for one of the numbers. Found: every token of that number is among the recomputed rows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.chunk import SpanKind
from chunkcache.engine.born_context import BORN_PASSAGES
from chunkcache.protocol import AnswerRequest, GivenDocument, Message, Sampling

if TYPE_CHECKING:
    from chunkcache.engine.prompt import Prompt
    from chunkcache.protocol import ChunkCacheOptions
    from chunkcache.service import ChunkCache

_THINGS = ("vault", "ferry", "lighthouse", "archive", "orchard", "observatory", "mill", "chapel")
_HAY = " ".join(text for _, text in BORN_PASSAGES).removesuffix(".").split(". ")
_PASSAGES, _SENTENCES = 5, 4


@dataclass(frozen=True, slots=True)
class NeedleCase:
    """A question, its passages, and the number that answers it."""

    question: str
    passages: tuple[str, ...]
    needle: str

    def request(self, options: ChunkCacheOptions) -> AnswerRequest:
        """The question over its passages; only the prompt matters, so one token is asked for."""
        return AnswerRequest(
            messages=[Message(role="user", content=self.question)],
            documents=[GivenDocument(id=str(i), text=p) for i, p in enumerate(self.passages)],
            sampling=Sampling(max_tokens=1),
            options=options,
        )


def needle_case(number: int) -> NeedleCase:
    """The same case for the same number."""
    draw = random.Random(number)
    things = draw.sample(_THINGS, _PASSAGES)
    passages, needles = [], []
    for thing in things:
        needles.append(str(draw.randint(10_000, 99_999)))
        sentences = draw.sample(_HAY, _SENTENCES)
        sentence = f"The number of the {thing} is {needles[-1]}"
        sentences.insert(draw.randint(0, _SENTENCES), sentence)
        passages.append(". ".join(sentences) + ".")
    wanted = draw.randrange(_PASSAGES)
    question = f"What is the number of the {things[wanted]}?"
    return NeedleCase(question, tuple(passages), needles[wanted])


def finds_needle(cache: ChunkCache, case: NeedleCase, options: ChunkCacheOptions) -> bool:
    """Whether the rows recomputed for this case hold the whole needle."""
    handle = cache.start(case.request(options))
    list(handle.events())
    assert handle.outcome is not None
    wanted = needle_positions(cache, handle.prompt, case.needle)
    return wanted <= set(handle.outcome.recomputed.tolist())


def needle_positions(cache: ChunkCache, prompt: Prompt, needle: str) -> set[int]:
    """Positions of the tokens that spell the needle, in the one chunk that has it."""
    tokenizer = cache.runtime.model.tokenizer
    for span in prompt.spans:
        if span.kind is not SpanKind.CHUNK:
            continue
        ends, text = [], ""
        for token in span.token_ids:
            text += str(tokenizer.decode([token]))
            ends.append(len(text))
        start = text.find(needle)
        if start >= 0:
            starts = [0, *ends[:-1]]
            stop = start + len(needle)
            return {
                span.start + i
                for i, (a, b) in enumerate(zip(starts, ends, strict=True))
                if b > start and a < stop
            }
    raise ValueError(f"no chunk holds {needle}")
