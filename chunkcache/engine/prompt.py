"""Conversation + chunks → spans of token ids. Pure; the tokenizer is the only thing it calls.

Ids cross boundaries, never text: the chat template is rendered with a marker in place of every
content, split there, and each part is tokenised alone. Template parts may become special tokens;
contents never do, so a document cannot close the system turn. Documents sit right after the system
text (or open the first user turn), so that the head before them is the same for every question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chunkcache.chunk import Span, SpanKind
from chunkcache.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from chunkcache.chunk import Chunk
    from chunkcache.config import PromptSettings
    from chunkcache.protocol import Message

_MARK = "\u2402{}\u2403"  # visible control pictures: no template trims or escapes them
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


class PromptBuilder:
    """Builds prompts for one model and one set of prompt settings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._bos = _bos_to_add(tokenizer)
        probe = [_message("system", settings.system), _message("user", "?")]
        self.canonical_head = self._split(probe, with_documents=True)[0]

    def chunk_ids(self, chunk: Chunk) -> tuple[int, ...]:
        """The tokens a chunk takes in a prompt: its title line, its text, a blank line.

        They depend on the chunk alone, never on its place among others: they are what is cached.
        """
        title = self._content(f"# {chunk.title}\n") if chunk.title else []
        return (*title, *chunk.token_ids, *self._content(_PASSAGE_CLOSE))

    def build(self, messages: Sequence[Message], chunks: Sequence[Chunk]) -> Prompt:
        """Lay out a prompt. Without a system message, the settings' system text is used.

        Raises:
            InvalidRequest: the last message is not the user's, or a system message comes later.
        """
        conversation = self._with_system(messages)
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

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if messages[-1].role != "user":
            raise InvalidRequest.of(
                "messages", messages[-1].role, "a list that ends with a user message",
                "put the question last",
            )  # fmt: skip
        rest = [m for m in messages if m.role not in {"system", "developer"}]
        system = [m.content for m in messages if m.role in {"system", "developer"}]
        text = "\n\n".join(system) if system else self._settings.system
        return [_message("system", text), *rest]

    def _split(
        self, conversation: Sequence[Message], *, with_documents: bool
    ) -> tuple[list[int], list[int], list[int]]:
        """Token ids before the documents, between them and the last user text, and from there."""
        parts = self._template_parts(conversation)
        in_system = self._settings.documents_in == "system"
        stream: list[list[int]] = []
        head_end = question_start = 0
        for index, message in enumerate(conversation):
            stream.append(self._template(parts[index]))
            is_last = index == len(conversation) - 1
            takes_documents = index == (0 if in_system else 1)
            if is_last:
                question_start = len(stream)
            if takes_documents and not in_system:
                stream.append(self._content(_DOCUMENTS_OPEN.lstrip() if with_documents else ""))
                head_end = len(stream)
                question_start = max(question_start, head_end)
            stream.append(self._content(message.content))
            if takes_documents and in_system:
                stream.append(self._content(_DOCUMENTS_OPEN if with_documents else ""))
                head_end = len(stream)
        stream.append(self._template(parts[-1]))

        def joined(first: int, last: int) -> list[int]:
            return [t for part in stream[first:last] for t in part]

        head = joined(0, head_end)
        if self._bos is not None and head[:1] != [self._bos]:
            head = [self._bos, *head]
        return (
            head,
            joined(head_end, question_start),
            joined(question_start, len(stream)),
        )

    def _template_parts(self, conversation: Sequence[Message]) -> list[str]:
        """The template's own text around the contents: one part more than there are messages."""
        marks = [_MARK.format(i) for i in range(len(conversation))]
        rendered = self._render(
            [{"role": m.role, "content": mark} for m, mark in zip(conversation, marks, strict=True)]
        )
        parts = []
        for mark in marks:
            before, found, rendered = rendered.partition(mark)
            if not found:
                raise InvalidRequest(
                    "messages: the model's chat template drops or reorders a message. Hint: use "
                    "one system message first, then user and assistant turns in alternation.",
                    param="messages",
                )
            parts.append(before)
        return [*parts, rendered]

    def _render(self, messages: list[dict[str, str]]) -> str:
        tokenizer: Any = self._tokenizer
        if not tokenizer.chat_template:
            return _render_plain(messages, tokenizer.bos_token or "")
        try:
            rendered = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise what they like; jinja2 wraps it
            if messages[0]["role"] == "system":
                return self._render_system_as_user(messages, error)
            raise InvalidRequest(
                f"messages: the model's chat template refuses them: {error}", param="messages"
            ) from error
        return str(rendered)

    def _render_system_as_user(self, messages: list[dict[str, str]], error: Exception) -> str:
        """Templates without a system role: the system text opens the first user turn."""
        if len(messages) < 2 or messages[1]["role"] != "user":
            raise InvalidRequest(
                f"messages: the model's chat template refuses them: {error}", param="messages"
            ) from error
        merged = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        return self._render([{"role": "user", "content": merged}, *messages[2:]])

    def _template(self, text: str) -> list[int]:
        tokenizer: Any = self._tokenizer
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _content(self, text: str) -> list[int]:
        tokenizer: Any = self._tokenizer
        if not text:
            return []
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])


def _bos_to_add(tokenizer: Any) -> int | None:
    """The BOS id if this tokenizer opens every text with it; templates may already hold it."""
    opening = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id if opening == [tokenizer.bos_token_id] else None


def _message(role: str, content: str) -> Message:
    from chunkcache.protocol import Message

    return Message.model_validate({"role": role, "content": content})


def _render_plain(messages: list[dict[str, str]], bos: str) -> str:
    """A layout for models without a chat template."""
    names = {"system": "", "user": "Question: ", "assistant": "Answer: "}
    turns = [names[m["role"]] + m["content"] for m in messages]
    return bos + "\n\n".join(turns) + "\n\nAnswer:"
