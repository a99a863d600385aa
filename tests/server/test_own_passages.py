"""Clients that bring their own context, over the wire: prompts in the shapes that pipelines make.

The real service behind a real port, the unmodified OpenAI client in front.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from chunkcache import ChunkCache
from chunkcache.protocol import AnswerReport, GivenDocument
from chunkcache.server.app import create_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath"]
QUESTION = "Which tree grows by the water?"


def passage(number: int) -> str:
    first, second = WORDS[number % 8], WORDS[(number * 3 + 1) % 8]
    return (
        f"Record {number} of the survey names {first}, found {number * 17} steps from the {second}"
        f" gate; it was measured twice, at {number * 13 + 5} and at {number * 11 + 7}."
    )


def langchain(passages: list[str]) -> list[dict[str, str]]:
    """A chain that stuffs documents into the system text, and asks in a turn of its own."""
    system = "Use the retrieved context to answer; say so if you cannot.\n\n" + "\n\n".join(
        passages
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": QUESTION}]


def llama_index(passages: list[str]) -> list[dict[str, str]]:
    """A query engine over text nodes with file names in their metadata."""
    rule = "-" * 21
    nodes = "\n\n".join(f"file_path: /survey/{i}.txt\n\n{p}" for i, p in enumerate(passages))
    text = f"The context is below.\n{rule}\n{nodes}\n{rule}\nQuery: {QUESTION}\nAnswer: "
    return [
        {"role": "system", "content": "Always answer from the context given."},
        {"role": "user", "content": text},
    ]


def open_webui(passages: list[str]) -> list[dict[str, str]]:
    """A chat with knowledge attached: tagged sources, then what the user wrote."""
    sources = "\n".join(
        f'<source id="{i}" name="survey {i}.txt">{p}</source>' for i, p in enumerate(passages, 1)
    )
    text = f"### Task:\nAnswer the query and cite [id].\n\n<context>\n{sources}\n</context>\n\n"
    return [{"role": "user", "content": text + QUESTION}]


def lmcache_bench(passages: list[str]) -> list[dict[str, str]]:
    """A permutation of long documents with a question behind them, all in one turn."""
    return [{"role": "user", "content": "".join(f"{p}\n" for p in passages) + QUESTION}]


SHAPES = [langchain, llama_index, open_webui, lmcache_bench]


@pytest.fixture
def service(tiny_settings: Callable[..., Any]) -> Iterator[ChunkCache]:
    memory = {"disk_capacity_bytes": 0}  # reading the disk may be slower than computing
    with ChunkCache(tiny_settings(retrieval={"chunk_tokens": 256}, store=memory)) as cache:
        texts = [GivenDocument(id=f"r{i}", title=f"R {i}", text=passage(i)) for i in range(8)]
        cache.ingest_texts(texts)
        cache.warm()
        yield cache


@pytest.fixture
def client(live: Any, service: ChunkCache) -> Iterator[openai.OpenAI]:
    with live.behind(create_app(service)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, messages: Any, **options: Any) -> tuple[Any, AnswerReport]:
    extra = {"chunkcache": options} if options else None
    done = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=4, extra_body=extra
    )
    return done, AnswerReport.model_validate(done.chunkcache)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pipelines_own_prompt_is_served_from_the_cache(
    client: openai.OpenAI, shape: Callable[[list[str]], Any]
) -> None:
    numbers = [5, 0, 6, 3]
    done, report = ask(client, shape([passage(n) for n in numbers]))
    found = [span for span in report.spans if span.matched]
    assert [span.title for span in found] == [f"R {n}" for n in numbers]
    assert all(span.tier == "host" and span.miss is None for span in found)
    assert sum(s.tokens for s in found) > 0.7 * sum(len(passage(n)) for n in numbers)
    cached = done.usage.prompt_tokens_details.cached_tokens
    assert cached == report.reused_tokens > report.prompt_tokens // 2
    assert [c.title for c in report.citations] == [f"R {n}" for n in numbers]
    assert [c.document_id for c in report.citations] == [s.document_id for s in found]
    (note,) = [note for note in report.notes if "bring" in note]
    assert "nothing was retrieved" in note


@pytest.mark.parametrize("named", ["vs_none", ""])
def test_a_store_that_is_named_must_be_there_though_nothing_is_retrieved(
    client: openai.OpenAI, named: str
) -> None:
    known = open_webui([passage(n) for n in (5, 0, 6, 3)])
    alone: Any = [{"role": "user", "content": QUESTION}]
    for messages, more in ((known, {}), (alone, {"top_k": 0})):
        with pytest.raises(openai.NotFoundError, match=f"No such vector store: '{named}'"):
            ask(client, messages, vector_store_id=named, **more)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_prompt_is_the_clients_own_to_the_last_token(
    client: openai.OpenAI, shape: Callable[[list[str]], Any]
) -> None:
    messages = shape([passage(n) for n in (1, 4, 1)])
    exact, on = ask(client, messages, budget=1.0)
    whole, off = ask(client, messages, match_messages=False, top_k=0, mode="full")
    full, _ = ask(client, messages, mode="full")
    assert on.prompt_tokens == off.prompt_tokens
    assert full.choices[0].message.content == whole.choices[0].message.content
    assert exact.choices[0].message.content == whole.choices[0].message.content
    assert not [s for s in off.spans if s.matched] and off.reused_tokens == 0


def test_permutations_of_long_documents_share_their_passages(client: openai.OpenAI) -> None:
    """As lmcache's bench asks: the same documents in every order, no two prompts alike."""
    documents = [" ".join(passage(n) for n in range(i, i + 3)) for i in (0, 3)]
    for order in itertools.permutations([*documents, passage(7)]):
        _, report = ask(client, lmcache_bench(list(order)))
        found = [span for span in report.spans if span.matched]
        assert sorted(str(s.title) for s in found) == [f"R {n}" for n in (0, 1, 2, 3, 4, 5, 7)]
        assert report.computed_tokens < report.prompt_tokens // 3


def test_a_stream_opens_with_the_passages_of_the_message(client: openai.OpenAI) -> None:
    messages: Any = open_webui([passage(2), passage(6)])
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=4, stream=True,
        )
    )  # fmt: skip
    opening: Any = chunks[0]
    assert [c["title"] for c in opening.chunkcache["citations"]] == ["R 2", "R 6"]


def test_links_lead_to_the_passage_in_whichever_store_it_is(
    client: openai.OpenAI, service: ChunkCache
) -> None:
    store = service.create_collection("elsewhere").id
    text = "Far away, on another shelf, there is a note about the lighthouse and its keeper."
    service.ingest_texts([GivenDocument(id="far", title="Far", text=text)], collection=store)
    done, _ = ask(client, open_webui([text, passage(1)]))
    links = [a.url_citation.url for a in done.choices[0].message.annotations]
    assert len(links) == 2 and f"store={store}" in links[0]
    for link, words in zip(links, ("lighthouse", "Record 1"), strict=True):
        page = httpx.get(link)
        assert page.status_code == 200 and words in page.text


def test_a_title_request_about_a_chat_is_answered_without_passages(client: openai.OpenAI) -> None:
    """Open WebUI asks for a title with the conversation so far in one turn, passages and all."""
    chat = f"USER: {open_webui([passage(2), passage(3)])[0]['content']}\nASSISTANT: Cedar."
    task = f"### Task:\nGive a title of a few words.\n<chat_history>\n{chat}\n</chat_history>"
    _, report = ask(client, [{"role": "user", "content": task}])
    assert all(span.matched for span in report.spans if span.kind == "chunk")


def test_a_file_search_finds_what_the_message_does_not_bring(client: openai.OpenAI) -> None:
    search: Any = {"type": "file_search", "vector_store_ids": ["default"], "max_num_results": 2}
    done = client.responses.create(
        model="tiny", input=open_webui([passage(2), passage(6)])[0]["content"], tools=[search],
        max_output_tokens=4, include=["file_search_call.results"],
    )  # fmt: skip
    call: Any = done.output[0]
    assert call.type == "file_search_call"
    found = {result.text for result in call.results}
    assert found.isdisjoint({passage(2), passage(6)}) and found <= set(map(passage, range(8)))
    report: Any = done
    assert sum(span["matched"] for span in report.chunkcache["spans"]) == 2
