"""What readers see of a citation: a label they can read, a link that is one, a list if asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.protocol import Citation
from chunkcache.server.citations import Citer, label

if TYPE_CHECKING:
    from collections.abc import Callable

USER = [{"role": "user", "content": "where is the cat"}]
ANSWER = "You asked: where is the cat — voilà "
DOCUMENTS = [
    {"title": "Cats", "text": "the cat", "url": "https://cats.test/1"},
    {"title": "Cats", "text": "the cat again", "url": "https://cats.test/1"},
    {"title": "Notes\non  dogs", "text": "no cat", "url": "javascript:alert(1)"},
]
SOURCES = "\n\nSources:\n[1] Cats: https://cats.test/1\n[2] Notes on dogs"


def citation(**fields: Any) -> Citation:
    filled = {"chunk_id": "c", "document_id": "d7", "title": "", "url": "", "start_char": 0,
              "end_char": 4, "text": "text", "score": 0.0, **fields}  # fmt: skip
    return Citation(**filled)


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Cats", "Cats"),
        ("guide/cats.md", "guide/cats.md"),
        ("", "d7"),
        (" two\nlines\t", "two lines"),
        ("https://docs.test/guide/the%20cat.html?x=1#top", "the cat.html"),
        ("https://docs.test/guide/", "guide"),
        ("https://docs.test", "docs.test"),
        ("x" * 300, "x" * 200),
    ],
)
def test_labels_are_what_a_reader_calls_a_document(title: str, shown: str) -> None:
    assert label(citation(title=title)) == shown


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "file:///etc/passwd", "data:text/html,x", "//cats.test", "cats.md",
     "https:cats", "https://cats.test/a b", "https://cats.test/\n[9] Evil: https://evil.test"],
)  # fmt: skip
def test_nothing_but_http_becomes_a_link(url: str) -> None:
    citer = Citer(signer=None, base_url="", tenant="public", store="default", as_text=True)
    (note,) = citer.annotations([citation(title="Cats", url=url)], 10)
    assert note["url_citation"]["url"] == "urn:chunkcache:d7#chars=0-4"
    assert citer.sources([citation(title="Cats", url=url)]) == "\n\nSources:\n[1] Cats"


def ask(served: Any, **body: Any) -> Any:
    options = {"documents": DOCUMENTS, **body}
    return served.client().chat.completions.create(
        model="tiny-chat", messages=USER, extra_body=options
    )


def test_sources_follow_the_answer_where_a_request_asks(served: Any) -> None:
    listed = ask(served, chunkcache={"citations": "text"}).choices[0].message
    assert listed.content == ANSWER + SOURCES
    assert len(listed.annotations) == 3 and listed.annotations[0].url_citation.end_index == 36
    for options in ({}, {"chunkcache": {"citations": "annotations"}}):
        assert ask(served, **options).choices[0].message.content == ANSWER
    nothing = ask(served, documents=[], chunkcache={"citations": "text"})
    assert nothing.choices[0].message.content == ANSWER
    asked = [request.options for request in served.service.requests]
    assert all(options == asked[0] for options in asked)  # it is no matter of the service's


def test_sources_follow_every_answer_where_the_settings_say_so(
    serve_with: Callable[..., Any],
) -> None:
    served = serve_with(citations="text")
    assert ask(served).choices[0].message.content == ANSWER + SOURCES
    quiet = ask(served, chunkcache={"citations": "annotations"})
    assert quiet.choices[0].message.content == ANSWER


def test_streams_and_other_endpoints_list_the_same_sources(served: Any) -> None:
    client = served.client()
    body = {"documents": DOCUMENTS, "chunkcache": {"citations": "text"}}
    chunks = client.chat.completions.create(
        model="tiny-chat", messages=USER, stream=True, extra_body=body
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == ANSWER + SOURCES
    wishes = {"model": "tiny-chat", "extra_body": body}
    question = USER[0]["content"]
    assert client.completions.create(prompt=question, **wishes).choices[0].text == ANSWER + SOURCES
    texts = client.completions.create(prompt=question, stream=True, **wishes)
    assert "".join(chunk.choices[0].text for chunk in texts) == ANSWER + SOURCES
    assert client.responses.create(input=question, **wishes).output_text == ANSWER + SOURCES
    *events, last = client.responses.create(input=question, stream=True, **wishes)
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == last.response.output_text == ANSWER + SOURCES
