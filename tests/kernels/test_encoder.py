"""The compiled encoder against transformers' own models, text by text."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from chunkcache_kernels.encoder import NoEncoder, PackedEncoder

SIZES = {"vocab_size": 300, "num_hidden_layers": 2, "max_position_embeddings": 220}
SHAPES = [
    (32, 1, 64),  # one head of the smallest size
    (64, 2, 256),
    (128, 2, 1056),  # heads of 64, and a product of three blocks of 352 terms
    (1056, 33, 64),  # blocks on the way in
]


def bert(width: int, heads: int, inner: int, **more: Any) -> Any:
    torch.manual_seed(width)
    config = BertConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=inner, **SIZES, **more
    )
    model = BertModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases and norms that are not 0 and 1, larger weights
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def one_by_one(model: Any, texts: list[list[int]]) -> np.ndarray:
    with torch.inference_mode():
        each = [model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in texts]
    return torch.cat(each).numpy()


def drawn(*lengths: int) -> list[list[int]]:
    draw = np.random.default_rng(sum(lengths))
    return [draw.integers(2, 300, length).tolist() for length in lengths]


@pytest.fixture(scope="session")
def native_cache() -> Path:
    """Where the engine keeps its library too."""
    return Path(platformdirs.user_cache_dir("chunkcache", appauthor=False))


@pytest.fixture
def packed(native_cache: Path) -> Callable[[Any], PackedEncoder]:
    def make(model: Any) -> PackedEncoder:
        try:
            return PackedEncoder(native_cache, model)
        except NoEncoder as error:
            if "AVX-512" in str(error):
                pytest.skip(str(error))
            raise

    return make


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lengths", [(1,), (5, 4, 13), (12, 24), (97, 1, 200), (31,) * 9])
def test_every_row_is_as_of_its_text_alone(
    packed: Any, shape: tuple[int, int, int], lengths: tuple[int, ...]
) -> None:
    model = bert(*shape)
    texts = drawn(*lengths)
    ours, theirs = packed(model).encode(texts), one_by_one(model, texts)
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert error.max() < 2e-3  # 16 bits, two layers; bf16 is at 1e-2


@pytest.mark.parametrize("lengths", [(40, 7, 199, 12), (13,) * 30])
def test_a_row_does_not_depend_on_what_is_beside_it(packed: Any, lengths: tuple[int, ...]) -> None:
    encoder, texts = packed(bert(64, 2, 256)), drawn(*lengths)
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert np.array_equal(together, alone)


def test_threads_may_encode_at_once(packed: Any) -> None:
    encoder, texts = packed(bert(64, 2, 256)), drawn(*range(3, 60))
    expected = [encoder.encode([text]) for text in texts]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda text: encoder.encode([text]), texts))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_sums_at_the_bound_do_not_overflow(packed: Any) -> None:
    """Rows that point where a column points have the largest sums there can be."""
    model, signs = bert(512, 16, 512), torch.tensor([1.0, -1.0]).repeat(256)
    for layer in model.encoder.layer:
        layer.intermediate.dense.weight.copy_(3.0 * signs.expand(512, 512))
        layer.output.dense.weight.copy_(-2.0 * signs[:, None].expand(512, 512))
        layer.attention.output.LayerNorm.weight.zero_()
        layer.attention.output.LayerNorm.bias.copy_(1.5 * signs)
    texts = drawn(9, 14)
    ours, theirs = packed(model).encode(texts), one_by_one(model, texts)
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert error.max() < 2e-3


def test_a_row_with_one_number_far_above_the_others_keeps_the_others(packed: Any) -> None:
    model = bert(64, 2, 256)
    for layer in model.encoder.layer:
        layer.attention.output.LayerNorm.weight[3] = 300.0
    texts = drawn(20)
    ours, theirs = packed(model).encode(texts), one_by_one(model, texts)
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert error.max() < 1e-2


def test_positions_of_roberta_begin_behind_padding(packed: Any) -> None:
    torch.manual_seed(3)
    config = XLMRobertaConfig(
        hidden_size=64, num_attention_heads=2, intermediate_size=128, pad_token_id=1,
        type_vocab_size=1, **SIZES,
    )  # fmt: skip
    model = XLMRobertaModel(config).eval().requires_grad_(False)
    encoder, texts = packed(model), drawn(30, 218)
    assert encoder.max_tokens == 218
    ours, theirs = encoder.encode(texts), one_by_one(model, texts)
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert error.max() < 2e-3


def test_erf_is_followed_far_out(packed: Any) -> None:
    """gelu of very large and very small numbers, which large weights make."""
    model = bert(64, 2, 256)
    for layer in model.encoder.layer:
        layer.intermediate.dense.weight.mul_(40.0)
    texts = drawn(25)
    ours, theirs = packed(model).encode(texts), one_by_one(model, texts)
    assert np.isfinite(ours).all()
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert error.max() < 5e-3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: bert(48, 2, 64), "multiples of 32"),
        (lambda: bert(64, 2, 64, hidden_act="relu"), "relu"),
        (lambda: bert(64, 2, 64).bfloat16(), "not in fp32"),
        (
            lambda: DistilBertModel(DistilBertConfig(dim=64, n_heads=2, hidden_dim=64, n_layers=1)),
            "DistilBertModel",
        ),
    ],
)
def test_what_is_not_written_in_c_is_refused(
    native_cache: Path, make: Callable[[], Any], says: str
) -> None:
    with pytest.raises(NoEncoder, match=says):
        PackedEncoder(native_cache, make())


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(NoEncoder, match="no C compiler"):
        PackedEncoder(tmp_path, bert(64, 2, 64))
