"""Forced calls: what the model is told, and its text read back as a call.

The answer is the function's name, a line break, and the arguments as JSON (`engine/grammar.py`
holds it to that). The functions are told behind the question and not before the passages, so that
the head of the prompt, and with it every passage's KV, stays what it is without them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from chunkcache.forms import CallForm, FunctionCall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.protocol import AnswerRequest, Message

_TOLD = (
    "Reply with one function call: the name of the function on the first line, and its arguments "
    "as JSON on the second. Functions:"
)


def told_messages(request: AnswerRequest) -> Sequence[Message]:
    """The conversation; of a forced call, with the functions behind the last user turn."""
    messages = request.messages
    if not isinstance(request.form, CallForm):
        return messages
    lines = [
        json.dumps(function.model_dump(include={"name", "description", "parameters"}))
        for function in request.form.functions
    ]
    told = "\n".join([_TOLD, *lines])
    last = max(i for i, m in enumerate(messages) if m.role == "user")
    question = messages[last]
    asked = question.model_copy(update={"content": f"{question.content}\n\n{told}"})
    return [*messages[:last], asked, *messages[last + 1 :]]


class CallReader:
    """Splits the text of a call as it comes."""

    def __init__(self) -> None:
        self._head = ""
        self.name: str | None = None  # once it is complete

    def push(self, text: str) -> str:
        """Add text of the answer; returns what of it belongs to the arguments."""
        if self.name is not None:
            return text
        self._head += text
        name, line_break, arguments = self._head.partition("\n")
        if line_break:
            self.name = name
        return arguments


def read_call(text: str) -> FunctionCall | None:
    """The call in a whole answer; None if it ended before the name did."""
    reader = CallReader()
    arguments = reader.push(text)
    return FunctionCall(name=reader.name, arguments=arguments) if reader.name else None
