"""What the model is told of its answer's form; forced calls, read back from its text.

A call is the function's name, a line break, and the arguments as JSON (`engine/grammar.py` holds it
to that). Forms are told behind the question and not before the passages, so that the head of the
prompt, and with it every passage's KV, stays what it is without them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from chunkcache.forms import CallForm, FunctionCall, JsonForm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.protocol import AnswerRequest, Message

_TOLD_OF_JSON = "Reply with JSON. What it is for:"
_TOLD_OF_CALLS = (
    "Reply with one function call: the name of the function on the first line, and its arguments "
    "as JSON on the second. Functions:"
)


def told_messages(request: AnswerRequest) -> Sequence[Message]:
    """The conversation; behind the last user turn what is said of the answer's form."""
    messages, form = request.messages, request.form
    if isinstance(form, CallForm):
        lines = [
            json.dumps(function.model_dump(include={"name", "description", "parameters"}))
            for function in form.functions
        ]
        told = "\n".join([_TOLD_OF_CALLS, *lines])
    elif isinstance(form, JsonForm) and form.description:
        told = f"{_TOLD_OF_JSON} {form.description}"
    else:
        return messages
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=None)
    if last is None:  # whoever lays out the prompt says so
        return messages
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
