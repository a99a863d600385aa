"""Known passages in messages: of the tenant alone, as the catalog has them at that moment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from chunkcache.chunk import Chunk
from chunkcache.retrieval.passage_index import SHORTEST
from chunkcache.retrieval.passage_matcher import PassageMatcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from chunkcache.retrieval.catalog import Catalog
    from chunkcache.retrieval.ingest import Ingestor
    from chunkcache.retrieval.splitter import Splitter

MIB = 1 << 20


@pytest.fixture
def splitter_tokens() -> int:
    return 128


@pytest.fixture
def splitter(tokenizer: Any, splitter_tokens: int) -> Splitter:
    from chunkcache.retrieval.splitter import Splitter

    return Splitter(tokenizer, splitter_tokens)


@pytest.fixture
def matcher(catalog: Catalog) -> PassageMatcher:
    return PassageMatcher(catalog, 64 * MIB)


@pytest.fixture
def put_notes(ingestor: Ingestor) -> Callable[..., None]:
    """Notes 1 and 2 to a file: each a chunk of some fifty tokens."""

    def put(name: str, *numbers: int, **where: str) -> None:
        lines = [{"text": note(number)} for number in numbers]
        body = "\n".join(map(json.dumps, lines)).encode()
        ingestor.ingest_bytes(name, body, **where)

    return put


def note(number: int) -> str:
    words = [f"{word}{number * 7 + i}" for i, word in enumerate(("fox", "dog", "jug", "box"))]
    return f"note {number}: " + " and ".join(words) + f", said by {number * 31} of them."


def told(splitter: Splitter, *numbers: int) -> list[int]:
    """A message with notes among other words."""
    text = "Read this:\n\n" + "\n\n".join(note(n) for n in numbers) + "\n\nWhat does it say?"
    return list(splitter.encode(text))


def names(matches: Any) -> list[tuple[str, bool]]:
    return [(match.chunk.text, match.is_given) for match in matches]


def test_notes_in_a_message_are_found_with_what_they_are(
    matcher: PassageMatcher, put_notes: Any, splitter: Splitter
) -> None:
    put_notes("a.jsonl", 1, 2)
    put_notes("b.jsonl", 3)
    message = told(splitter, 3, 1, 3)
    found = matcher.find("public", message)
    assert names(found) == [(note(3), False), (note(1), False), (note(3), False)]
    for match in found:
        ids = match.chunk.token_ids
        part = ids[match.row : match.row + match.end - match.start]
        assert tuple(message[match.start : match.end]) == part
        assert len(ids) - len(part) <= 2  # but for what grew together at the edges
        assert match.chunk.collection == "default" and match.chunk.document_id


def test_tokens_that_grow_together_at_an_edge_shorten_the_passage(
    matcher: PassageMatcher, put_notes: Any, splitter: Splitter
) -> None:
    """`…them.` alone ends in other tokens than before a quotation mark; the ids decide."""
    put_notes("a.jsonl", 1)
    for text in (f"({note(1)})", f" {note(1)}x", f"{note(1)}\n\n{note(1)}", note(1)):
        message = list(splitter.encode(text))
        for match in matcher.find("public", message):
            part = match.chunk.token_ids[match.row :][: match.end - match.start]
            assert tuple(message[match.start : match.end]) == part
        assert matcher.find("public", message)


def test_no_tenant_sees_what_another_has(
    matcher: PassageMatcher, put_notes: Any, splitter: Splitter
) -> None:
    put_notes("a.jsonl", 1, tenant="one")
    matcher.remember("one", [Chunk("given", splitter.encode(note(2)), note(2))])
    message = told(splitter, 1, 2)
    assert names(matcher.find("one", message)) == [(note(1), False), (note(2), True)]
    assert matcher.find("two", message) == []
    assert matcher.find("public", message) == []


def test_a_copy_of_another_tenants_document_is_ones_own(
    matcher: PassageMatcher, put_notes: Any, splitter: Splitter
) -> None:
    for tenant in ("one", "two"):
        put_notes(f"{tenant}.jsonl", 1, tenant=tenant)
    found = [matcher.find(tenant, told(splitter, 1)) for tenant in ("one", "two")]
    assert len({match.chunk.document_id for (match,) in found}) == 2


def test_what_comes_is_found_and_what_goes_is_not(
    matcher: PassageMatcher, catalog: Catalog, put_notes: Any, splitter: Splitter
) -> None:
    message = told(splitter, 1, 2)
    assert matcher.find("public", message) == []
    put_notes("a.jsonl", 1)
    assert names(matcher.find("public", message)) == [(note(1), False)]
    put_notes("b.jsonl", 1, 2)
    (first, _) = matcher.find("public", message)
    catalog.remove_document(first.chunk.document_id, "public", "default")
    both = matcher.find("public", message)
    assert names(both) == [(note(1), False), (note(2), False)]  # the copy is there still
    assert both[0].chunk.document_id != first.chunk.document_id
    put_notes("b.jsonl", 5)
    assert matcher.find("public", message) == []


def test_passages_of_all_collections_are_found_and_gone_with_them(
    matcher: PassageMatcher, catalog: Catalog, put_notes: Any, splitter: Splitter
) -> None:
    shelf = catalog.create_collection("public", "shelf").id
    put_notes("a.jsonl", 1, collection=shelf)
    put_notes("b.jsonl", 2)
    found = matcher.find("public", told(splitter, 1, 2))
    assert [match.chunk.collection for match in found] == [shelf, "default"]
    catalog.delete_collection("public", shelf)
    assert names(matcher.find("public", told(splitter, 1, 2))) == [(note(2), False)]


def test_a_document_removed_behind_its_back_is_not_found(
    matcher: PassageMatcher, catalog: Catalog, put_notes: Any, splitter: Splitter
) -> None:
    """As by another process between the look at the stamp and the end of the search."""
    put_notes("a.jsonl", 1)
    message = told(splitter, 1)
    (match,) = matcher.find("public", message)
    known = matcher._tenants["public"]
    catalog.remove_document(match.chunk.document_id, "public", "default")
    assert known.find(message) == []


def test_given_passages_are_remembered_but_the_catalogs_come_first(
    matcher: PassageMatcher, put_notes: Any, splitter: Splitter
) -> None:
    given = Chunk("given", splitter.encode(note(1)), note(1), title="Private")
    matcher.remember("public", [given, given])
    (match,) = matcher.find("public", told(splitter, 1))
    assert match.is_given and match.chunk == given
    put_notes("a.jsonl", 1)
    (match,) = matcher.find("public", told(splitter, 1))
    assert not match.is_given and match.chunk.title != "Private"


def test_given_passages_are_forgotten_when_many_others_have_come(
    matcher: PassageMatcher, splitter: Splitter
) -> None:
    first = Chunk("first", splitter.encode(note(1)), note(1))
    matcher.remember("public", [first])
    for start in range(0, (1 << 18) + 3 * 4096, 4096):
        ids = tuple(range(start, start + 4096))
        matcher.remember("public", [Chunk("c", ids, "")])
        if start == 4096:
            assert len(matcher.find("public", told(splitter, 1))) == 1
    assert matcher.find("public", told(splitter, 1)) == []
    assert len(matcher.find("public", range(1 << 17, (1 << 17) + SHORTEST))) == 1


def test_a_tenant_that_has_too_much_has_its_first_chunks_found(
    catalog: Catalog, put_notes: Any, splitter: Splitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chunkcache.retrieval.passage_matcher._BATCH_ENTRIES", 2)
    put_notes("a.jsonl", *range(8))
    small = PassageMatcher(catalog, 1500)
    with structlog.testing.capture_logs() as logged:
        found = small.find("public", told(splitter, *range(8)))
    assert names(found) == [(note(n), False) for n in range(4)]
    assert [(e["event"], e["chunks"]) for e in logged] == [("passages_not_recognised", 4)]


def test_the_tenant_that_asked_longest_ago_is_let_go(
    catalog: Catalog, put_notes: Any, splitter: Splitter
) -> None:
    matcher = PassageMatcher(catalog, 2500)
    for tenant in ("one", "two", "three"):
        put_notes("a.jsonl", 1, 2, tenant=tenant)
        assert len(matcher.find(tenant, told(splitter, 1))) == 1
    assert list(matcher._tenants) == ["two", "three"]
    assert len(matcher.find("one", told(splitter, 2))) == 1  # it comes back


def test_preparing_a_tenant_takes_what_room_there_is_and_lets_no_other_go(
    catalog: Catalog, put_notes: Any, splitter: Splitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chunkcache.retrieval.passage_matcher._BATCH_ENTRIES", 2)
    put_notes("a.jsonl", 1, 2, tenant="one")
    put_notes("a.jsonl", *range(8), tenant="two")
    matcher = PassageMatcher(catalog, 2500)
    matcher.find("one", told(splitter, 1))
    one = matcher._tenants["one"]
    for _ in range(2):
        matcher.prepare("two")
        assert matcher._tenants["one"] is one
        assert list(matcher._tenants) == ["two", "one"]  # the first to go: nobody asked for it
        assert 0 < len(matcher._tenants["two"]._index.entries) < 8
    with structlog.testing.capture_logs() as logged:
        found = matcher.find("two", told(splitter, *range(6)))
    assert names(found) == [(note(n), False) for n in range(6)]
    assert [(e["event"], e["chunks"]) for e in logged] == [("passages_not_recognised", 2)]
    assert list(matcher._tenants) == ["two"]
    put_notes("a.jsonl", 1, 2, tenant="three")
    matcher.prepare("three")  # no room at all
    assert list(matcher._tenants) == ["two"]


def test_a_short_message_costs_no_query(
    matcher: PassageMatcher, catalog: Catalog, splitter: Splitter
) -> None:
    catalog.close()
    assert matcher.find("public", splitter.encode("Where is the fox?")[: SHORTEST - 1]) == []


def long_told(splitter: Splitter, *numbers: int) -> list[int]:
    texts = [f"{note(n)} {note(n + 20)} {note(n + 40)}" for n in numbers]
    return list(splitter.encode("Read:\n\n" + "\n\n".join(texts) + "\n\nWhat?"))


def test_text_that_comes_a_second_time_is_a_passage_from_then_on(
    matcher: PassageMatcher, splitter: Splitter
) -> None:
    for numbers, found in (((1, 2), 0), ((2, 1), 2), ((3, 1), 1)):
        message = long_told(splitter, *numbers)
        matches = matcher.find("public", message, learns=True)
        assert len(matches) == found and all(match.is_given for match in matches)
        for match in matches:
            assert tuple(message[match.start : match.end]) == match.chunk.token_ids[match.row :]
    assert len(matcher.find("public", long_told(splitter, 2, 4, 1))) == 2  # once known, without
    assert matcher.find("other", long_told(splitter, 2, 1), learns=True) == []


def test_nothing_is_learnt_unasked(matcher: PassageMatcher, splitter: Splitter) -> None:
    for numbers in ((1, 2), (2, 1), (2, 1), (1, 2)):
        assert matcher.find("public", long_told(splitter, *numbers)) == []
