"""Words before queries and passages: where they come from, and that vectors never mix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from chunkcache.errors import ConfigError
from chunkcache.retrieval.documents import vector_space
from chunkcache.retrieval.embedder import open_embedder
from chunkcache.retrieval.ingest import Ingestor
from chunkcache.retrieval.prompts import Chosen, Prompts, choose
from chunkcache.retrieval.retriever import Retriever

if TYPE_CHECKING:
    from pathlib import Path

    from chunkcache.retrieval.catalog import Catalog

SEARCH = "Represent this sentence for searching relevant passages: "
IN_FOLDER = {"prompts": {"query": "q: ", "document": "d: "}}


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("intfloat/e5-small-v2", "query: ", "passage: "),
        ("intfloat/multilingual-e5-base", "query: ", "passage: "),
        ("/models/E5-Large", "query: ", "passage: "),
        ("BAAI/bge-small-en-v1.5", SEARCH, ""),
        ("BAAI/bge-m3", "", ""),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("nomic-ai/nomic-embed-text-v2-moe", "search_query: ", "search_document: "),
        ("Snowflake/snowflake-arctic-embed-s", SEARCH, ""),
        ("Snowflake/snowflake-arctic-embed-m-v1.5", SEARCH, ""),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "query: ", ""),
        ("thenlper/gte-small", "", ""),
        ("Alibaba-NLP/gte-modernbert-base", "", ""),
        ("sentence-transformers/all-MiniLM-L6-v2", "", ""),
        ("someone/note5-base", "", ""),
        ("/e5-large/models/minilm", "", ""),
        ("/hub/models--BAAI--bge-base-en/snapshots/a5beb1e3", SEARCH, ""),
    ],
)
def test_what_families_are_known_to_want(name: str, query: str, passage: str) -> None:
    found = choose(Prompts(), {"prompts": {"query": "", "document": ""}}, (name,))
    assert (found.query, found.passage) == (query, passage)
    assert found.origin == ("model family" if query else found.origin)


def test_instruct_models_want_a_task_before_queries_alone() -> None:
    for name in ("intfloat/multilingual-e5-large-instruct", "Alibaba-NLP/gte-Qwen2-1.5B-instruct"):
        found = choose(Prompts(), {}, (name,))
        assert found.query.startswith("Instruct: ") and found.query.endswith("\nQuery: ")
        assert found.passage == ""


@pytest.mark.parametrize(
    ("given", "stated", "expected"),
    [
        (Prompts("s: ", None), IN_FOLDER, Chosen("s: ", "d: ", "settings")),
        (Prompts("", ""), IN_FOLDER, Chosen("", "", "settings")),
        (Prompts(), IN_FOLDER, Chosen("q: ", "d: ", "folder")),
        (
            Prompts(),
            {"prompts": {"query": "q: ", "passage": "p: "}},
            Chosen("q: ", "p: ", "folder"),
        ),
        (Prompts(), {"prompts": {"query": "q: "}}, Chosen("q: ", "", "folder")),
        (
            Prompts(),
            {"prompts": {"all": "a: "}, "default_prompt_name": "all"},
            Chosen("a: ", "a: ", "folder"),
        ),
        (Prompts(None, "s: "), {}, Chosen("query: ", "s: ", "settings")),
        (Prompts(), {}, Chosen("query: ", "passage: ", "model family")),
    ],
)  # fmt: skip
def test_settings_come_before_the_folder_and_the_folder_before_the_family(
    given: Prompts, stated: Any, expected: Chosen
) -> None:
    assert choose(given, stated, ("me/e5-small",)) == expected


def test_prompts_go_before_queries_and_passages(folder: Any, logged: list[Any]) -> None:
    plain = open_embedder(str(folder("plain")))
    assert logged == []
    stated = folder("stated", config_sentence_transformers=IN_FOLDER)
    given = {"query_prompt": "q: ", "passage_prompt": "d: "}
    for embedder in (open_embedder(str(stated)), open_embedder(str(folder("plain")), **given)):
        assert np.array_equal(embedder.embed_query("fox"), plain.embed_query("q: fox"))
        assert np.array_equal(embedder.embed(["fox"]), plain.embed(["d: fox"]))
        assert embedder.count_tokens(["fox"]) == plain.count_tokens(["d: fox"])
    assert [e["origin"] for e in logged if e["event"] == "embedder_prompts"] == [
        "folder", "settings",
    ]  # fmt: skip


def test_a_family_is_known_by_the_name_of_its_folder(folder: Any) -> None:
    plain = open_embedder(str(folder("plain")))
    assert np.array_equal(
        open_embedder(str(folder("e5-small-v2"))).embed(["fox"]), plain.embed(["passage: fox"])
    )


def test_a_collection_embedded_with_other_prompts_is_embedded_again(
    folder: Any, catalog: Catalog, splitter: Any, retrieval: Any, tmp_path: Path, topics: Any,
    logged: list[Any],
) -> None:  # fmt: skip
    path = str(folder())
    before = open_embedder(path)
    filled = Ingestor(catalog, splitter, before, retrieval())
    for name, text in topics.items():
        filled.ingest_bytes(name, text.encode())
    _, entries = catalog.entries.all("public", "default")
    after = open_embedder(path, passage_prompt="passage: ")
    assert vector_space(after) != vector_space(before)
    assert len(catalog.entries.without_vector("public", "default", vector_space(after))) == 5
    index = Retriever(catalog, after, tmp_path / "indexes", retrieval(mode="vector"), splitter)
    assert len(index.search("How are paths joined?", top_k=9)) == 5
    (note,) = [e for e in logged if e["event"] == "chunks_embedded_again"]
    assert note["chunks"] == 5 and note["log_level"] == "warning"
    present, vectors = catalog.entries.read(entries, vector_space(after))
    chunks = catalog.entries.chunks("public", "default", entries)
    expected = after.embed([f"{chunks[e].title}\n{chunks[e].text}" for e in present.tolist()])
    assert np.allclose(vectors, expected, atol=1e-6)
    assert len(catalog.entries.read(entries, vector_space(before))[0]) == 0


@pytest.mark.parametrize("field", ["query_prompt", "passage_prompt"])
def test_the_hashing_embedder_takes_no_prompts(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"retrieval.{field}: got 'q: '.*Hint"):
        open_embedder("hashing:64", **{field: "q: "})  # type: ignore[arg-type]
    assert open_embedder("hashing:64", **{field: ""}).dim == 64  # type: ignore[arg-type]
