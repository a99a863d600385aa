"""Completions in chunks, as server-sent events.

A stream is: an opening chunk for each choice (the first with `chunkcache.citations`), one chunk per
piece of text or of a call's arguments, for each choice a chunk with the annotations and
`finish_reason`, a usage chunk with `choices: []` if asked for, and
`data: [DONE]`. The last chunk carries the usage, asked or not (clients guess it otherwise), and the
`chunkcache` object. An error after the stream has begun
is one `event: error`, and then the stream ends without `[DONE]`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from chunkcache.errors import ChunkCacheError
from chunkcache.protocol import AnswerDelta, AnswerFinished
from chunkcache.server.errors import body_of, incident_body
from chunkcache.server.replies import report_of, usage_of, usage_so_far

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from chunkcache.protocol import AnswerEvent, AnswerStarted, Json
    from chunkcache.server.pump import AnswerPump
    from chunkcache.server.replies import Reply
    from chunkcache.server.shapes.generation import StreamOptions

DONE = "data: [DONE]\n\n"
# JSON escapes the line breaks below U+0020 itself. These three are none to the standard of
# server-sent events, but they are to Python's `splitlines`, and so to many a client.
_LINE_BREAKS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


def frame(data: Json, event: str | None = None) -> str:
    """One server-sent event, whose payload is one line by any reader's rules."""
    name = f"event: {event}\n" if event else ""
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"{name}data: {payload.translate(_LINE_BREAKS)}\n\n"


async def frames(
    reply: Reply,
    started: AnswerStarted,
    events: AsyncIterator[AnswerEvent],
    options: StreamOptions,
    num_choices: int = 1,
) -> AsyncIterator[str]:
    """The stream of one answer whose first event has been read already."""

    def usage(completion_tokens: int) -> Json:
        if options.continuous_usage_stats:
            return {"usage": usage_so_far(started.prompt_tokens, completion_tokens)}
        return {"usage": None} if options.include_usage else {}

    passages = [citation.model_dump(mode="json") for citation in started.citations]
    extra: Json = {"chunkcache": {"citations": passages}}
    for index in range(num_choices):
        yield frame({**reply.opening(index), **usage(0), **extra})
        extra = {}
    try:
        async for event in events:
            if isinstance(event, AnswerDelta):
                yield frame({**reply.piece(event), **usage(event.completion_tokens)})
            elif isinstance(event, AnswerFinished):
                for piece in _sources(reply, event):
                    yield frame({**piece, **usage(event.completion_tokens)})
                for last in _closing(reply, event, options, usage(event.completion_tokens)):
                    yield frame(last)
        yield DONE
    except ChunkCacheError as error:
        yield frame(body_of(error), "error")
    except Exception as error:
        yield frame(incident_body(error), "error")


def _closing(
    reply: Reply, finished: AnswerFinished, options: StreamOptions, usage: Json
) -> list[Json]:
    *others, last = [
        {**reply.closing(index, choice, finished), **usage}
        for index, choice in enumerate(finished.choices)
    ]
    report = {"chunkcache": report_of(finished)}
    if not options.include_usage:
        return [*others, {**last, "usage": usage_of(finished), **report}]
    return [*others, last, {**reply.usage_chunk(finished), **report}]


def _sources(reply: Reply, finished: AnswerFinished) -> list[Json]:
    """The list of sources behind the text of every choice, if it is asked for."""
    if not (sources := reply.sources(finished)):
        return []
    indices = range(len(finished.choices))
    return [reply.piece(AnswerDelta(text=sources, index=index)) for index in indices]


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
