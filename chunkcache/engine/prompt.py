"""Conversation + chunks → spans of token ids. Pure; the tokenizer is the only thing it calls.

Ids cross boundaries, never text: the chat template is rendered with a marker in place of every
content, split there, and each part is tokenised alone (`template.py`). Template parts may become
special tokens; contents never do, so a document cannot close the system turn. Documents sit right
after the system text (or open the first user turn), so that the head before them is the same for
every question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from chunkcache.chunk import Span, SpanKind
from chunkcache.engine.born_context import BORN_PASSAGES
from chunkcache.engine.template import ChatTemplate, PartTokenizer
from chunkcache.engine.turns import as_text
from chunkcache.errors import InvalidRequest, UnsupportedModel
from chunkcache.protocol import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from chunkcache.chunk import Chunk
    from chunkcache.config import PromptSettings

_DOCUMENTS_OPEN = "\n\nDocuments:\n\n"
_PASSAGE_CLOSE = "\n\n"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Spans in order, covering positions 0..num_tokens-1 without gaps."""

    spans: tuple[Span, ...]
    head_is_canonical: bool  # the head equals the one chunk KV is born after

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All token ids, in order."""
        return tuple(t for span in self.spans for t in span.token_ids)

    @property
    def num_tokens(self) -> int:
        """Length of the prompt."""
        return self.spans[-1].end

    @property
    def question_start(self) -> int:
        """Where the question begins that reads the passages: behind those in its own message."""
        return next(s for s in reversed(self.spans) if s.kind is SpanKind.QUESTION).start


class PromptBuilder:
    """Builds prompts for one model and one set of prompt settings. Thread-safe.

    Raises:
        UnsupportedModel: the model's chat template cannot lay out a system text and a question.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
        self._settings = settings
        self._template = ChatTemplate(tokenizer)
        probe = [
            Message(role="system", content=settings.system),
            Message(role="user", content="?"),
        ]
        try:
            parts = self._template.parts([m.role for m in probe])
        except InvalidRequest as error:
            raise UnsupportedModel(f"model.name: no prompt can be made for it. {error}") from error
        self._tokens = PartTokenizer(tokenizer, parts)
        self._takes_tools = self._template.takes(["system", "user", "assistant", "tool"])
        self.canonical_head = self._split(probe, with_documents=True)[0]
        passages = BORN_PASSAGES if settings.born_after == "passages" else ()
        self.born_passages = [self._passage_ids(title, text) for title, text in passages]

    @property
    def born_prefix(self) -> tuple[int, ...]:
        """The token ids every canonical record is made after."""
        return (*self.canonical_head, *(t for ids in self.born_passages for t in ids))

    def chunk_ids(self, chunk: Chunk) -> tuple[int, ...]:
        """The tokens a chunk takes in a prompt: its lead, its text, a blank line.

        They depend on the chunk alone, never on its place among others: they are what is cached.
        """
        text = self._tokens.checked(chunk.token_ids, chunk.text)
        return self._passage(chunk.lead, text)

    def _passage_ids(self, title: str, text: str) -> tuple[int, ...]:
        return self._passage(f"# {title}\n", self._tokens.content(text))

    def _passage(self, lead: str, text: Sequence[int]) -> tuple[int, ...]:
        before = self._tokens.content(lead, "documents") if lead else []
        return (*before, *text, *self._tokens.content(_PASSAGE_CLOSE))

    def build(
        self,
        messages: Sequence[Message],
        chunks: Sequence[Chunk],
        layout: Literal["chat", "plain", "raw"] = "chat",
    ) -> Prompt:
        """Lay out a prompt.

        System and developer messages, wherever they stand, are joined into the one system text
        that opens the prompt. Without any, the settings' system text is used, except with layout
        `plain` and no chunks. With layout `raw` the last message is the whole prompt.

        Raises:
            InvalidRequest: the last message is neither the user's nor a call's result, or the
                model's chat template refuses the conversation.
        """
        if layout == "raw":
            whole = Span(SpanKind.QUESTION, 0, tuple(self._tokens.raw(messages[-1].content)))
            return Prompt((whole,), head_is_canonical=False)
        turns = as_text(messages, takes_tools=self._takes_tools)
        conversation = self._with_system(turns, adds=layout == "chat" or bool(chunks))
        head, history, question = self._split(conversation, with_documents=bool(chunks))
        pieces: list[tuple[SpanKind, Sequence[int], Chunk | None]] = [(SpanKind.HEAD, head, None)]
        pieces += [(SpanKind.CHUNK, self.chunk_ids(chunk), chunk) for chunk in chunks]
        pieces += [(SpanKind.HISTORY, history, None), (SpanKind.QUESTION, question, None)]
        spans, start = [], 0
        for kind, ids, chunk in pieces:
            if ids:
                spans.append(Span(kind, start, tuple(ids), chunk))
                start += len(ids)
        return Prompt(tuple(spans), head_is_canonical=head == self.canonical_head)

    def _with_system(self, messages: Sequence[Message], *, adds: bool) -> list[Message]:
        last = messages[-1].role if messages else "no message"
        if last not in {"user", "tool"} or not any(m.role == "user" for m in messages):
            raise InvalidRequest.of(
                "messages", last, "a list that ends with a user message", "put the question last"
            )
        rest = [m for m in messages if m.role not in {"system", "developer"}]
        system = [m.content for m in messages if m.role in {"system", "developer"}]
        if not system and not adds:
            return rest
        text = "\n\n".join(system) if system else self._settings.system
        return [Message(role="system", content=text), *rest]

    def _split(
        self, conversation: Sequence[Message], *, with_documents: bool
    ) -> tuple[list[int], list[int], list[int]]:
        """Token ids before the documents, between them and the last user text, and from there."""
        tokens, parts = self._tokens, self._template.parts([m.role for m in conversation])
        in_system = self._settings.documents_in == conversation[0].role == "system"
        takes_documents = "system" if in_system else "user"
        home = next(i for i, m in enumerate(conversation) if m.role == takes_documents)
        words = _DOCUMENTS_OPEN if in_system else _DOCUMENTS_OPEN.lstrip()
        opening = tokens.content(words) if with_documents else []
        ids, head_end, question_start = list[int](), 0, 0
        for index, message in enumerate(conversation):
            ids += (tokens.template if index else tokens.opening)(parts[index])
            question_start = len(ids)
            text = tokens.content(message.content)
            if index == home:
                before, text = (text + opening, []) if in_system else (opening, text)
                ids += before
                head_end = question_start = len(ids)
            ids += text
        ids += tokens.template(parts[-1])
        return ids[:head_end], ids[head_end:question_start], ids[question_start:]
