"""Loading a model by its setting: a hub id, a folder, a GGUF file, or the embedded default.

Whatever is wrong with what a user names is said in one sentence, not as a traceback of a library.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from chunkcache.cutting import cut_as_file_says
from chunkcache.engine.model import (
    geometry_of,
    loader_of,
    model_fingerprint,
    refuse_unsupported,
    text_config,
    use_long_angles,
    wrap_model,
)
from chunkcache.engine.sources import Source, first_line, in_words, merged, read_json, source_of
from chunkcache.engine.weights import no_loading_bar
from chunkcache.errors import ConfigError, ModelNotFound, UnsupportedModel

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
# tensors beside narrow weights; who reads these without them has other numbers
_SCALES = ("weight_scale", "weight_scale_2", "weight_scale_inv", "input_scale", "scales")
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "spiece*", "*.model", "*.tiktoken", "tekken.json")
_POINTER = b"version https://git-lfs"


def choose_device(wanted: str) -> torch.device:
    """The device named in the settings; `auto` prefers CUDA.

    Raises:
        ConfigError: there is no such device, or torch cannot use it.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    hint = "Hint: auto, cpu, cuda, or cuda:N"
    try:
        device = torch.device(wanted)
        if device.type == "cuda" and not torch.cuda.is_available():
            torch.cuda.init()  # type: ignore[no-untyped-call]  # says why
    except (RuntimeError, AssertionError) as error:  # a driver that is too old, say
        raise ConfigError(f"model.device: got {wanted!r}: {first_line(error)}. {hint}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"model.device: got {wanted!r}, must be a CPU or a CUDA device. {hint}")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        limit = f"{device.type}:{count}"
        raise ConfigError(f"model.device: got {wanted!r}, must be below {limit}. {hint}")
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto`: bf16 on GPUs and on processors with native bf16 products, else fp32."""
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cuda":  # of compute capability 8.0 and later; before, each is taken apart
        is_new = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if is_new else torch.float32
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
    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(kind)) for kind in _TOKENIZER_FILES):
        raise ModelNotFound(
            f"model.name: the tokenizer of {name!r} is missing. "
            "Hint: put tokenizer.json and tokenizer_config.json of its base model into the folder."
        )
    with in_words(name, "the tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
        cut_as_file_says(tokenizer, folder / "tokenizer.json")
    return tokenizer


def _open_weights(
    source: Source, name: str, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
) -> Any:
    method = _quantised_by(config, name)
    what = f"weights quantised by {method!r}" if method else "the weights"
    packages = _QUANTISED_BY.get(str(method))
    hint = f" Hint: pip install {packages}." if packages else ""
    is_local = Path(source.base).is_dir()
    if is_local:
        _refuse_pointers(Path(source.base), name)
        _refuse_two_sets(Path(source.base), name)
    bar = no_loading_bar() if is_local else nullcontext()  # a download's bar is worth seeing
    # quantised weights are laid out for the device they are loaded on
    placed = {"device_map": {"": device}} if method and device.type != "cpu" else {}
    with in_words(name, what, hint), bar:
        network, found = loader_of(config).from_pretrained(
            source.base, config=config, dtype=dtype, trust_remote_code=False,
            output_loading_info=True, ignore_mismatched_sizes=True, **placed,
        )  # fmt: skip
        _refuse_other_weights(found, f"model.name: {what} of {name!r}", method)
        if method:  # some unpack their weights in the first pass, and not in inference mode
            with torch.no_grad():
                network(torch.zeros((1, 1), dtype=torch.int64, device=network.device))
        network = network if network.device.type == device.type else _moved(network, name, device)
    if source.adapter is not None:
        with in_words(name, "the adapter"):
            network = merged(network, source.adapter)
    return network


def _moved(network: Any, name: str, device: torch.device) -> Any:
    try:
        return network.to(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"model.device: got {str(device)!r}, which has no room for the weights of {name!r} "
            f"({first_line(error)}). Hint: a smaller model, or cpu"
        ) from error


def _quantised_by(config: PreTrainedConfig, name: str) -> str | None:
    """How its weights are quantised, if they are.

    Raises:
        UnsupportedModel: in a way that is not named, or that transformers does not know: it would
            read such weights as if they were plain.
    """
    given: Any = getattr(config, "quantization_config", None)
    if not isinstance(given, dict) or not given:
        return None
    method = given.get("quant_method")
    hint = "Hint: the folder they were made of, or a .gguf file."
    if method is None and not (given.get("load_in_8bit") or given.get("load_in_4bit")):
        raise UnsupportedModel(
            f"model.name: the weights of {name!r} are quantised in a way that its configuration "
            f"does not name (no quant_method; MLX writes such folders). {hint}"
        )
    known = {
        m.removesuffix("_4bit").removesuffix("_8bit") for m in AUTO_QUANTIZATION_CONFIG_MAPPING
    }
    if method is not None and method not in known:
        raise UnsupportedModel(
            f"model.name: the weights of {name!r} are quantised by {method!r}, which transformers "
            f"does not read. {hint}"
        )
    return method


def _refuse_pointers(folder: Path, name: str) -> None:
    for file in sorted(folder.glob("*.safetensors")):
        if not file.is_file():
            continue
        with file.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise ModelNotFound(
                    f"model.name: {file.name} of {name!r} is a pointer of Git LFS, not weights. "
                    "Hint: git lfs pull in the folder."
                )


def _refuse_two_sets(folder: Path, name: str) -> None:
    """Raise if weights are there whole and in shards: transformers reads the whole ones, which it
    leaves lying when it saves another model in shards, and other engines read the shards.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not (whole.is_file() and index.is_file()):
        return
    named = read_json(index, name).get("weight_map")
    files = set(named.values()) - {whole.name} if isinstance(named, dict) else set()
    if shards := sorted(str(file) for file in files if (folder / str(file)).is_file()):
        raise UnsupportedModel(
            f"model.name: {name!r} has both {whole.name} and shards, {shards[0]} among them, which "
            "may be two models. Hint: take away the ones that are not meant."
        )


def _refuse_other_weights(found: dict[str, Any], whose: str, method: str | None) -> None:
    """Raise if the weights are not those that the configuration asks for: transformers makes up at
    random what is missing or has another size, and leaves scales of narrow weights alone.
    """
    hint = "Hint: a folder whose weights are those of its configuration."
    if others := sorted(found["mismatched_keys"]):
        tensor, theirs, ours = others[0]
        raise UnsupportedModel(
            f"{whose} have other sizes than its configuration says: {tensor!r} is "
            f"{list(theirs)}, must be {list(ours)}. {hint}"
        )
    if absent := sorted(found["missing_keys"]):
        raise UnsupportedModel(
            f"{whose} lack {len(absent)} tensors, {absent[0]!r} among them. {hint}"
        )
    scales = sorted(k for k in found["unexpected_keys"] if k.rpartition(".")[2] in _SCALES)
    if scales and not method:
        raise UnsupportedModel(
            f"{whose} are quantised, and its configuration does not say so: nothing reads "
            f"{scales[0]!r}. Hint: the folder they were made of, or a .gguf file."
        )


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
