"""`/v1/responses` through the unmodified OpenAI client, and refused by name on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from chunkcache.protocol import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUESTION = "where is the cat"


def post(served: Any, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/responses", json={"input": QUESTION, **body})


def create(served: Any, key: str = "-", **body: Any) -> Any:
    filled = {"model": "tiny-chat", "input": QUESTION, **body}
    return served.client(key).responses.create(**filled)


def asked(served: Any, index: int = -1) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in served.service.requests[index].messages]


def a_store(served: Any, *names: str) -> tuple[str, list[str]]:
    """A vector store with files of these names, each about the cat; its id and the files'."""
    client = served.client()
    store = client.vector_stores.create(name="cats")
    ids = []
    for name in names:
        file = client.files.create(file=(name, f"the cat of {name}".encode()), purpose="assistants")
        client.vector_stores.files.create(store.id, file_id=file.id, attributes={"colour": "red"})
        ids.append(file.id)
    return store.id, ids


# ------------------------------------------------------------------ one answer


def test_a_text_is_answered(served: Any) -> None:
    done = create(served, instructions="be brief", max_output_tokens=50, metadata={"run": "1"})
    assert done.output_text == "You asked: where is the cat — voilà "
    assert (done.object, done.status, done.error, done.model) == (
        "response", "completed", None, "tiny-chat",
    )  # fmt: skip
    (message,) = done.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    usage = done.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (20, 8, 28)
    assert usage.input_tokens_details.cached_tokens == 0
    assert usage.output_tokens_details.reasoning_tokens == 0
    assert (done.instructions, done.metadata, done.store) == ("be brief", {"run": "1"}, True)
    assert done.chunkcache["rung"] == "full" and done.chunkcache["notes"] == []
    assert asked(served) == [("system", "be brief"), ("user", QUESTION)]
    assert served.service.requests[0].sampling.max_tokens == 50


def test_what_is_strictly_typed_is_what_the_client_expects(served: Any) -> None:
    """The client builds objects without checking; here every field is checked."""
    store_id, _ = a_store(served, "a.txt")
    tools = [{"type": "file_search", "vector_store_ids": [store_id]}]
    whole = create(served, tools=tools, include=["file_search_call.results"])
    openai.types.responses.Response.model_validate(whole.model_dump(mode="json"), strict=False)
    for event in create(served, tools=tools, stream=True):
        type(event).model_validate(event.model_dump(mode="json"))
    assert whole.output[0].type == "file_search_call"


def test_an_answer_that_was_cut_is_incomplete(served: Any) -> None:
    done = create(served, max_output_tokens=2)
    assert (done.status, done.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert done.output_text == "You asked: "
    *_, last = create(served, max_output_tokens=2, stream=True)
    assert (last.type, last.response.output_text) == ("response.incomplete", "You asked: ")


def test_items_are_turns(served: Any) -> None:
    create(
        served,
        input=[
            {"role": "developer", "content": "be kind"},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["q"],
             "results": None},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
             "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}]},
            {"role": "user", "content": "d"},
        ],
    )  # fmt: skip
    assert asked(served) == [
        ("developer", "be kind"), ("user", "ab"), ("assistant", "c"), ("user", "d"),
    ]  # fmt: skip


def test_an_output_can_be_sent_back_as_input(served: Any) -> None:
    store_id, _ = a_store(served, "a.txt")
    first = create(served, tools=[{"type": "file_search", "vector_store_ids": [store_id]}])
    history = [{"role": "user", "content": QUESTION}, *first.output]
    create(served, input=[*history, {"role": "user", "content": "and the dog"}])
    assert [role for role, _ in asked(served)] == ["user", "assistant", "user"]


def test_without_a_tool_a_model_retrieves_as_in_a_chat(served: Any) -> None:
    served.service.ingest_bytes("a.txt", b"the cat", tenant="public", collection="default")
    found, plain = create(served), create(served, model="tiny-chat:plain")
    (note,) = found.output[0].content[0].annotations
    assert (note.type, note.title) == ("url_citation", "a.txt")
    assert httpx.get(note.url).status_code == 200
    assert plain.output[0].content[0].annotations == [] and plain.model == "tiny-chat:plain"
    given = {"documents": [{"title": "Cats", "text": "the cat", "url": "https://cats.test/1"}]}
    (note,) = create(served, extra_body=given).output[0].content[0].annotations
    assert (note.url, note.title) == ("https://cats.test/1", "Cats")


# ------------------------------------------------------------------ the stream


def test_a_stream_has_openai_s_events_in_their_order(served: Any) -> None:
    whole = create(served)
    events = list(create(served, stream=True))
    names = [event.type.removeprefix("response.") for event in events]
    assert names == [
        "created", "in_progress", "output_item.added", "content_part.added",
        *["output_text.delta"] * 8, "output_text.done", "content_part.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    assert {event.item_id for event in events[3:13]} == {events[2].item.id}
    assert events[-1].response.usage == whole.usage
    assert events[-1].response.chunkcache["prompt_tokens"] == 20
    assert len({events[0].response.id, events[-1].response.id}) == 1


def test_the_stream_on_the_wire_names_its_events_and_has_no_done(served: Any) -> None:
    text = post(served, stream=True).text
    *events, rest = text.split("\n\n")
    assert rest == "" and "[DONE]" not in text
    for event in events:
        name, data = event.split("\n")
        assert f'"type":"{name.removeprefix("event: ")}"' in data


def test_the_stream_helper_reads_it(served: Any) -> None:
    store_id, _ = a_store(served, "a.txt")
    tools = [{"type": "file_search", "vector_store_ids": [store_id]}]
    with served.client().responses.stream(model="tiny-chat", input=QUESTION, tools=tools) as stream:
        snapshots = [e.snapshot for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == "You asked: where is the cat — voilà "


@pytest.mark.parametrize(("word", "code"), [("breakdown", "server_error"),
                                            ("refused", "invalid_prompt")])  # fmt: skip
def test_an_error_in_the_stream_is_a_failed_response(
    served: Any, logged: list[Any], word: str, code: str
) -> None:
    events = list(create(served, input=word, stream=True))
    assert events[-1].type == "response.failed"
    failed = events[-1].response
    assert (failed.status, failed.error.code) == ("failed", code)
    assert "secret" not in failed.error.message and failed.id == events[0].response.id
    assert [e["event"] for e in logged].count("incident") == (word == "breakdown")
    with pytest.raises(openai.NotFoundError):
        served.client().responses.retrieve(failed.id)


def test_an_error_before_the_stream_has_its_own_status(serve_with: Callable[..., Any]) -> None:
    served = serve_with(queue_limit=0)
    with pytest.raises(openai.RateLimitError):
        create(served, stream=True)


# ------------------------------------------------------------------ file search


@pytest.mark.parametrize("stream", [False, True])
def test_file_search_cites_files(served: Any, stream: bool) -> None:
    store_id, (first, second) = a_store(served, "a.txt", "b.txt")
    tool = {"type": "file_search", "vector_store_ids": [store_id], "max_num_results": 2,
            "ranking_options": {"ranker": "auto", "score_threshold": 0.0}}  # fmt: skip
    answer = create(served, tools=[tool], include=["file_search_call.results"], stream=stream)
    events = list(answer) if stream else []
    done = events[-1].response if stream else answer
    search, message = done.output
    assert (search.type, search.status, search.queries) == (
        "file_search_call", "completed", [QUESTION],
    )  # fmt: skip
    results = {(r.file_id, r.filename, r.text, r.attributes["colour"]) for r in search.results}
    assert results == {
        (first, "a.txt", "the cat of a.txt", "red"), (second, "b.txt", "the cat of b.txt", "red"),
    }  # fmt: skip
    notes = message.content[0].annotations
    assert {(n.type, n.file_id, n.filename) for n in notes} == {
        ("file_citation", first, "a.txt"), ("file_citation", second, "b.txt"),
    }  # fmt: skip
    (request,) = served.service.requests
    assert (request.collection, request.top_k) == (store_id, 2)
    if stream:
        names = [event.type.removeprefix("response.") for event in events]
        assert names[2:9] == [
            "output_item.added", "file_search_call.in_progress", "file_search_call.searching",
            "file_search_call.completed", "output_item.done", "output_item.added",
            "content_part.added",
        ]  # fmt: skip
        assert names.count("output_text.annotation.added") == 2
        assert events[6].item == search  # with its results
        assert [e.output_index for e in events[2:9]] == [0] * 5 + [1] * 2


def test_results_are_left_out_unless_asked_for(served: Any) -> None:
    store_id, _ = a_store(served, "a.txt")
    done = create(served, tools=[{"type": "file_search", "vector_store_ids": [store_id]}])
    assert done.output[0].results is None


def test_a_search_is_done_where_nothing_is_retrieved_by_itself(
    serve_with: Callable[..., Any],
) -> None:
    served = serve_with(retrieval={"top_k": 0})
    tool = {"type": "file_search", "vector_store_ids": ["default"]}
    create(served, tools=[tool])
    create(served, tools=[tool], tool_choice="none")
    assert [request.top_k for request in served.service.requests] == [4, 0]


def test_functions_are_taken_and_said_not_to_be_called(served: Any) -> None:
    function = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    done = create(served, tools=[function], parallel_tool_calls=False, reasoning={"effort": "low"})
    assert [note.split()[0] for note in done.chunkcache["notes"]] == ["tools:", "reasoning"]
    assert done.tools[0].name == "f" and done.parallel_tool_calls is False


def test_an_unknown_store_is_not_found(served: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        create(served, tools=[{"type": "file_search", "vector_store_ids": ["vs_none"]}])
    assert caught.value.param == "vector_store_id"


# ------------------------------------------------------------------ kept


def test_a_conversation_goes_on_from_a_response(served: Any) -> None:
    first = create(served, instructions="be brief")
    second = create(served, input="and the dog", previous_response_id=first.id)
    third = create(served, input="why", previous_response_id=second.id, stream=True)
    assert list(third)[-1].response.previous_response_id == second.id
    assert asked(served) == [
        ("user", QUESTION), ("assistant", first.output_text),
        ("user", "and the dog"), ("assistant", second.output_text), ("user", "why"),
    ]  # fmt: skip  # instructions are for one answer alone


def test_a_response_is_read_again_and_deleted(served: Any) -> None:
    client = served.client()
    done = create(served, input=[{"role": "user", "content": text} for text in "ab"])
    assert client.responses.retrieve(done.id) == done
    items = list(client.responses.input_items.list(done.id, order="asc"))
    assert [(i.type, i.role, i.content[0].text) for i in items] == [
        ("message", "user", "a"), ("message", "user", "b"),
    ]  # fmt: skip
    client.responses.delete(done.id)
    for call in (client.responses.retrieve, client.responses.delete,
                 client.responses.input_items.list):  # fmt: skip
        with pytest.raises(openai.NotFoundError, match="not found"):
            call(done.id)


def test_a_streamed_response_is_kept_as_it_was_sent(served: Any) -> None:
    *_, last = create(served, stream=True)
    assert served.client().responses.retrieve(last.response.id) == last.response


def test_what_is_not_to_be_kept_is_not(served: Any) -> None:
    done = create(served, store=False)
    assert done.store is False
    with pytest.raises(openai.NotFoundError):
        served.client().responses.retrieve(done.id)
    with pytest.raises(openai.BadRequestError) as caught:
        create(served, previous_response_id=done.id)
    assert (caught.value.param, caught.value.code) == (
        "previous_response_id", "previous_response_not_found",
    )  # fmt: skip


def test_a_response_is_its_tenant_s_alone(serve_with: Callable[..., Any], tmp_path: Path) -> None:
    key_file = tmp_path / "keys"
    key_file.write_text("sk-a acme\nsk-g globex\n")
    key_file.chmod(0o600)
    served = serve_with(api_keys_file=key_file)
    done = create(served, key="sk-a")
    assert served.client("sk-a").responses.retrieve(done.id).id == done.id
    with pytest.raises(openai.NotFoundError):
        served.client("sk-g").responses.retrieve(done.id)
    with pytest.raises(openai.NotFoundError):
        served.client("sk-g").responses.delete(done.id)
    with pytest.raises(openai.BadRequestError):
        create(served, key="sk-g", previous_response_id=done.id)
    assert create(served, key="sk-a", previous_response_id=done.id).status == "completed"


# ------------------------------------------------------------------ refused


NEUTRAL = {
    "background": False, "conversation": None, "prompt": None, "service_tier": "auto",
    "top_logprobs": 0, "truncation": "disabled", "include": [], "tools": [], "tool_choice": "auto",
    "text": {"format": {"type": "text"}, "verbosity": "medium"}, "reasoning": {"effort": "none"},
    "stream_options": {"include_obfuscation": False}, "user": "me", "safety_identifier": "me",
    "prompt_cache_key": "k", "prompt_cache_retention": "24h", "max_tool_calls": 3,
}  # fmt: skip


def test_values_that_ask_for_nothing_are_taken(served: Any) -> None:
    done = post(served, **NEUTRAL).json()
    assert done["chunkcache"]["notes"] == [] and post(served).status_code == 200
    assert served.service.requests[0] == served.service.requests[1]


def test_tokens_are_drawn_as_in_a_chat(served: Any) -> None:
    wishes = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 7, "stop": ["\n"],
        "frequency_penalty": 0.1, "presence_penalty": 0.2, "repetition_penalty": 1.1,
        "logit_bias": {"5": -100}, "min_tokens": 1, "ignore_eos": True,
    }  # fmt: skip
    post(served, **wishes, max_output_tokens=9)
    chat = {"messages": [{"role": "user", "content": QUESTION}], **wishes, "max_tokens": 9}
    httpx.post(f"{served.url}/v1/chat/completions", json=chat)
    response, completion = served.service.requests
    assert response.sampling == completion.sampling != Sampling()


def test_nulls_stand_for_defaults(served: Any) -> None:
    schema = served.app.openapi()["components"]["schemas"]["ResponseRequest"]
    nulls = {name: None for name in schema["properties"] if name not in schema["required"]}
    assert post(served, **nulls).status_code == 200
