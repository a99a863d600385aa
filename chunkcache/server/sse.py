"""Chat completion responses: one JSON object, or chunks as server-sent events.

A stream is: a chunk with the role (and `chunkcache.citations`), one chunk per piece of text, a
chunk with the annotations and `finish_reason`, a usage chunk with `choices: []` if asked for, and
`data: [DONE]`. The last chunk carries the `chunkcache` object. An error after the stream has begun
is one `event: error`, and then the stream ends without `[DONE]`.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from chunkcache.errors import ChunkCacheError
from chunkcache.protocol import AnswerDelta, AnswerFinished, AnswerReport
from chunkcache.server.errors import body_of, incident_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from chunkcache.protocol import AnswerEvent, AnswerStarted, Json
    from chunkcache.server.citations import Citer
    from chunkcache.server.pump import AnswerPump

DONE = "data: [DONE]\n\n"
# JSON escapes the line breaks below U+0020 itself. These three are none to the standard of
# server-sent events, but they are to Python's `splitlines`, and so to many a client.
_LINE_BREAKS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


def frame(data: Json, event: str | None = None) -> str:
    """One server-sent event, whose payload is one line by any reader's rules."""
    name = f"event: {event}\n" if event else ""
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"{name}data: {payload.translate(_LINE_BREAKS)}\n\n"


def usage_of(finished: AnswerFinished) -> Json:
    """OpenAI's usage object; `cached_tokens` is always there, 0 on a miss."""
    report = finished.report
    return {
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": report.prompt_tokens + finished.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": report.reused_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def report_of(finished: AnswerFinished) -> Json:
    """The `chunkcache` object."""
    report = AnswerReport(**dict(finished.report), citations=finished.citations)
    return report.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class Reply:
    """Builds the objects of one response, which share an id, a time and a model."""

    model: str
    citer: Citer
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, finished: AnswerFinished) -> Json:
        """The whole answer as one object."""
        message = {
            "role": "assistant",
            "content": finished.text,
            "refusal": None,
            "annotations": self.citer.annotations(finished.citations, len(finished.text)),
        }
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": finished.finish_reason,
            "logprobs": None,
        }
        return {
            **self._envelope("chat.completion"),
            "choices": [choice],
            "usage": usage_of(finished),
            "chunkcache": report_of(finished),
        }

    def chunk(self, delta: Json, finish_reason: str | None = None) -> Json:
        """One piece of a stream."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._envelope("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, finished: AnswerFinished) -> Json:
        """The extra last chunk of `stream_options.include_usage`."""
        envelope = self._envelope("chat.completion.chunk")
        return {**envelope, "choices": [], "usage": usage_of(finished)}

    def _envelope(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


async def frames(
    reply: Reply, started: AnswerStarted, events: AsyncIterator[AnswerEvent], include_usage: bool
) -> AsyncIterator[str]:
    """The stream of one answer whose first event has been read already."""
    nulls: Json = {"usage": None} if include_usage else {}
    opening = reply.chunk({"role": "assistant", "content": ""})
    passages = [citation.model_dump(mode="json") for citation in started.citations]
    yield frame({**opening, **nulls, "chunkcache": {"citations": passages}})
    try:
        async for event in events:
            if isinstance(event, AnswerDelta):
                yield frame({**reply.chunk({"content": event.text}), **nulls})
            elif isinstance(event, AnswerFinished):
                for last in _closing(reply, event, include_usage):
                    yield frame(last)
        yield DONE
    except ChunkCacheError as error:
        yield frame(body_of(error), "error")
    except Exception as error:
        yield frame(incident_body(error), "error")


def _closing(reply: Reply, finished: AnswerFinished, include_usage: bool) -> list[Json]:
    notes = reply.citer.annotations(finished.citations, len(finished.text))
    closing = reply.chunk({"annotations": notes} if notes else {}, finished.finish_reason)
    report = {"chunkcache": report_of(finished)}
    if not include_usage:
        return [{**closing, **report}]
    return [{**closing, "usage": None}, {**reply.usage_chunk(finished), **report}]


class EventStream(StreamingResponse):
    """Sends frames; when sending ends for any reason, an unfinished answer is cancelled."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str], pump: AnswerPump) -> None:
        # Proxies that buffer would turn the stream into one late lump.
        super().__init__(content, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._pump = pump

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Unlike the base class this does not listen for a disconnect: the pump already does."""
        try:
            await self.stream_response(send)
        finally:
            self._pump.close()
