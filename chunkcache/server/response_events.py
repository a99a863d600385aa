"""A response as a stream of events, in OpenAI's order; every event has a number and no `[DONE]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkcache.errors import ChunkCacheError
from chunkcache.protocol import AnswerDelta, AnswerFinished
from chunkcache.server.errors import body_of, incident_body
from chunkcache.server.sse import frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from chunkcache.protocol import AnswerEvent, AnswerStarted, Json
    from chunkcache.server.response_reply import Files, ResponseReply


class ResponseEvents:
    """Makes the events of one response.

    Args:
        keep: is given the whole response before it is sent.
    """

    def __init__(
        self, reply: ResponseReply, files: Files, keep: Callable[[Json], Awaitable[None]]
    ) -> None:
        self._reply = reply
        self._files = files
        self._keep = keep
        self._number = 0
        self._index = 0  # of the answer's item
        self._is_open = False

    async def frames(
        self, started: AnswerStarted, events: AsyncIterator[AnswerEvent]
    ) -> AsyncIterator[str]:
        """The stream of an answer whose first event has been read already."""
        for kind, content in self._opening(started):
            yield self._frame(kind, content)
        try:
            async for event in events:
                if isinstance(event, AnswerDelta):
                    for kind, content in self._piece(event.text, event.call):
                        yield self._frame(kind, content)
                elif isinstance(event, AnswerFinished):
                    response = self._reply.finished(event, self._files)
                    for kind, content in self._closing(event, response["output"][-1]):
                        yield self._frame(kind, content)
                    await self._keep(response)
                    yield self._frame(f"response.{response['status']}", {"response": response})
        except ChunkCacheError as error:
            yield self._failed(body_of(error))
        except Exception as error:
            yield self._failed(incident_body(error))

    def _opening(self, started: AnswerStarted) -> Iterator[tuple[str, Json]]:
        reply = self._reply
        for kind in ("response.created", "response.in_progress"):
            yield kind, {"response": reply.response("in_progress")}
        if reply.query is not None:
            at = {"output_index": 0}
            item = reply.search_call("in_progress")
            yield "response.output_item.added", {**at, "item": item}
            for step in ("in_progress", "searching", "completed"):
                step_at = {**at, "item_id": reply.search_id}
                yield f"response.file_search_call.{step}", step_at
            done = reply.search_call("completed", started.citations, self._files)
            yield "response.output_item.done", {**at, "item": done}
            self._index = 1

    def _piece(self, text: str, call: str | None) -> Iterator[tuple[str, Json]]:
        """A piece of the message, or of a call's arguments; `call` is the function's name."""
        if not text:
            return
        yield from self._open(call)
        if call is None:
            yield "response.output_text.delta", {**self._at, "delta": text, "logprobs": []}
        else:
            yield "response.function_call_arguments.delta", {**self._call_at, "delta": text}

    def _open(self, call: str | None) -> Iterator[tuple[str, Json]]:
        """The item itself, before its first piece: only that tells a message from a call."""
        if self._is_open:
            return
        self._is_open, reply = True, self._reply
        if call is not None:
            yield "response.output_item.added", self._item(reply.function_call("in_progress", call))
            return
        yield "response.output_item.added", self._item(reply.message("in_progress"))
        yield "response.content_part.added", {**self._at, "part": reply.part("")}

    def _closing(self, answer: AnswerFinished, item: Json) -> Iterator[tuple[str, Json]]:
        call = answer.call
        yield from self._open(call.name if call else None)
        if call is None:
            yield from self._closing_text(answer)
        else:
            said = {"name": call.name, "arguments": call.arguments}
            yield "response.function_call_arguments.done", {**self._call_at, **said}
        yield "response.output_item.done", self._item(item)

    def _closing_text(self, answer: AnswerFinished) -> Iterator[tuple[str, Json]]:
        reply = self._reply
        text, annotations = reply.text(answer), reply.annotations(answer, self._files)
        yield from self._piece(text.removeprefix(answer.text), None)  # the list of sources
        for index, annotation in enumerate(annotations):
            added = {**self._at, "annotation_index": index, "annotation": annotation}
            yield "response.output_text.annotation.added", added
        yield "response.output_text.done", {**self._at, "text": text, "logprobs": []}
        yield "response.content_part.done", {**self._at, "part": reply.part(text, annotations)}

    def _failed(self, error: Json) -> str:
        """As OpenAI does it: in a response that says so, which clients raise."""
        said = error["error"]
        code = "invalid_prompt" if said["type"] == "invalid_request_error" else "server_error"
        failed = {"code": code, "message": said["message"]}
        response = self._reply.response("failed", error=failed)
        return self._frame("response.failed", {"response": response})

    def _item(self, item: Json) -> Json:
        return {"output_index": self._index, "item": item}

    @property
    def _at(self) -> Json:
        """Where a piece of the message belongs."""
        return {
            "output_index": self._index, "item_id": self._reply.message_id, "content_index": 0,
        }  # fmt: skip

    @property
    def _call_at(self) -> Json:
        """Where a piece of the arguments belongs."""
        return {"output_index": self._index, "item_id": self._reply.function_id}

    def _frame(self, kind: str, content: Json) -> str:
        event = {"type": kind, "sequence_number": self._number, **content}
        self._number += 1
        return frame(event, kind)
