"""An embedder reads the tokens that its tokenizer.json says, whatever class its neighbour names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.documents import vector_space
from chunkcache.retrieval.embedder import open_embedder
from chunkcache.retrieval.ingest import Ingestor
from chunkcache.retrieval.refresh import Refreshed
from chunkcache.retrieval.splitter import Splitter

TEXT = "The quick\n  brown fox jumps, 1234 the Lazy dog ﬁnds 56"


def named(path: Path, own: Tokenizer, name: str) -> None:
    own.save(str(path / "tokenizer.json"))
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": name}))


def byte_level(path: Path, rule: str) -> Tokenizer:
    own = Tokenizer.from_file(str(path / "tokenizer.json"))
    split = pre_tokenizers.Split(Regex(rule), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    own.normalizer = normalizers.Lowercase()
    return own


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_byte_level_text_is_cut_as_the_file_says(folder: Any, name: str) -> None:
    path = folder()
    own = byte_level(path, "[0-9]|fox")
    named(path, own, name)
    embedder: Any = open_embedder(str(path))
    assert embedder._encode(TEXT) == own.encode(TEXT).ids
    assert embedder.count_tokens([TEXT]) == len(own.encode(TEXT).ids)


@pytest.mark.parametrize("name", ["BertTokenizer", "MPNetTokenizer", "PreTrainedTokenizerFast"])
def test_word_pieces_are_cut_as_the_file_says(folder: Any, name: str) -> None:
    path = folder()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"0123456789", "fox", "##finds", "finds"]
    words += ["The", "the", "quick", "brown", "jumps", ",", "Lazy", "dog"]
    pieces = {word: number for number, word in enumerate(words)}
    own = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    own.add_special_tokens(words[:5])
    own.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    digits = pre_tokenizers.Digits(individual_digits=True)
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), digits])
    named(path, own, name)
    embedder: Any = open_embedder(str(path))
    ids = embedder._encode(TEXT)
    inner = [
        number for number in ids if 4 < number < len(words)
    ]  # some classes put marks around the text
    assert [words[number] for number in inner] == [
        "The", "quick", "brown", "fox", "jumps", ",", "1", "2", "3", "4", "the", "Lazy", "dog",
        "finds", "5", "6",
    ]  # fmt: skip


@pytest.mark.parametrize("lower", [True, False])
def test_berts_own_normaliser_is_switched_by_the_configuration(folder: Any, lower: bool) -> None:
    """As in every version of transformers, and thus when the model was trained."""
    path = folder()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Fox", "fox"]
    own = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    own.normalizer = normalizers.BertNormalizer(lowercase=not lower)
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_lower_case": lower}))
    named(path, own, "BertTokenizer")
    embedder: Any = open_embedder(str(path))
    assert (6 if lower else 5) in embedder._encode("Fox")


def test_another_rule_in_the_file_leaves_no_vector_of_the_one_before(
    folder: Any, catalog: Catalog, splitter: Splitter, retrieval: Any
) -> None:
    path = folder()
    named(path, byte_level(path, "[0-9]"), "GPT2Tokenizer")
    before = open_embedder(str(path))
    Ingestor(catalog, splitter, before, retrieval()).ingest_bytes("a.txt", TEXT.encode())
    named(path, byte_level(path, "[a-z]|[0-9]"), "GPT2Tokenizer")
    after = open_embedder(str(path))
    assert before.fingerprint != after.fingerprint
    _, entries = catalog.entries.all("public", "default")
    assert len(catalog.entries.read(entries, vector_space(after))[0]) == 0
    ingestor = Ingestor(catalog, splitter, after, retrieval())
    assert ingestor.refresh() == Refreshed(0, len(entries))
    texts = catalog.entries.searched_texts("public", "default", entries)
    differ = False
    for entry, vector in zip(*catalog.entries.read(entries, vector_space(after)), strict=True):
        text = texts[int(entry)]
        assert np.allclose(vector, after.embed_query(text), atol=1e-5)
        differ = differ or not np.allclose(vector, before.embed_query(text), atol=1e-3)
    assert differ
