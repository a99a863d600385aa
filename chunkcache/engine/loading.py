"""Loading a model by its setting: a hub id, a folder, a GGUF file, or the embedded default.

Whatever is wrong with what a user names is said in one sentence, not as a traceback of a library.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer

from chunkcache.engine.model import (
    geometry_of,
    loader_of,
    model_fingerprint,
    refuse_unsupported,
    text_config,
    use_long_angles,
    wrap_model,
)
from chunkcache.engine.sources import Source, in_words, merged, read_json, source_of
from chunkcache.engine.weights import no_loading_bar
from chunkcache.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from chunkcache.config import ModelSettings, Settings
    from chunkcache.engine.decoder import DecoderModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_QUANTISED_BY = {  # quant_method of a configuration: what pip installs to read such weights
    "aqlm": "aqlm[cpu]", "auto-round": "auto-round", "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed-tensors", "eetq": "kernels",
    "fbgemm_fp8": "fbgemm-gpu", "fouroversix": "fouroversix", "fp_quant": "fp_quant",
    "gptq": "optimum gptqmodel", "higgs": "flute-kernel fast_hadamard_transform", "hqq": "hqq",
    "metal": "kernels", "mxfp4": "kernels", "nvfp4": "kernels", "quanto": "optimum-quanto",
    "quark": "amd-quark", "sinq": "sinq", "spqr": "spqr_quant", "torchao": "torchao",
    "vptq": "vptq",
}  # fmt: skip


def choose_device(wanted: str) -> torch.device:
    """The device named in the settings; `auto` prefers CUDA."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto`: bf16 on CUDA and on processors with native bf16 products, else fp32."""
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def _open_config(source: str, settings: ModelSettings) -> PreTrainedConfig:
    """The configuration; code that lies in a model's own folder is never run."""
    name = settings.name
    file = Path(source) / "config.json"
    with in_words(name, "the configuration"):
        if file.is_file():
            given = read_json(file, name)
            from transformers import CONFIG_MAPPING

            if "auto_map" in given and given.get("model_type") not in CONFIG_MAPPING:
                raise UnsupportedModel(
                    f"model.name: {name!r} brings its own code "
                    f"(model_type {given.get('model_type')!r}), which chunkcache does not run. "
                    "Hint: a model of a type that transformers knows."
                )
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if settings.longrope == "long":
        use_long_angles(text_config(config))
    return config


def _open_tokenizer(source: str, name: str) -> PreTrainedTokenizerBase:
    with in_words(name, "the tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
    return tokenizer


def _open_weights(
    source: Source, name: str, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
) -> Any:
    quantised: Any = getattr(config, "quantization_config", None) or {}
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    what = f"weights quantised by {method!r}" if method else "the weights"
    packages = _QUANTISED_BY.get(str(method))
    hint = f" Hint: pip install {packages}." if packages else ""
    is_local = Path(source.base).is_dir()
    bar = no_loading_bar() if is_local else nullcontext()  # a download's bar is worth seeing
    # quantised weights are laid out for the device they are loaded on
    placed = {"device_map": {"": device}} if method and device.type != "cpu" else {}
    with in_words(name, what, hint), bar:
        network, found = loader_of(config).from_pretrained(
            source.base, config=config, dtype=dtype, trust_remote_code=False,
            output_loading_info=True, **placed,
        )  # fmt: skip
        if absent := sorted(found["missing_keys"]):  # transformers makes them up at random
            raise UnsupportedModel(
                f"model.name: {what} of {name!r} lack {len(absent)} tensors, {absent[0]!r} among "
                "them. Hint: a folder whose weights are those of its configuration."
            )
        if method:  # some unpack their weights in the first pass, and not in inference mode
            with torch.no_grad():
                network(torch.zeros((1, 1), dtype=torch.int64, device=network.device))
        network = network if network.device.type == device.type else network.to(device)
    if source.adapter is not None:
        with in_words(name, "the adapter"):
            network = merged(network, source.adapter)
    return network


def load_model(settings: Settings) -> DecoderModel:
    """Load the model named in the settings and make it ready to run rows.

    `model.num_threads`, when given, is set for the whole process: torch knows no other way.

    Raises:
        ModelNotFound: nothing at that id or path.
        UnsupportedModel: an architecture that is refused (see `refuse_unsupported`), or files that
            cannot be read.
    """
    if settings.model.num_threads:
        torch.set_num_threads(settings.model.num_threads)
    name = settings.model.name
    source = source_of(name, settings.cache)
    config = _open_config(source.base, settings.model)
    refuse_unsupported(text_config(config))
    tokenizer = _open_tokenizer(source.tokenizer, name)
    device = choose_device(settings.model.device)
    dtype = choose_dtype(settings.model.dtype, device)
    hf = _open_weights(source, name, config, dtype, device)
    digest = _digest_as_run(source, settings)
    geometry = geometry_of(text_config(config), dtype)
    fingerprint = model_fingerprint(config, tokenizer, digest, geometry)
    return wrap_model(
        hf, tokenizer,
        fingerprint=fingerprint, name=model_ids(settings.model)[0],
        int8=settings.model.weights == "int8", kernel_cache=settings.cache,
    )  # fmt: skip


def _digest_as_run(source: Source, settings: Settings) -> str:
    """Of the weights, and of what is made of them before they run."""
    with in_words(settings.model.name, "the weights"):
        digest = source.digest(settings.cache)
    return digest if settings.model.weights == "auto" else f"{digest} {settings.model.weights}"


def load_fingerprint(settings: Settings) -> bytes:
    """The fingerprint `load_model` would give, without loading the weights (one `stat` per file).

    Raises:
        ModelNotFound: nothing at that id or path.
    """
    name = settings.model.name
    source = source_of(name, settings.cache)
    dtype = choose_dtype(settings.model.dtype, choose_device(settings.model.device))
    config = _open_config(source.base, settings.model)
    tokenizer = _open_tokenizer(source.tokenizer, name)
    digest = _digest_as_run(source, settings)
    return model_fingerprint(config, tokenizer, digest, geometry_of(text_config(config), dtype))


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The model's tokenizer alone, for splitting: no weights are read.

    Raises:
        ModelNotFound: nothing at that id or path.
    """
    name = settings.model.name
    return _open_tokenizer(source_of(name, settings.cache).tokenizer, name)


def model_ids(settings: ModelSettings) -> tuple[str, ...]:
    """The model's names for clients, its own first: the aliases, or the last part of its id."""
    if settings.alias:
        return tuple(settings.alias.split(","))
    return (settings.name.removeprefix("embedded:").rstrip("/").rpartition("/")[2],)
