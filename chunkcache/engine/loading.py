"""Loading a model by its setting: a hub id, a folder, a GGUF file, or the embedded default.

Whatever is wrong with what a user names is said in one sentence, not as a traceback of a library.
"""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from chunkcache.engine.model import (
    geometry_of,
    model_fingerprint,
    refuse_unsupported,
    text_config,
    wrap_model,
)
from chunkcache.engine.weights import no_loading_bar, resolve_model, weights_digest
from chunkcache.errors import ChunkCacheError, ModelNotFound, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from chunkcache.config import ModelSettings, Settings
    from chunkcache.engine.decoder import DecoderModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHOWN_CHARACTERS = 240  # of what a library says


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


@contextmanager
def _in_words(name: str, what: str) -> Iterator[None]:
    """Whatever transformers raises while it reads `what` of the model `name`, as one sentence.

    Raises:
        ModelNotFound: a file is missing or cannot be read.
        UnsupportedModel: a library is missing, or what the file says is not understood.
    """
    try:
        yield
    except ChunkCacheError:
        raise
    except OSError as error:
        raise ModelNotFound(
            f"model.name: cannot read {what} of {name!r}: {_first_line(error)} "
            "Hint: give a hub id that can be reached, a local folder or a .gguf file."
        ) from error
    except ImportError as error:
        raise UnsupportedModel(
            f"model.name: {what} of {name!r} needs a library that is not installed: "
            f"{_first_line(error)}"
        ) from error
    except Exception as error:  # a library's own code, on files it was not made for
        raise UnsupportedModel(
            f"model.name: {what} of {name!r} cannot be read: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:_SHOWN_CHARACTERS] if lines else type(error).__name__


def _look_over(folder: Path, name: str) -> None:
    """Refuse, before any library reads it, a folder that is not a model by itself."""
    if not folder.is_dir():
        return
    has_config = (folder / "config.json").is_file()
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and not has_config:
        base = _read_json(adapter, name).get("base_model_name_or_path") or "its base model"
        raise UnsupportedModel(
            f"model.name: {name!r} is a PEFT adapter over {base!r}, not a model. Hint: merge it "
            "once (peft's merge_and_unload, then save_pretrained) and give that folder."
        )
    if not has_config:
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"give the file {ggufs[0]!r} in it" if ggufs else "as `save_pretrained` writes it"
        raise ModelNotFound(f"model.name: no config.json in {name!r}. Hint: {hint}.")


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"model.name: {path.name} of {name!r} is no JSON: {_first_line(error)}"
        ) from error
    return found if isinstance(found, dict) else {}


def _open_config(source: str, name: str) -> PreTrainedConfig:
    """The configuration; code that lies in a model's own folder is never run."""
    _look_over(Path(source), name)
    file = Path(source) / "config.json"
    with _in_words(name, "the configuration"):
        if file.is_file():
            given = _read_json(file, name)
            from transformers import CONFIG_MAPPING

            if "auto_map" in given and given.get("model_type") not in CONFIG_MAPPING:
                raise UnsupportedModel(
                    f"model.name: {name!r} brings its own code "
                    f"(model_type {given.get('model_type')!r}), which chunkcache does not run. "
                    "Hint: a model of a type that transformers knows."
                )
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return config


def _open_tokenizer(source: str, name: str) -> PreTrainedTokenizerBase:
    with _in_words(name, "the tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
    return tokenizer


def _open_weights(source: str, name: str, config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    quantised: Any = getattr(config, "quantization_config", None) or {}
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    what = f"weights quantised by {method!r}" if method else "the weights"
    is_local = Path(source).is_dir()
    bar = no_loading_bar() if is_local else nullcontext()  # a download's bar is worth seeing
    with _in_words(name, what), bar:
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False)


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
    source = resolve_model(name, settings.cache)
    config = _open_config(source, name)
    refuse_unsupported(text_config(config))
    tokenizer = _open_tokenizer(source, name)
    device = choose_device(settings.model.device)
    dtype = choose_dtype(settings.model.dtype, device)
    hf = _open_weights(source, name, config, dtype)
    with _in_words(name, "the weights"):
        hf = hf.to(device)
        folder = Path(source) if Path(source).is_dir() else _hub_folder(source)
    digest = _digest_as_run(folder, settings)
    geometry = geometry_of(text_config(config), dtype)
    fingerprint = model_fingerprint(config, tokenizer, digest, geometry)
    return wrap_model(
        hf, tokenizer,
        fingerprint=fingerprint, name=model_ids(settings.model)[0],
        int8=settings.model.weights == "int8", kernel_cache=settings.cache,
    )  # fmt: skip


def _digest_as_run(folder: Path, settings: Settings) -> str:
    """Of the weights, and of what is made of them before they run."""
    digest = weights_digest(folder, settings.cache)
    return digest if settings.model.weights == "auto" else f"{digest} {settings.model.weights}"


def load_fingerprint(settings: Settings) -> bytes:
    """The fingerprint `load_model` would give, without loading the weights (one `stat` per file).

    Raises:
        ModelNotFound: nothing at that id or path.
    """
    name = settings.model.name
    source = resolve_model(name, settings.cache)
    dtype = choose_dtype(settings.model.dtype, choose_device(settings.model.device))
    config, tokenizer = _open_config(source, name), _open_tokenizer(source, name)
    with _in_words(name, "the weights"):
        folder = Path(source) if Path(source).is_dir() else _hub_folder(source)
    digest = _digest_as_run(folder, settings)
    return model_fingerprint(config, tokenizer, digest, geometry_of(text_config(config), dtype))


def _hub_folder(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, local_files_only=True))


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The model's tokenizer alone, for splitting: no weights are read.

    Raises:
        ModelNotFound: nothing at that id or path.
    """
    source = resolve_model(settings.model.name, settings.cache)
    _look_over(Path(source), settings.model.name)
    return _open_tokenizer(source, settings.model.name)


def model_ids(settings: ModelSettings) -> tuple[str, ...]:
    """The model's names for clients, its own first: the aliases, or the last part of its id."""
    if settings.alias:
        return tuple(settings.alias.split(","))
    return (settings.name.removeprefix("embedded:").rstrip("/").rpartition("/")[2],)
