"""The objects of `/v1/responses`: a response, its items, its events, in OpenAI's shapes."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from chunkcache.forms import FunctionCall
from chunkcache.protocol import Message
from chunkcache.server.citations import label
from chunkcache.server.replies import report_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chunkcache.protocol import AnswerFinished, Citation, Json
    from chunkcache.server.citations import Citer
    from chunkcache.server.shapes.responses import ResponseRequest

Files = dict[tuple[str, str], tuple[str, str, "Mapping[str, object]"]]
"""By ids of vector store and document: the file's id, its name, its attributes."""


class ResponseReply:
    """Builds the objects of one response.

    Args:
        request: what was asked.
        model: the id it was asked for by.
        citer: makes annotations, and the list of sources if that is asked for.
        store: the vector store that passages are from unless they say another.
        query: what was searched for; None: no `file_search` was asked for.
    """

    def __init__(
        self, request: ResponseRequest, model: str, citer: Citer, store: str, query: str | None
    ) -> None:
        self.id = _fresh("resp")
        self.message_id = _fresh("msg")
        self.search_id = _fresh("fs")
        self.function_id = _fresh("fc")
        self._call_id = _fresh("call")
        self.query = query
        self._store = store
        self._citer = citer
        self._request = request
        self._model = model
        self._created_at = int(time.time())

    def response(self, status: str, output: Sequence[Json] = (), **more: object) -> Json:
        """OpenAI's `response`, as far as it is known."""
        request = self._request
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "metadata": request.metadata or {},
            "model": self._model,
            "output": list(output),
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": request.safety_identifier,
            "service_tier": "default",
            "store": request.store is not False,
            "temperature": request.temperature or 0.0,
            "text": {"format": self._format(), "verbosity": "medium"},
            "tool_choice": _plain(request.tool_choice) or "auto",
            "tools": [_plain(tool) for tool in request.tools or []],
            "top_logprobs": 0,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": request.user,
            **more,
        }

    def _format(self) -> object:
        said = self._request.text.format if self._request.text else None
        return _plain(said) if said else {"type": "text"}

    def finished(self, answer: AnswerFinished, files: Files) -> Json:
        """The whole response."""
        cut = answer.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        output = [self.item(status, answer, files)]
        if self.query is not None:
            output.insert(0, self.search_call("completed", answer.citations, files))
        more: Json = {
            "usage": _usage(answer),
            "chunkcache": report_of(answer),
        }
        if cut:
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            more["completed_at"] = int(time.time())
        return self.response(status, output, **more)

    def item(self, status: str, answer: AnswerFinished, files: Files) -> Json:
        """The item that the answer is: a message, or a call."""
        if answer.call is not None:
            return self.function_call(status, answer.call.name, answer.call.arguments)
        return self.message(status, self.text(answer), self.annotations(answer, files))

    def function_call(self, status: str, name: str, arguments: str = "") -> Json:
        """The item of an answer that is a call."""
        return {
            "id": self.function_id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": name,
            "arguments": arguments,
        }

    def turn(self, answer: Json) -> Message:
        """The assistant's turn that an item of ours is, for the conversation to go on from."""
        if answer["type"] == "message":
            return Message(role="assistant", content=answer["content"][0]["text"])
        call = FunctionCall(
            name=answer["name"], arguments=answer["arguments"], id=answer["call_id"]
        )
        return Message(role="assistant", content="", calls=(call,))

    def text(self, answer: AnswerFinished) -> str:
        """What the message says, with the list of sources if that is asked for."""
        return answer.text + self._citer.sources(answer.citations)

    def message(
        self, status: str, text: str | None = None, annotations: Sequence[Json] = ()
    ) -> Json:
        """The item with the answer; without text it has no content yet."""
        return {
            "id": self.message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [] if text is None else [self.part(text, annotations)],
        }

    def part(self, text: str, annotations: Sequence[Json] = ()) -> Json:
        """The content of the message."""
        return {
            "type": "output_text",
            "text": text,
            "annotations": list(annotations),
            "logprobs": [],
        }

    def search_call(
        self, status: str, citations: Sequence[Citation] = (), files: Files | None = None
    ) -> Json:
        """The item that says what was searched for, and if asked for what was found."""
        results = None
        if self._request.wants_results and files is not None:
            # what has no score stood in a message, and was not searched for
            searched = [citation for citation in citations if citation.score]
            results = [self._result(citation, files) for citation in searched]
        return {
            "id": self.search_id,
            "type": "file_search_call",
            "status": status,
            "queries": [self.query],
            "results": results,
        }

    def annotations(self, answer: AnswerFinished, files: Files) -> list[Json]:
        """What the answer could draw on: files after a search, addresses otherwise.

        They stand at the end of the text, or span all of it: which sentence draws on which passage
        is not known.
        """
        if self.query is None:
            urls = self._citer.annotations(answer.citations, len(answer.text))
            return [{"type": "url_citation", **url["url_citation"]} for url in urls]
        cited = dict.fromkeys(self._file_of(citation, files)[:2] for citation in answer.citations)
        return [
            {
                "type": "file_citation",
                "file_id": file_id,
                "filename": filename,
                "index": len(answer.text),
            }
            for file_id, filename in cited
        ]

    def _result(self, citation: Citation, files: Files) -> Json:
        file_id, filename, attributes = self._file_of(citation, files)
        return {
            "file_id": file_id,
            "filename": filename,
            "score": citation.score,
            "text": citation.text,
            "attributes": dict(attributes),
        }

    def _file_of(self, citation: Citation, files: Files) -> tuple[str, str, Mapping[str, object]]:
        place = (citation.collection or self._store, citation.document_id)
        return files.get(place, (citation.document_id, label(citation), {}))


def input_items(request: ResponseRequest) -> list[Json]:
    """The items of the request as `/input_items` lists them, each with an id."""
    return [item for turn in request.turns() for item in _items_of(turn)]


def _items_of(turn: Message) -> list[Json]:
    common = {"status": "completed"}
    if turn.role == "tool":
        output = {"call_id": turn.call_id, "output": turn.content}
        return [{"id": _fresh("fco"), "type": "function_call_output", **common, **output}]
    calls = [
        {
            "id": _fresh("fc"), "type": "function_call", **common,
            "call_id": call.id, "name": call.name, "arguments": call.arguments,
        }
        for call in turn.calls
    ]  # fmt: skip
    if calls and not turn.content:
        return calls
    content = [_input_part(turn.role, turn.content)]
    message = {"id": _fresh("msg"), "type": "message", "role": turn.role, "content": content}
    return [{**message, **common}, *calls]


def _input_part(role: str, text: str) -> Json:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


def _usage(answer: AnswerFinished) -> Json:
    report = answer.report
    return {
        "input_tokens": report.prompt_tokens,
        "input_tokens_details": {"cached_tokens": report.reused_tokens, "cache_write_tokens": 0},
        "output_tokens": answer.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": report.prompt_tokens + answer.completion_tokens,
    }


def _plain(said: object) -> object:
    dump = getattr(said, "model_dump", None)
    return dump(exclude_none=True, by_alias=True) if dump else said


def _fresh(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
