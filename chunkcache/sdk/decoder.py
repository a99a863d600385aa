"""Bytes of a streamed answer → events; knows nothing of sockets.

Server-sent events are read by their own rules (WHATWG HTML §9.2.6) and not line by line in Python's
sense: text may hold U+2028 and other characters that `splitlines` takes for line ends.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..errors import ServerUnreachable
from ..protocol import AnswerDelta, AnswerStarted
from .failures import error_of_object
from .results import answer_of, model_of, reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..protocol import Json
    from .results import StreamEvent


class AnswerDecoder:
    """Puts an answer together. `feed` bytes as they come, however they are cut; then `close`."""

    def __init__(self) -> None:
        self._rest = b""  # of a line that has not ended
        self._name = ""
        self._data: list[str] = []
        self._texts: list[str] = []
        self._calls: list[Json] = []
        self._completion: Json | None = None  # filled as chunks come
        self._done = False

    def feed(self, data: bytes) -> Iterator[StreamEvent]:
        """The events that these bytes complete; to be read to the end before the next bytes.

        Raises:
            ChunkCacheError: the server said so in the stream.
            InvalidResponse: this is no stream of a chunkcache server.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            with reading("a line of the stream"):
                text = line.removesuffix(b"\r").decode()
            yield from self._line(text)

    def close(self) -> None:
        """To be called at the end of the stream.

        Raises:
            ServerUnreachable: that was not the end of the answer; what came of it is not an answer.
        """
        if not self._done:
            raise ServerUnreachable("The stream ended before the answer did.")

    def _line(self, line: str) -> list[StreamEvent]:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
            elif name == "event":
                self._name = value
            return []
        name, data = self._name, "\n".join(self._data)
        self._name, self._data = "", []
        return self._event(name, data) if data and not self._done else []

    def _event(self, name: str, data: str) -> list[StreamEvent]:
        if data == "[DONE]":
            self._done = True
            with reading("the stream"):
                completion = self._completed()
            return [answer_of(completion)]
        with reading("an event of the stream"):
            chunk = json.loads(data)
            failed = name == "error" or chunk.get("error")
            if not failed:
                return self._chunk(chunk)
            error = chunk["error"]
            error["code"] = error.get("code")  # a dictionary, or there is no error in it
        raise error_of_object(error)

    def _chunk(self, chunk: Json) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        if self._completion is None:
            self._completion = {"id": chunk["id"], "model": chunk["model"]}
            events.append(model_of(AnswerStarted, chunk["chunkcache"]))
        elif "chunkcache" in chunk:
            self._completion |= {"usage": chunk["usage"], "chunkcache": chunk["chunkcache"]}
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("content"):
                self._texts.append(delta["content"])
                events.append(AnswerDelta(text=delta["content"]))
            events += [self._call(call) for call in delta.get("tool_calls", [])]
            if choice["finish_reason"] is not None:
                self._completion["choice"] = {
                    "finish_reason": choice["finish_reason"],
                    "message": {"annotations": delta.get("annotations", [])},
                }
        return events

    def _call(self, piece: Json) -> AnswerDelta:
        """A piece of a call's arguments; the first one of a call names it."""
        text = piece["function"]["arguments"]
        if piece["index"] == len(self._calls):
            named = {"name": piece["function"]["name"], "arguments": ""}
            self._calls.append({"id": piece["id"], "function": named})
        call = self._calls[piece["index"]]
        call["function"]["arguments"] += text
        return AnswerDelta(text=text, call=call["function"]["name"], call_id=call["id"])

    def _completed(self) -> Json:
        """The stream as the `chat.completion` object that it stands for."""
        if self._completion is None:
            raise LookupError("no chunk before the end")
        completion = dict(self._completion)
        choice = completion.pop("choice")
        message = {**choice["message"], "content": "".join(self._texts), "tool_calls": self._calls}
        return {**completion, "choices": [{**choice, "message": message}]}
