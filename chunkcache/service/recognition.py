"""Passages that a client put into its messages itself: found, and cut out of the prompt.

A pipeline that has never heard of us writes its passages into a user turn or a system text. Where
those are passages we know, their KV is read from the cache as that of retrieved ones is. The
prompt's tokens stay what they are: only runs that are token for token those of a record are cut
out, and where the tokens at a passage's edge differ, it is cut that much shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.chunk import SpanKind
from chunkcache.engine.cut import Cut, cut_out, row_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.chunk import Chunk
    from chunkcache.engine.prompt import Prompt
    from chunkcache.protocol import AnswerRequest
    from chunkcache.retrieval.passage_matcher import Match, PassageMatcher
    from chunkcache.service.runtime import Runtime

_EDGE_TOKENS = 4  # that a passage may lack where its text meets other text, and still be whole
_SYSTEM = {"system", "developer"}


@dataclass(frozen=True, slots=True)
class Recognised:
    """The known passages in a request's messages, by the span of `prompt` that they stand in."""

    prompt: Prompt | None = None
    found: tuple[tuple[SpanKind, Match], ...] = ()

    @property
    def tokens_now(self) -> int:
        """Tokens of the tenant's own documents in the system text and the last user turn.

        Passages of earlier requests do not count: they are forgotten sooner or later.
        """
        now = [m for kind, m in self.found if kind is not SpanKind.HISTORY and not m.is_given]
        return sum(match.end - match.start for match in now)

    def holds(self, chunk: Chunk) -> bool:
        """Whether a chunk stands in the messages as a whole, in one piece or several."""
        same = [m for _, m in self.found if m.chunk.token_ids == chunk.token_ids]
        rows = {row for m in same for row in range(m.row, m.row + m.end - m.start)}
        return bool(rows) and len(chunk.token_ids) - len(rows) <= _EDGE_TOKENS


class Recogniser:
    """Finds known passages in requests, and cuts prompts up. Thread-safe."""

    def __init__(self, runtime: Runtime, matcher: PassageMatcher) -> None:
        self._runtime = runtime
        self._matcher = matcher

    def recognise(
        self, request: AnswerRequest, prompt: Prompt, *, learns: bool = False
    ) -> Recognised:
        """The passages in the messages of a request, in a prompt made of it.

        With `learns`, text in the system text or the last user turn that came in an earlier request
        too is one. Earlier turns come again with every turn: they are an exact prefix.

        The settings' own system text is not searched: it is the head that records are made after.
        """
        kinds = {SpanKind.HISTORY, SpanKind.QUESTION}
        if any(message.role in _SYSTEM for message in request.messages):
            kinds.add(SpanKind.HEAD)
        searched = [span for span in prompt.spans if span.kind in kinds]
        return Recognised(
            prompt,
            tuple(
                (span.kind, match)
                for span in searched
                for match in self._matcher.find(
                    request.tenant,
                    span.token_ids,
                    learns=learns and span.kind is not SpanKind.HISTORY,
                )
            ),
        )

    def remember(self, request: AnswerRequest, chunks: Sequence[Chunk]) -> None:
        """Know the documents of a request when a later one brings them in a message."""
        self._matcher.remember(request.tenant, chunks)

    def cut(
        self,
        request: AnswerRequest,
        prompt: Prompt,
        recognised: Recognised,
        salt: bytes,
        *,
        reuses: bool,
    ) -> Prompt:
        """A prompt of the request with the recognised passages as spans of their own.

        With `reuses`, the lesser part of a passage that no tier holds is left in its message: to
        make the whole record would cost more rows than the part has.
        """
        if recognised.found and prompt is not recognised.prompt:
            # beside retrieved passages those in the messages stand elsewhere
            recognised = self.recognise(request, prompt)
        cuts = []
        for kind, match in recognised.found:
            passage_ids = self._runtime.prompts.chunk_ids(match.chunk)
            row = row_of(match.chunk.token_ids, passage_ids)
            if row is None:  # the prompt says it in other tokens, its own would be control tokens
                continue
            is_part = 2 * (match.end - match.start) < len(passage_ids)
            if reuses and is_part and not self._runtime.holds(passage_ids, salt):
                continue
            chunk = None if match.is_given else match.chunk
            cuts.append(Cut(kind, match.start, match.end, passage_ids, row + match.row, chunk))
        return cut_out(prompt, cuts)
