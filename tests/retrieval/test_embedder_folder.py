"""What a sentence-transformers folder may say, against values computed from its hidden states."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from chunkcache.errors import UnsupportedModel
from chunkcache.retrieval.embedder import open_embedder

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["The quick brown fox.", "os.path.join joins paths", "fox", "A cache keeps. " * 5]
OLD = "sentence_transformers.models."
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
PROMPTS = {"prompts": {"query": "query: ", "document": "passage: "}}


def modules(*kinds: str, new: bool = True, first: str = "") -> list[dict[str, Any]]:
    return [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else first,
            "type": NEW[kind] if new else OLD + kind,
        }
        for index, kind in enumerate(kinds)
    ]


@pytest.fixture
def hidden(tokenizer: Any, tiny_weights: Any) -> Any:
    """`hidden(text)`: the model's hidden states of the text alone."""

    def states(text: str) -> np.ndarray:
        ids = tokenizer(text)["input_ids"][:64]
        with torch.no_grad():
            out = tiny_weights(input_ids=torch.tensor([ids])).last_hidden_state[0]
        return np.asarray(out.numpy())

    return states


def unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))


def close(vectors: np.ndarray, expected: list[np.ndarray]) -> bool:
    return bool(np.abs(vectors - np.stack([unit(e) for e in expected])).max() < 1e-5)


def weighted(h: np.ndarray) -> np.ndarray:
    weights = np.arange(1, len(h) + 1)[:, None]
    return np.asarray((h * weights).sum(0) / weights.sum())


WAYS: dict[str, Any] = {
    "cls": lambda h: h[0],
    "max": lambda h: h.max(0),
    "mean": lambda h: h.mean(0),
    "mean_sqrt_len_tokens": lambda h: h.sum(0) / len(h) ** 0.5,
    "weightedmean": weighted,
    "lasttoken": lambda h: h[-1],
}
FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@pytest.mark.parametrize("mode", WAYS)
@pytest.mark.parametrize("written", ["string", "flags"])
def test_every_way_of_pooling_as_both_formats_write_it(
    folder: Any, hidden: Any, mode: str, written: str
) -> None:
    if written == "string":  # as saved since 5.4
        pooling: dict[str, Any] = {
            "embedding_dimension": 32, "pooling_mode": mode, "include_prompt": True,
        }  # fmt: skip
    else:
        pooling = {flag: name == mode for name, flag in FLAGS.items()}
        pooling["word_embedding_dimension"] = 32
    path = folder(
        pooling=pooling, modules=modules("Transformer", "Pooling", new=written == "string")
    )
    vectors = open_embedder(str(path)).embed(TEXTS)
    assert close(vectors, [WAYS[mode](hidden(text)) for text in TEXTS])


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode": ["cls", "mean"]},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
    ],
)
def test_several_ways_stand_side_by_side(folder: Any, hidden: Any, pooling: Any) -> None:
    embedder = open_embedder(str(folder(pooling=pooling)))
    assert embedder.dim == 64
    expected = [np.concatenate([hidden(t)[0], hidden(t).mean(0)]) for t in TEXTS]
    assert close(embedder.embed(TEXTS), expected)


@pytest.mark.parametrize("pooling", [{}, {"pooling_mode_cls_token": False}])
def test_no_way_named_means_the_mean(folder: Any, hidden: Any, pooling: Any) -> None:
    vectors = open_embedder(str(folder(pooling=pooling))).embed(TEXTS)
    assert close(vectors, [hidden(text).mean(0) for text in TEXTS])


@pytest.mark.parametrize("mode", ["mean", "max", "weightedmean", "lasttoken"])
def test_tokens_of_a_prompt_are_read_but_not_pooled(
    folder: Any, hidden: Any, tokenizer: Any, mode: str
) -> None:
    texts = [text for text in TEXTS if len(text) > 10]  # of others the prompt is all
    pooling = {"pooling_mode": mode, "include_prompt": False}
    path = folder(pooling=pooling, config_sentence_transformers=PROMPTS)
    skipped = len(tokenizer("passage: ")["input_ids"])
    states = [hidden("passage: " + text) for text in texts]
    kept = [
        (h[skipped:] * np.arange(skipped + 1, len(h) + 1)[:, None]).sum(0)
        if mode == "weightedmean"  # a token weighs what its place in the text is
        else WAYS[mode](h[skipped:])
        for h in states
    ]
    assert close(open_embedder(str(path)).embed(texts), kept)
    plain = folder("plain", pooling={"pooling_mode": mode}, config_sentence_transformers=PROMPTS)
    if mode != "lasttoken":
        assert not close(open_embedder(str(plain)).embed(texts), kept)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("normalised_first", [False, True])
def test_dense_layers_behind_pooling_in_their_order(
    folder: Any, hidden: Any, file: str, normalised_first: bool
) -> None:
    kinds = ["Transformer", "Pooling", *["Normalize"] * normalised_first, "Dense", "Dense"]
    path: Path = folder(modules=modules(*kinds, "Normalize"))
    layers = []
    for place, (size, activation) in enumerate([((48, 32), "Tanh"), ((8, 48), "Identity")]):
        draw = np.random.default_rng(place)
        weight, bias = draw.normal(size=size) * 3, draw.normal(size=size[0])
        inside = path / f"{kinds.index('Dense') + place}_Dense"
        inside.mkdir()
        stated = {
            "in_features": size[1], "out_features": size[0], "bias": place == 0,
            "activation_function": f"torch.nn.modules.activation.{activation}",
        }  # fmt: skip
        (inside / "config.json").write_text(json.dumps(stated))
        tensors = {"linear.weight": torch.tensor(weight, dtype=torch.float32)}
        if place == 0:
            tensors["linear.bias"] = torch.tensor(bias, dtype=torch.float32)
        if file.endswith(".bin"):
            torch.save(tensors, inside / file)
        else:
            save_file(tensors, inside / file)
        layers.append((weight, bias))
    embedder = open_embedder(str(path))
    means = [hidden(text).mean(0) for text in TEXTS]
    if normalised_first:
        means = [unit(mean) for mean in means]
    first = [np.tanh(layers[0][0] @ mean + layers[0][1]) for mean in means]
    assert embedder.dim == 8
    assert close(embedder.embed(TEXTS), [layers[1][0] @ x for x in first])


def test_another_dense_layer_is_another_fingerprint(folder: Any) -> None:
    prints = set()
    for scale in (1.0, 2.0):
        path = folder(modules=modules("Transformer", "Pooling", "Dense"))
        (path / "2_Dense").mkdir(exist_ok=True)
        (path / "2_Dense/config.json").write_text("{}")
        save_file({"linear.weight": torch.eye(32) * scale}, path / "2_Dense/model.safetensors")
        prints.add(open_embedder(str(path)).fingerprint)
    assert len(prints) == 2


def test_the_transformer_may_lie_in_a_folder_of_its_own(folder: Any, hidden: Any) -> None:
    path = folder()
    inside = path / "0_Transformer"
    inside.mkdir()
    for file in list(path.iterdir()):
        if file.is_file():
            file.rename(inside / file.name)
    (inside / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    described = modules("Transformer", "Pooling", new=False, first="0_Transformer")
    (path / "modules.json").write_text(json.dumps(described))
    embedder = open_embedder(str(path))
    assert close(embedder.embed(TEXTS[:3]), [hidden(text).mean(0) for text in TEXTS[:3]])
    assert embedder.count_tokens(["fox " * 50]) == 12


@pytest.mark.parametrize("limit", [None, 20])
def test_the_length_limit_of_a_new_folder_is_the_tokenizers(folder: Any, limit: Any) -> None:
    path = folder(sentence_bert_config={"transformer_task": "feature-extraction"})
    stated = json.loads((path / "tokenizer_config.json").read_text())
    stated["model_max_length"] = limit or 10**30
    (path / "tokenizer_config.json").write_text(json.dumps(stated))
    assert open_embedder(str(path)).count_tokens(["fox " * 500]) == (limit or 64)


@pytest.mark.parametrize("lower", [True, False])
def test_a_folder_that_wants_lower_case_gets_it(folder: Any, lower: bool) -> None:
    path = folder(sentence_bert_config={"max_seq_length": 64, "do_lower_case": lower})
    embedder = open_embedder(str(path))
    upper, lowered = embedder.embed(["The QUICK Fox", "the quick fox"])
    assert np.array_equal(upper, lowered) is lower


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pooling": {"pooling_mode": "attention"}}, "attention"),
        ({"pooling": {"pooling_mode": ["mean", "splade"]}}, "splade"),
        ({"pooling": {"pooling_mode": "cls", "include_prompt": False}}, "include_prompt"),
        ({"sentence_bert_config": {"transformer_task": "fill-mask"}}, "fill-mask"),
        ({"sentence_bert_config": {"module_output_name": "logits"}}, "logits"),
        ({"sentence_bert_config": {"query_length": 32}}, "query_length"),
        ({"sentence_bert_config": {"query_expansion": {"pad": 1}}}, "query_expansion"),
        ({"config_sentence_transformers": {"similarity_fn_name": "dot"}}, "'dot'"),
        ({"modules": [{"type": "a.StaticEmbedding", "path": ""}]}, "StaticEmbedding"),
        ({"modules": [{"type": "a.Pooling"}, {"type": "a.Transformer"}]}, "Pooling → Trans"),
        (
            {"modules": [*modules("Transformer", "Pooling"), {"type": "a.Router", "path": "r"}]},
            "Router",
        ),
    ],
)
def test_what_would_change_vectors_is_refused_by_name(folder: Any, files: Any, says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        open_embedder(str(folder(**files)))


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"use_residual": True}, "use_residual"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
        ({"activation_function": "my.own.Activation"}, "Activation"),
    ],
)
def test_dense_layers_of_other_kinds_are_refused(folder: Any, stated: Any, says: str) -> None:
    path = folder(modules=modules("Transformer", "Pooling", "Dense"))
    (path / "2_Dense").mkdir()
    (path / "2_Dense/config.json").write_text(json.dumps(stated))
    save_file({"linear.weight": torch.eye(32)}, path / "2_Dense/model.safetensors")
    with pytest.raises(UnsupportedModel, match=says):
        open_embedder(str(path))


@pytest.mark.parametrize("similarity", ["cosine", None, "dot", "euclidean"])
def test_between_unit_vectors_other_similarities_say_the_same(
    folder: Any, similarity: str | None
) -> None:
    files = {"config_sentence_transformers": {"similarity_fn_name": similarity}}
    path = folder(modules=modules("Transformer", "Pooling", "Normalize"), **files)
    assert open_embedder(str(path)).dim == 32
