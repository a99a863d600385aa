"""What a sentence-transformers folder says: from tokens to a vector, in which steps.

Read are the files of all versions up to 6: `modules.json`, the configurations of its modules,
`config_sentence_transformers.json`. Whatever would change vectors and is not done here is refused
by its name: vectors that are quietly wrong would only be seen in what is found.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors.torch import load_file

from chunkcache.errors import ModelNotFound, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

# until 5.4 a flag each; in the order in which their vectors are put side by side
_FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "GELU": torch.nn.functional.gelu,
    "SiLU": torch.nn.functional.silu,
    "Sigmoid": torch.sigmoid,
}
_AFTER_POOLING = ("Dense", "Normalize", "Dropout")  # the last does nothing outside training
# settings of the first module that change what is read or what comes out, where they are set
_CHANGES = ("query_expansion", "query_length", "document_length", "processing_kwargs")


@dataclass(frozen=True, slots=True)
class Dense:
    """A layer behind pooling: `activation(x · weight + bias)`."""

    weight: torch.Tensor  # [out, in]
    bias: torch.Tensor | None
    activation: str

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _ACTIVATIONS[self.activation](torch.nn.functional.linear(x, self.weight, self.bias))


@dataclass(frozen=True, slots=True)
class EmbedderFolder:
    """The description of an embedder."""

    transformer: Path  # where configuration, tokenizer and weights are
    pooling: tuple[PoolingMode, ...] = ("mean",)
    include_prompt: bool = True  # whether a prompt's own tokens are pooled
    lower_case: bool = False
    max_seq_length: int | None = None
    steps: tuple[Dense | Literal["Normalize"], ...] = ()  # behind pooling
    weight_folders: tuple[Path, ...] = ()
    stated: Mapping[str, Any] = field(default_factory=dict)  # config_sentence_transformers.json

    def pooled_dim(self, width: int) -> int:
        """Numbers of a pooled vector, of hidden states `width` wide."""
        return width * len(self.pooling)


def read_folder(folder: Path) -> EmbedderFolder:
    """The description of the embedder in `folder`; without one, the mean of all tokens.

    Raises:
        UnsupportedModel: something in it changes vectors and is not done here; named.
        ModelNotFound: a file that it names is missing or no JSON.
    """
    modules = _read_json(folder / "modules.json", []) or []
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    paths = [folder / str(module.get("path", "")) for module in modules]
    if not modules:
        kinds, paths = ["Transformer", "Pooling"], [folder, folder / "1_Pooling"]
    unknown = [k for k in kinds if k not in ("Transformer", "Pooling", *_AFTER_POOLING)]
    if unknown or kinds[:2] != ["Transformer", "Pooling"] or kinds.count("Pooling") > 1:
        what = ", ".join(unknown) or " → ".join(kinds)
        raise _unsupported(f"a model with {what} layers", "one of Transformer, Pooling, Dense")
    words = _transformer(paths[0])
    pooling = _read_json(paths[1] / "config.json", {})
    steps: list[Dense | Literal["Normalize"]] = []
    weight_folders = [paths[0]]
    for kind, path in zip(kinds[2:], paths[2:], strict=True):
        if kind == "Dense":
            steps.append(_dense(path))
            weight_folders.append(path)
        elif kind == "Normalize":
            _check_names(_read_json(path / "config.json", {}))
            steps.append("Normalize")
    stated = _read_json(folder / "config_sentence_transformers.json", {})
    _check_similarity(stated, steps)
    modes, include_prompt = _modes(pooling), bool(pooling.get("include_prompt", True))
    if "cls" in modes and not include_prompt:  # versions differ in which token that is
        raise _unsupported("pooling_mode 'cls' with include_prompt = false", "one of them")
    return EmbedderFolder(
        transformer=paths[0],
        pooling=modes,
        include_prompt=include_prompt,
        lower_case=bool(words.get("do_lower_case", False)),
        max_seq_length=words.get("max_seq_length"),
        steps=tuple(steps),
        weight_folders=tuple(weight_folders),
        stated=stated,
    )


def _transformer(path: Path) -> Mapping[str, Any]:
    """The first module's settings."""
    for name in _TRANSFORMER_FILES:
        if (path / name).is_file():
            stated: dict[str, Any] = _read_json(path / name, {})
            break
    else:
        return {}
    task = stated.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise _unsupported(f"transformer_task {task!r}", "a model for feature-extraction")
    output = stated.get("module_output_name") or "token_embeddings"
    if output != "token_embeddings":
        raise _unsupported(f"module_output_name {output!r}", "a model with token embeddings")
    for name in _CHANGES:
        if stated.get(name):
            raise _unsupported(f"{name} = {stated[name]!r}", "a model without it")
    tokenizer = stated.get("processor_kwargs") or stated.get("tokenizer_args") or {}
    if tokenizer.get("model_max_length"):
        stated.setdefault("max_seq_length", tokenizer["model_max_length"])
    return stated


def _modes(pooling: Mapping[str, Any]) -> tuple[PoolingMode, ...]:
    """How tokens become one vector; several ways are put side by side."""
    given = pooling.get("pooling_mode")
    if given is None:
        modes: list[Any] = [mode for flag, mode in _FLAGS.items() if pooling.get(flag)] or ["mean"]
    else:
        modes = [given] if isinstance(given, str) else list(given)
    unknown = [mode for mode in modes if mode not in get_args(PoolingMode)]
    flags = [
        name for name, on in pooling.items()
        if name.startswith("pooling_mode_") and name not in _FLAGS and on is True
    ]  # fmt: skip
    if unknown or flags:
        named = ", ".join(map(str, [*unknown, *flags]))
        raise _unsupported(f"pooling by {named}", f"one of {', '.join(get_args(PoolingMode))}")
    return tuple(modes)


def _dense(path: Path) -> Dense:
    stated = _read_json(path / "config.json", None)
    if stated is None:
        raise ModelNotFound(f"retrieval.embedder: {path / 'config.json'} is missing.")
    _check_names(stated)
    if stated.get("use_residual"):
        raise _unsupported("a Dense layer with use_residual", "a model without it")
    activation = str(stated.get("activation_function") or "Tanh").rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise _unsupported(f"activation_function {activation!r}", ", ".join(_ACTIVATIONS))
    if (path / "model.safetensors").is_file():
        weights = load_file(path / "model.safetensors")
    elif (path / "pytorch_model.bin").is_file():
        weights = torch.load(path / "pytorch_model.bin", map_location="cpu", weights_only=True)
    else:
        raise ModelNotFound(f"retrieval.embedder: no model.safetensors in {path}.")
    bias = weights.get("linear.bias")
    return Dense(
        weights["linear.weight"].float(), bias.float() if bias is not None else None, activation
    )


def _check_names(stated: Mapping[str, Any]) -> None:
    """A layer behind pooling works on the pooled vector."""
    for name in ("module_input_name", "module_output_name"):
        if (stated.get(name) or "sentence_embedding") != "sentence_embedding":
            raise _unsupported(f"{name} = {stated[name]!r}", "a model without it")


def _check_similarity(stated: Mapping[str, Any], steps: list[Dense | Literal["Normalize"]]) -> None:
    """Vectors are compared by their angle; where all have unit length, products say the same."""
    similarity = stated.get("similarity_fn_name") or "cosine"
    unit = bool(steps) and steps[-1] == "Normalize"
    if similarity != "cosine" and not (unit and similarity in ("dot", "euclidean")):
        raise _unsupported(f"similarity_fn_name {similarity!r}", "a model compared by cosine")


def _read_json(path: Path, missing: Any) -> Any:
    if not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelNotFound(f"retrieval.embedder: {path} is no JSON: {error}.") from error


def _unsupported(what: str, instead: str) -> UnsupportedModel:
    return UnsupportedModel(f"retrieval.embedder: {what} is not supported. Hint: use {instead}.")
