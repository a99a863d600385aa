"""`file_search` of `/v1/responses` with filters, as the vector store's own search takes them."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from chunkcache.ranking import Ranking

QUESTION = "where is the cat"


def a_store(served: Any, *colours: str) -> str:
    """A vector store with a red and a blue file about the cat, or with these."""
    client = served.client()
    store = client.vector_stores.create(name="cats")
    for colour in colours or ("red", "blue"):
        file = client.files.create(file=(f"{colour}.txt", b"the cat"), purpose="assistants")
        client.vector_stores.files.create(store.id, file_id=file.id, attributes={"colour": colour})
    return str(store.id)


def found(served: Any, **tool: Any) -> set[str]:
    done = served.client().responses.create(
        model="tiny-chat", input=QUESTION, tools=[{"type": "file_search", **tool}],
        include=["file_search_call.results"],
    )  # fmt: skip
    return {result.filename for result in done.output[0].results}


def test_only_files_that_pass_are_drawn_on(served: Any) -> None:
    stores = [a_store(served)]
    red = {"type": "eq", "key": "colour", "value": "red"}
    blue = {"type": "in", "key": "colour", "value": ["blue", "green"]}
    assert found(served, vector_store_ids=stores) == {"red.txt", "blue.txt"}
    assert found(served, vector_store_ids=stores, filters=red) == {"red.txt"}
    both = {"type": "or", "filters": [red, blue]}
    assert found(served, vector_store_ids=stores, filters=both) == {"red.txt", "blue.txt"}
    none = {"type": "and", "filters": [red, blue]}
    assert found(served, vector_store_ids=stores, filters=none) == set()


def test_several_stores_are_searched_together(served: Any) -> None:
    first, second = a_store(served, "red"), a_store(served, "blue")
    done = served.client().responses.create(
        model="tiny-chat", input=QUESTION, include=["file_search_call.results"],
        tools=[{"type": "file_search", "vector_store_ids": [first, second]}],
    )  # fmt: skip
    search, message = done.output
    results = {(hit.filename, hit.attributes["colour"]) for hit in search.results}
    assert results == {("red.txt", "red"), ("blue.txt", "blue")}
    cited = {note.filename for note in message.content[0].annotations}
    assert cited == {"red.txt", "blue.txt"}
    citations = done.chunkcache["citations"]  # type: ignore[attr-defined]
    assert {one["collection"] for one in citations} == {"", second}
    assert [one["headings"] for one in citations] == [["Pets", "Cats"]] * 2


def test_one_unknown_store_of_several_is_named(served: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="vs_none"):
        found(served, vector_store_ids=[a_store(served), "vs_none"])


def test_a_store_of_a_search_that_is_ruled_out_must_be_there_too(served: Any) -> None:
    store, client = a_store(served), served.client()
    asked: dict[str, Any] = {"model": "tiny-chat", "input": QUESTION, "tool_choice": "none"}
    with pytest.raises(openai.NotFoundError, match="No such vector store: 'vs_none'"):
        client.responses.create(
            **asked, tools=[{"type": "file_search", "vector_store_ids": [store, "vs_none"]}]
        )
    assert served.service.requests == []
    client.responses.create(**asked, tools=[{"type": "file_search", "vector_store_ids": [store]}])
    assert [request.top_k for request in served.service.requests] == [0]


@pytest.mark.parametrize(
    ("options", "ranking"),
    [
        ({}, None),
        ({"ranker": "auto", "score_threshold": 0.0}, None),
        ({"ranker": "default-2024-11-15", "score_threshold": 0.5}, Ranking(least_score=0.5)),
        ({"hybrid_search": {"embedding_weight": 1, "text_weight": 3}}, Ranking(weights=(1, 3))),
        ({"hybrid_search": {"text_weight": 0}}, Ranking(weights=(1, 0))),
    ],
)
def test_ranking_options_reach_both_searches(served: Any, options: Any, ranking: Any) -> None:
    store = a_store(served, "red")
    found(served, vector_store_ids=[store], ranking_options=options)
    served.client().vector_stores.search(store, query="cat", ranking_options=options)
    assert served.service.rankings == [ranking] * 2


def test_an_answer_without_a_filter_is_not_filtered_by_the_last_one(served: Any) -> None:
    stores = [a_store(served)]
    red = {"type": "eq", "key": "colour", "value": "red"}
    assert found(served, vector_store_ids=stores, filters=red) == {"red.txt"}
    assert found(served, vector_store_ids=stores) == {"red.txt", "blue.txt"}


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"type": "like", "key": "colour", "value": "red"}, "filters"),
        ({"type": "eq", "key": "colour"}, "filters.value"),
        ({"type": "or", "filters": [{"type": "eq", "key": "a", "value": 1}] * 100},
         "more than 100 filters"),
    ],
)  # fmt: skip
def test_filters_that_are_none_are_refused(served: Any, filters: Any, said: str) -> None:
    tool = {"type": "file_search", "vector_store_ids": ["default"], "filters": filters}
    body = {"input": QUESTION, "tools": [tool]}
    response = httpx.post(f"{served.url}/v1/responses", json=body)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]
    assert served.service.requests == []
