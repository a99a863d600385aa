"""Folders that sentence-transformers itself saves, against its own vectors.

    pip install sentence-transformers && pytest -m sentence_transformers

It is no dependency, of tests neither: without it these tests are skipped, and
`test_embedder_folder.py` holds the same to values computed by hand.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from chunkcache.retrieval.embedder import open_embedder

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.sentence_transformers,
    pytest.mark.filterwarnings("ignore"),  # theirs
]

TEXTS = ["The Quick Brown Fox.", "os.path.join joins paths", "fox", "A cache keeps. " * 40]
PROMPTS = {"query": "query: ", "document": "passage: "}
CASES: dict[str, dict[str, Any]] = {
    **{mode: {"modes": [mode]} for mode in ("cls", "max", "mean", "weightedmean", "lasttoken")},
    "side by side": {"modes": ["cls", "mean"]},
    "square root": {"modes": ["mean_sqrt_len_tokens"]},
    "short": {"limit": 12},
    "lower case": {"lower": True},
    "prompts": {"prompts": PROMPTS},
    "prompts not pooled": {"prompts": PROMPTS, "include_prompt": False},
    "query prompt alone": {"prompts": {"query": "query: "}},
    "dense": {"dense": True},
    "dense, normalised": {"dense": True, "normalised": True},
    "normalised": {"normalised": True},
}


@pytest.fixture(scope="module")
def library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sentence_transformers")


def build(library: Any, folder: Path, case: dict[str, Any]) -> Any:
    """A model of the library over the tiny weights."""
    inside = (
        "sentence_transformer.modules" if hasattr(library, "sentence_transformer") else "models"
    )
    models = importlib.import_module(f"sentence_transformers.{inside}")
    given = {"do_lower_case": case.get("lower", False)}
    if "limit" in case:
        given["max_seq_length"] = case["limit"]
    words = models.Transformer(str(folder), **given)
    modes = case.get("modes", ["mean"])
    pooled = {"include_prompt": case.get("include_prompt", True)}
    size = 32
    if "embedding_dimension" in inspect.signature(models.Pooling.__init__).parameters:
        mode = modes[0] if len(modes) == 1 else tuple(modes)
        layers = [words, models.Pooling(size, pooling_mode=mode, **pooled)]
    else:  # as before 5.4
        flags = {f"pooling_mode_{m}" + "_tokens" * (m in ("max", "mean")): True for m in modes}
        layers = [words, models.Pooling(size, **flags, **pooled)]
    if case.get("dense"):
        layers.append(models.Dense(size * len(modes), 24))
    if case.get("normalised"):
        layers.append(models.Normalize())
    return library.SentenceTransformer(modules=layers, prompts=case.get("prompts"), device="cpu")


@pytest.mark.parametrize("name", CASES)
def test_a_saved_folder_gives_the_librarys_vectors(
    library: Any, folder: Any, tmp_path: Path, name: str
) -> None:
    model = build(library, folder(), CASES[name])
    model.save(str(tmp_path / "saved"))
    embedder = open_embedder(str(tmp_path / "saved"))
    # of a text that is one token with its prompt's last, the library pools nothing: a zero vector
    texts = [text for text in TEXTS if text != "fox" or CASES[name].get("include_prompt", True)]
    passages = model.encode_document(texts, normalize_embeddings=True)
    assert embedder.dim == passages.shape[1]
    assert np.abs(embedder.embed(texts) - passages).max() < 1e-5
    query = model.encode_query(TEXTS[0], normalize_embeddings=True)
    assert np.abs(embedder.embed_query(TEXTS[0]) - query).max() < 1e-5
