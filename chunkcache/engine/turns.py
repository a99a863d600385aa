"""Turns with calls and their results, as turns of text that a chat template can lay out.

A call stands at the end of its assistant turn as `<tool_call>` lines around a JSON object, the form
that Hermes and Qwen models were trained on. A result is a turn of the role `tool` where the
template has that role; else a user turn that names the function, results in a row joined.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from chunkcache.protocol import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.forms import FunctionCall


def as_text(messages: Sequence[Message], *, takes_tools: bool) -> list[Message]:
    """The same conversation without calls; without the role `tool` unless the template takes it."""
    turns: list[Message] = []
    names: dict[str, str] = {}
    after_result = False
    for message in messages:
        names |= {call.id: call.name for call in message.calls}
        is_result = message.role == "tool"
        if message.calls:
            parts = [message.content, *map(_call_text, message.calls)]
            turns.append(Message(role=message.role, content="\n".join(filter(None, parts))))
        elif not is_result or takes_tools:
            turns.append(message)
        else:
            name = names.get(message.call_id, "the call")
            text = f"Result of {name}:\n{message.content}"
            if after_result:
                text = f"{turns.pop().content}\n\n{text}"
            turns.append(Message(role="user", content=text))
        after_result = is_result
    return turns


def _call_text(call: FunctionCall) -> str:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = call.arguments  # what a model once wrote, whatever it is
    body = json.dumps({"name": call.name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"
