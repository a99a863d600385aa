"""Texts under ids of the caller's own, against the real server, in each manner."""

from __future__ import annotations

from typing import Any

import pytest

from chunkcache.errors import InvalidRequest, NotFound
from chunkcache.sdk import Text
from chunkcache.sdk.texts import ID_ATTRIBUTE

CAT = Text("a/1?", "the cat sat", title="notes/Cats.md", attributes={"page": 3, "draft": False})
DOG = Text("2", "the dog ran", attributes={"page": 4.5, "by": "Ann"})


def uploads(served: Any) -> list[str]:
    return [file.filename for file in served.app.state.shelf.list("public")]


def test_texts_are_found_listed_read_and_discarded_by_their_ids(served: Any, caller: Any) -> None:
    assert caller("put_texts", [CAT, DOG]) == ["a/1?", "2"]
    (hit,) = caller("search", "cat", top_k=1)
    assert (hit.text_id, hit.text, hit.title) == ("a/1?", "the cat sat", "Cats.md.txt")
    assert (hit.filename, hit.num_chunks) == ("Cats.md.txt", 1)
    assert hit.attributes == {"page": 3, "draft": False}
    assert [type(value) for value in hit.attributes.values()] == [int, bool]
    listed = {one.id: one for one in caller("texts")}
    assert listed["2"].attributes == {"page": 4.5, "by": "Ann"} and listed["2"].num_chunks == 1
    assert listed[CAT.id].document_id == hit.document_id
    assert [one.text for one in caller("read_texts", ["2", "gone", "a/1?"])] == [DOG.text, CAT.text]
    assert caller("discard_texts", ["a/1?", "gone"]) == 1
    assert [one.id for one in caller("texts")] == ["2"] and uploads(served) == ["text.txt"]


def test_a_known_id_is_replaced_and_the_same_is_not_sent(served: Any, caller: Any) -> None:
    caller("put_texts", [CAT, DOG])
    caller("put_texts", [CAT, DOG])
    assert len(served.service.ingested) == 2
    caller("put_texts", [Text(CAT.id, CAT.text, CAT.title, {"page": 9})])  # attributes alone
    assert len(served.service.ingested) == 2
    assert caller("search", "cat", top_k=1)[0].attributes == {"page": 9}
    caller("put_texts", [Text(CAT.id, CAT.text, CAT.title, {"page": 1})])
    caller("put_texts", [Text(CAT.id, CAT.text, CAT.title, {"page": True})])  # equal, not the same
    assert caller("search", "cat", top_k=1)[0].attributes["page"] is True
    caller("put_texts", [Text("2", "an owl")])
    assert [one.text for one in caller("read_texts", ["2"])] == ["an owl"]
    assert len(uploads(served)) == 2 and caller("search", "dog") == []


@pytest.mark.parametrize(
    "other",
    [Text("2", "last"), Text("2", "first", "Title"), Text("2", "first", attributes={"page": True})],
)
def test_two_texts_with_one_id_are_refused_before_anything_is_sent(
    served: Any, caller: Any, other: Text
) -> None:
    first = Text("2", "first", attributes={"page": 1})
    with pytest.raises(InvalidRequest, match="'2'") as caught:
        caller("put_texts", [CAT, first, other])
    assert caught.value.param == "id" and uploads(served) == []
    assert caller("put_texts", [first, CAT, first]) == ["2", CAT.id]  # the same is no other one
    assert len(uploads(served)) == 2


def test_searches_can_be_filtered(served: Any, caller: Any) -> None:
    caller("put_texts", [CAT, DOG])
    later = {"type": "gt", "key": "page", "value": 4}
    assert [hit.text_id for hit in caller("search", "the cat", filters=later)] == ["2"]
    caller("search", "the cat", score_threshold=0.5)
    assert served.service.rankings[-1].least_score == 0.5
    with pytest.raises(InvalidRequest, match="filters"):
        caller("search", "the cat", filters={"type": "like", "key": "page", "value": 4})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (Text("", "x"), "id: got ''"),
        (Text("1", "  "), "text '1': .*empty"),
        (Text("1", "\ud800"), "text '1': half a surrogate pair"),
        (Text("1", "x", attributes={"tags": ["a"]}), r"attributes.tags: got \['a'\]"),
        (Text("1", "x", attributes={"none": None}), "attributes.none: got None"),
        (Text("1", "x", attributes={"big": 2**53 + 1}), "attributes.big"),
        (Text("1", "x", attributes={"odd": float("nan")}), "attributes.odd: got nan"),
        (Text("1", "x", attributes={ID_ATTRIBUTE: "2"}), "must be left out"),
        (Text("1", "x", attributes={"long": "y" * 513}), "text '1': attributes.long"),
        (Text("1", "x", attributes={str(n): n for n in range(16)}), "text '1': attributes"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name_and_left_nowhere(
    served: Any, caller: Any, text: Any, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        caller("put_texts", [text])
    assert uploads(served) == [] and caller("texts") == []


def test_a_vector_store_goes_with_its_uploads_unless_another_has_them(
    served: Any, caller: Any
) -> None:
    one, other = caller("create_vector_store", "one"), caller("create_vector_store")
    caller("put_texts", [CAT, DOG], vector_store_id=one)
    shared = caller("texts", vector_store_id=one)[0].file_id
    served.client().vector_stores.files.create(vector_store_id=other, file_id=shared)
    assert caller("delete_vector_store", one) and not caller("delete_vector_store", one)
    assert len(uploads(served)) == 1 and len(caller("texts", vector_store_id=other)) == 1
    with pytest.raises(NotFound):
        caller("put_texts", [CAT], vector_store_id=one)
    with pytest.raises(NotFound):
        caller("search", "cat", vector_store_id=one)


def test_a_document_that_was_no_text_goes_by_its_own_id(caller: Any) -> None:
    caller("ingest", ("a.txt", b"the cat"))
    (document,) = caller("documents")
    assert [one.id for one in caller("texts")] == [document.document_id]
    assert caller("search", "cat")[0].text_id == document.document_id
    assert caller("read_texts", [document.document_id])[0].text == "the cat"
