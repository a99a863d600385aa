"""Citations lead somewhere: signed links to a page that shows the passage."""

from __future__ import annotations

import re
import time
from html import unescape
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.errors import LinkExpired, NotFound
from chunkcache.protocol import Citation
from chunkcache.server.links import LinkQuery, LinkSigner, PassageRef
from chunkcache.server.passage_page import SURROUNDINGS_CHARS, passage_page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOSTILE = 'the cat <script>alert(1)</script> & "quotes" </pre></mark>'


def ingest(served: Any, name: str, text: str, tenant: str = "public") -> None:
    served.service.ingest_bytes(name, text.encode(), tenant=tenant, collection="default")


def ask(served: Any, key: str = "-", **options: Any) -> Any:
    return served.client(key).chat.completions.create(
        model="tiny-chat", messages=[{"role": "user", "content": "the cat"}], **options
    )


def link_of(served: Any, **options: Any) -> str:
    (annotation,) = ask(served, **options).choices[0].message.annotations
    return str(annotation.url_citation.url)


def marked(html: str) -> str:
    (passage,) = re.findall(r'<mark id="passage">(.*?)</mark>', html, re.DOTALL)
    return unescape(passage)


def test_a_citation_links_to_the_passage_in_its_document(served: Any) -> None:
    ingest(served, "cats.txt", "the cat sat on the mat")
    link = link_of(served)
    assert link.startswith(f"{served.url}/documents/doc-") and link.endswith("#passage")
    response = httpx.get(link)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "<h1>cats.txt</h1>" in response.text
    assert marked(response.text) == "the cat sat on the mat"


def test_the_stream_and_the_whole_answer_have_the_same_link(served: Any) -> None:
    ingest(served, "cats.txt", "the cat sat")
    *_, closing = ask(served, stream=True)
    streamed = httpx.URL(closing.choices[0].delta.annotations[0]["url_citation"]["url"])
    whole = httpx.URL(link_of(served))
    same = [url.copy_remove_param("expires").copy_remove_param("signature")
            for url in (streamed, whole)]  # fmt: skip
    assert same[0] == same[1]
    assert marked(httpx.get(streamed).text) == marked(httpx.get(whole).text) == "the cat sat"


def test_documents_cannot_run_code_or_load_anything(served: Any) -> None:
    ingest(served, "<b>.txt", HOSTILE)
    response = httpx.get(link_of(served))
    assert "<script" not in response.text and "<b>" not in response.text
    assert marked(response.text) == HOSTILE
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_a_document_s_own_address_comes_first(served: Any) -> None:
    given_documents = [{"title": "Cats", "text": "the cat", "url": "https://cats.test/1"}]
    body = {"documents": given_documents}
    assert link_of(served, extra_body=body) == "https://cats.test/1"


def test_documents_of_the_request_have_names_and_no_links(served: Any) -> None:
    ingest(served, "cats.txt", "the cat")
    (held,) = served.service.documents(tenant="public", collection="default")
    body = {"documents": [{"id": held.document_id, "text": "the cat, otherwise"}]}
    assert link_of(served, extra_body=body) == f"urn:chunkcache:{held.document_id}#chars=0-18"


def test_untitled_documents_are_cited_by_id(served: Any) -> None:
    body = {"documents": [{"id": "d7", "text": "the cat"}]}
    (note,) = ask(served, extra_body=body).choices[0].message.annotations
    assert note.url_citation.title == "d7"


def test_links_go_to_the_public_address_if_there_is_one(serve_with: Callable[..., Any]) -> None:
    served = serve_with(public_url="https://docs.example/kv/")
    ingest(served, "cats.txt", "the cat")
    assert link_of(served).startswith("https://docs.example/kv/documents/doc-")


def test_a_link_needs_no_key_and_works_for_its_own_tenant_only(
    serve_with: Callable[..., Any], tmp_path: Path
) -> None:
    key_file = tmp_path / "keys"
    key_file.write_text("sk-a acme\nsk-g globex\n")
    key_file.chmod(0o600)
    served = serve_with(api_keys_file=key_file)
    ingest(served, "cats.txt", "the cat of acme", tenant="acme")
    ingest(served, "cats.txt", "the cat of globex", tenant="globex")
    link = link_of(served, key="sk-a")
    assert marked(httpx.get(link).text) == "the cat of acme"
    stolen = httpx.get(link.replace("tenant=acme", "tenant=globex"))
    assert stolen.status_code == 404 and "globex" not in stolen.text


@pytest.mark.parametrize(
    ("part", "instead"),
    [("start=0", "start=1"), ("end=7", "end=8"), ("store=default", "store=vs_1"),
     ("signature=", "signature=0"), ("text=", "text=0"), ("/doc-", "/doc-0"),
     ("signature=", "signature=%C3%A9"), ("expires=", "expires=9")],
)  # fmt: skip
def test_an_altered_link_shows_nothing(served: Any, part: str, instead: str) -> None:
    ingest(served, "cats.txt", "the cat")
    link = link_of(served)
    assert httpx.get(link).status_code == 200
    assert part in link
    response = httpx.get(link.replace(part, instead))
    assert response.status_code == 404
    assert "the cat" not in response.text


@pytest.mark.parametrize("query", ["", "tenant=public&store=default&start=0&end=7&text=x", "x=1"])
def test_an_incomplete_link_is_a_bad_request(http: httpx.Client, query: str) -> None:
    assert http.get(f"/documents/doc-1?{query}").status_code == 400


def test_a_removed_document_s_link_is_dead(served: Any) -> None:
    ingest(served, "cats.txt", "the cat")
    link = link_of(served)
    (info,) = served.service.documents(tenant="public", collection="default")
    served.service.remove(info.document_id, tenant="public", collection="default")
    response = httpx.get(link)
    assert response.status_code == 404 and "No such document" in response.text


def test_an_edited_document_s_link_shows_what_the_answer_had(served: Any) -> None:
    ingest(served, "cats.txt", HOSTILE)
    link = link_of(served)
    ingest(served, "cats.txt", "a dog ran")
    response = httpx.get(link)
    assert response.status_code == 200
    assert marked(response.text) == HOSTILE and "<script" not in response.text
    assert "has changed since" in response.text and "dog" not in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_a_passage_that_is_no_longer_kept_is_not_replaced_by_another(served: Any) -> None:
    ingest(served, "cats.txt", "the cat sat")
    link = link_of(served)
    ingest(served, "cats.txt", "a dog ran, the cat sat")
    served.service._former.clear()
    response = httpx.get(link)
    assert response.status_code == 410
    assert "no longer kept" in response.text and "dog" not in response.text


def test_a_link_s_time_is_a_setting(serve_with: Callable[..., Any]) -> None:
    served = serve_with(link_lifetime_s=1000.0)
    ingest(served, "cats.txt", "the cat sat")
    before = time.time()
    expires = int(httpx.URL(link_of(served)).params["expires"])
    assert before + 1000 <= expires <= time.time() + 1001


def test_an_expired_link_says_so_and_shows_nothing(served: Any) -> None:
    ingest(served, "cats.txt", "the cat sat")
    citation = served.service.search("cat", top_k=1, tenant="public", collection="default")[0]
    ref = PassageRef.of(Citation(**citation.model_dump()), tenant="public", store="default")
    for age_s, status in ((999.0, 200), (1001.0, 410)):
        signer = LinkSigner(
            served.service.link_key, 1000.0, lambda age_s=age_s: time.time() - age_s
        )
        response = httpx.get(signer.url(served.url, ref))
        assert response.status_code == status
        assert ("expired" in response.text) == (status == 410)
        assert ("the cat sat" in response.text) == (status == 200)
        assert "default-src 'none'" in response.headers["content-security-policy"]


@settings(deadline=None, max_examples=60)
@given(
    document=st.from_regex(r"[A-Za-z0-9_~-]{1,40}", fullmatch=True),
    tenant=st.text(st.characters(codec="utf-8")),
    store=st.text(st.characters(codec="utf-8")),
    start=st.integers(0, 10**9),
    key=st.binary(min_size=32, max_size=32),
)
def test_any_link_is_read_back_and_another_key_s_is_not(
    document: str, tenant: str, store: str, start: int, key: bytes
) -> None:
    citation = Citation(
        chunk_id="c", document_id=document, title="", url="", start_char=start,
        end_char=start + 4, text="text", score=0.0,
    )  # fmt: skip
    ref = PassageRef.of(citation, tenant=tenant, store=store)
    url = httpx.URL(LinkSigner(key, 60.0).url("http://server.test/base/", ref))
    assert url.path == f"/base/documents/{document}"
    query = LinkQuery.model_validate(dict(url.params))
    assert LinkSigner(key, 60.0).read(document, query) == ref
    with pytest.raises(LinkExpired):
        LinkSigner(key, 60.0, lambda: time.time() + 61.0).read(document, query)
    with pytest.raises(NotFound, match="altered"):
        LinkSigner(key[::-1] + b"!", 60.0).read(document, query)


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=40), start=st.integers(0, 50), length=st.integers(0, 50))
def test_the_page_marks_exactly_the_passage(text: str, start: int, length: int) -> None:
    html = passage_page("t", text, start, start + length)
    pre = html.partition("<pre>")[2].partition("</pre>")[0]
    assert unescape(re.sub(r"</?mark[^>]*>", "", pre)) == text
    assert marked(html) == text[start : start + length]


def test_a_long_document_is_shown_around_the_passage() -> None:
    margin = SURROUNDINGS_CHARS
    text = "a" * (margin + 7) + "PASSAGE" + "b" * (margin + 9)
    html = passage_page("t", text, margin + 7, margin + 14)
    assert marked(html) == "PASSAGE"
    assert html.count("aaa") * 3 <= margin + 3
    assert "7 characters before this" in html and "9 characters after this" in html
