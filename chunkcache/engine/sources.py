"""Where the parts of a model lie: a base model, and perhaps an adapter over it.

An adapter as PEFT writes it is a folder without a configuration of a model; the base it names is
loaded, and the adapter is merged into it, before anything else is done.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chunkcache.engine.weights import resolve_model, weights_digest
from chunkcache.errors import ChunkCacheError, ModelNotFound, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN_CHARACTERS = 240  # of what a library says
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Source:
    """`base`: folder or hub id of the configuration and the weights; `tokenizer` likewise;
    `adapter`: what is merged into the weights.
    """

    base: str
    tokenizer: str
    adapter: Path | None = None

    def digest(self, cache: Path) -> str:
        """Of all weights.

        Raises:
            ModelNotFound: there are none.
        """
        folder = Path(self.base) if Path(self.base).is_dir() else _hub_folder(self.base)
        digest = weights_digest(folder, cache)
        if self.adapter is None:
            return digest
        told = hashlib.sha256((self.adapter / _ADAPTER).read_bytes()).hexdigest()
        return f"{digest} {weights_digest(self.adapter, cache)} {told}"


def source_of(name: str, cache: Path) -> Source:
    """The parts of the model `name`, as the setting gives it.

    Raises:
        ModelNotFound: nothing is there, or it is no model.
        UnsupportedModel: an adapter, and what merges adapters is not installed.
    """
    source = resolve_model(name, cache)
    folder = Path(source)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return Source(source, source)
    if not (folder / _ADAPTER).is_file():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"give the file {ggufs[0]!r} in it" if ggufs else "as `save_pretrained` writes it"
        raise ModelNotFound(f"model.name: no config.json in {name!r}. Hint: {hint}.")
    base = read_json(folder / _ADAPTER, name).get("base_model_name_or_path")
    about = f"model.name: {name!r} is a PEFT adapter over {base or 'a base model'!r}"
    if find_spec("peft") is None:
        raise UnsupportedModel(f"{about}, and peft is not installed. Hint: pip install peft.")
    if not base:
        raise ModelNotFound(
            f"{about} that it does not name. Hint: base_model_name_or_path in {_ADAPTER}."
        )
    try:
        found = resolve_model(base, cache)
    except ModelNotFound as error:
        raise ModelNotFound(f"{about}, which is not there: {error.message}") from error
    if not any(folder.glob("adapter_model.*")):
        raise ModelNotFound(
            f"{about}, and its weights are missing. Hint: adapter_model.safetensors beside it."
        )
    has_own = any(folder.glob("tokenizer*"))
    return Source(found, str(folder) if has_own else found, folder)


def merged(network: Any, adapter: Path) -> Any:
    """A network with an adapter's weights merged into its own.

    Raises:
        UnsupportedModel: not every tensor of the one is for the other; peft goes on without those.
    """
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(network, str(adapter))
    # read once more, by what says how it went
    found = adapted.load_adapter(str(adapter), adapted.active_adapter)
    about = f"model.name: the adapter {adapter.name!r}"
    hint = "Hint: the base model that it was trained on, and the files as peft saves them."
    if found.unexpected_keys:
        count, first = len(found.unexpected_keys), min(found.unexpected_keys)
        raise UnsupportedModel(
            f"{about} does not fit: its base, as its configuration changes it, has no place for "
            f"{count} of its tensors, {first!r} among them. {hint}"
        )
    if found.missing_keys:
        count, first = len(found.missing_keys), min(found.missing_keys)
        raise UnsupportedModel(
            f"{about} lacks {count} tensors that its configuration asks for, {first!r} among them. "
            f"{hint}"
        )
    return adapted.merge_and_unload()


def _hub_folder(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, local_files_only=True))


def read_json(path: Path, name: str) -> dict[str, Any]:
    """An object of a file of the model `name`.

    Raises:
        ModelNotFound: the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"model.name: {path.name} of {name!r} is no JSON: {first_line(error)}"
        ) from error
    return found if isinstance(found, dict) else {}


@contextmanager
def in_words(name: str, what: str, hint: str = "") -> Iterator[None]:
    """Whatever a library raises while it reads `what` of the model `name`, as one sentence.

    Raises:
        ModelNotFound: a file is missing or cannot be read.
        UnsupportedModel: a library is missing (`hint` says how it comes), or what the file says is
            not understood.
    """
    try:
        yield
    except ChunkCacheError:
        raise
    except OSError as error:
        raise ModelNotFound(
            f"model.name: cannot read {what} of {name!r}: {first_line(error).rstrip('.')}. "
            "Hint: give a hub id that can be reached, a local folder or a .gguf file."
        ) from error
    except ImportError as error:
        raise UnsupportedModel(
            f"model.name: {what} of {name!r} needs a library that is not installed: "
            f"{first_line(error).rstrip('.')}.{hint}"
        ) from error
    except Exception as error:  # a library's own code, on files it was not made for
        raise UnsupportedModel(
            f"model.name: {what} of {name!r} cannot be read: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says first, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0][:_SHOWN_CHARACTERS] if lines else type(error).__name__
    return f"what reads it does not know {said}" if isinstance(error, KeyError) else said
