"""After a change of tokenizer, chunk size or embedder: everything made again from stored text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from chunkcache.retrieval.chunking import tokenise_again
from chunkcache.retrieval.documents import vector_space
from chunkcache.retrieval.embedder import HashingEmbedder
from chunkcache.retrieval.ingest import Ingestor
from chunkcache.retrieval.refresh import Refreshed, refresh
from chunkcache.retrieval.retriever import Retriever
from chunkcache.retrieval.splitter import Splitter

if TYPE_CHECKING:
    from pathlib import Path

    from chunkcache.retrieval.catalog import Catalog

WHERE = ("public", "default")
LONG = "The quick brown fox jumps over the lazy dog. " * 6
LINES = [{"text": "A lazy dog.", "title": "Dog", "id": "d"}, {"text": "fox " * 12, "id": "f"}]


@pytest.fixture
def filled(ingestor: Ingestor, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(f"# Foxes\n\n{LONG}")
    ingestor.ingest_paths([tmp_path / "a.md"])
    (tmp_path / "a.md").unlink()  # only the stored text is left
    ingestor.ingest_bytes("c.jsonl", "\n".join(map(json.dumps, LINES)).encode())


def check(catalog: Catalog, splitter: Splitter, embedder: Any) -> None:
    """All chunks are of this splitter and have vectors of this embedder."""
    chunks = list(catalog.chunks(*WHERE))
    assert chunks
    for chunk in chunks:
        assert chunk.token_ids == splitter.encode(chunk.text)
        assert len(chunk.token_ids) <= splitter.chunk_tokens
        stored = catalog.document(*WHERE, chunk.document_id)
        assert stored is not None and stored.splitter == splitter.fingerprint
        assert stored.document.text[chunk.start_char : chunk.end_char] == chunk.text
    assert len(catalog.entries.without_vector(*WHERE, vector_space(embedder))) == 0


@pytest.mark.usefixtures("filled")
def test_nothing_to_do_changes_nothing(catalog: Catalog, splitter: Splitter, embedder: Any) -> None:
    generation = catalog.generation(*WHERE)
    assert refresh(catalog, splitter, embedder, *WHERE) == Refreshed(0, 0)
    assert catalog.generation(*WHERE) == generation


@pytest.mark.usefixtures("filled")
def test_another_tokenizer_gives_every_chunk_new_token_ids(
    catalog: Catalog, other_tokenizer: Any, embedder: Any
) -> None:
    before = list(catalog.chunks(*WHERE))
    other = Splitter(other_tokenizer, 24)
    assert refresh(catalog, other, embedder, *WHERE).documents == 2
    check(catalog, other, embedder)
    after = list(catalog.chunks(*WHERE))
    assert [c.token_ids for c in before] != [c.token_ids for c in after]
    assert {c.title for c in after} == {"Foxes", "Dog", "c.jsonl"}


@pytest.mark.usefixtures("filled")
def test_chunks_whose_text_stays_keep_id_and_vector(
    catalog: Catalog, other_tokenizer: Any, embedder: Any
) -> None:
    before = {c.text: c.chunk_id for c in catalog.chunks(*WHERE)}
    embedder.texts.clear()
    refresh(catalog, Splitter(other_tokenizer, 24), embedder, *WHERE)
    after = {c.text: c.chunk_id for c in catalog.chunks(*WHERE)}
    assert after["A lazy dog."] == before["A lazy dog."]
    assert not any("A lazy dog." in text for text in embedder.texts)


@pytest.mark.usefixtures("filled")
def test_another_chunk_size_splits_again_and_given_chunks_that_no_longer_fit_are_split(
    catalog: Catalog, tokenizer: Any, embedder: Any
) -> None:
    small = Splitter(tokenizer, 8)
    refresh(catalog, small, embedder, *WHERE)
    check(catalog, small, embedder)
    parts = [c for c in catalog.chunks(*WHERE) if "-f." in c.chunk_id]
    assert len(parts) > 1
    assert " ".join(c.text for c in parts) == LINES[1]["text"].strip()
    assert len({c.chunk_id for c in catalog.chunks(*WHERE)}) == len(list(catalog.chunks(*WHERE)))


@pytest.mark.usefixtures("filled")
def test_another_embedder_embeds_every_chunk_again(catalog: Catalog, splitter: Splitter) -> None:
    other = HashingEmbedder(64)
    count = len(list(catalog.chunks(*WHERE)))
    assert refresh(catalog, splitter, other, *WHERE) == Refreshed(0, count)
    check(catalog, splitter, other)
    _, entries = catalog.entries.all(*WHERE)
    assert catalog.entries.read(entries, vector_space(other))[1].shape == (count, 64)


@pytest.mark.usefixtures("filled")
def test_embedding_again_is_done_in_batches_that_a_kill_can_come_between(
    catalog: Catalog, splitter: Splitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chunkcache.retrieval.refresh._BATCH_CHUNKS", 2)

    class Killed(HashingEmbedder):
        batches = 0

        def embed(self, texts: Any) -> Any:
            self.batches += 1
            if self.batches == 3:
                raise KeyboardInterrupt
            return super().embed(texts)

    count = len(list(catalog.chunks(*WHERE)))
    with pytest.raises(KeyboardInterrupt):
        refresh(catalog, splitter, Killed(64), *WHERE)
    assert refresh(catalog, splitter, HashingEmbedder(64), *WHERE) == Refreshed(0, count - 4)


@pytest.mark.usefixtures("filled")
def test_a_search_never_returns_token_ids_of_another_tokenizer(
    catalog: Catalog, retriever: Retriever, other_tokenizer: Any, embedder: Any, tmp_path: Path,
    retrieval: Any,
) -> None:  # fmt: skip
    assert retriever.search("lazy dog", top_k=3)
    other = Splitter(other_tokenizer, 24)
    renewed = Retriever(catalog, embedder, tmp_path / "home" / "indexes", retrieval(), other)
    chunks = renewed.search("lazy dog", top_k=9)
    assert chunks
    assert all(chunk.token_ids == other.encode(chunk.text) for chunk in chunks)


@pytest.mark.usefixtures("filled")
def test_a_search_with_another_embedder_embeds_and_indexes_again(
    catalog: Catalog, retriever: Retriever, splitter: Splitter, tmp_path: Path, retrieval: Any
) -> None:
    expected = [chunk.text for chunk in retriever.search("A lazy dog.", top_k=1)]
    other = Retriever(
        catalog, HashingEmbedder(64), tmp_path / "home" / "indexes", retrieval(), splitter
    )
    assert [chunk.text for chunk in other.search("A lazy dog.", top_k=1)] == expected


@pytest.mark.usefixtures("filled")
def test_an_ingest_renews_what_is_old_and_counts_it_unchanged(
    catalog: Catalog, other_tokenizer: Any, embedder: Any, retrieval: Any
) -> None:
    other = Splitter(other_tokenizer, 24)
    ingestor = Ingestor(catalog, other, embedder, retrieval())
    ingestor.ingest_bytes("c.jsonl", "\n".join(map(json.dumps, LINES)).encode())
    check(catalog, other, embedder)


@pytest.mark.usefixtures("filled")
def test_a_document_that_cannot_be_split_any_more_has_no_chunks_and_keeps_its_text(
    catalog: Catalog, tokenizer: Any, embedder: Any, logged: list[Any], ingestor: Ingestor
) -> None:
    info = ingestor.ingest_bytes("emoji.txt", "👨 a".encode())
    tiny = Splitter(tokenizer, 3)
    refresh(catalog, tiny, embedder, *WHERE)
    assert [e["document"] for e in logged if e["event"] == "document_unsplittable"] == [
        info.document_id
    ]
    assert catalog.entries.of_document(*WHERE, info.document_id) == []
    refresh(catalog, Splitter(tokenizer, 24), embedder, *WHERE)
    assert [c.text for c in catalog.entries.of_document(*WHERE, info.document_id)] == ["👨 a"]


@pytest.mark.usefixtures("filled")
def test_a_chunk_that_has_no_token_any_more_is_left_out(catalog: Catalog, embedder: Any) -> None:
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwyz ")}
    without_x = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(letters, [])))
    refresh(catalog, Splitter(without_x, 64), embedder, *WHERE)
    given = [c for c in catalog.chunks(*WHERE) if c.title == "c.jsonl"]
    assert given and all(chunk.token_ids for chunk in given)
    only_x = [replace(given[0], text="xxx")]
    assert tokenise_again(Splitter(without_x, 64), [*only_x, *given]) == given
