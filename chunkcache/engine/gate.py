"""The gate: a model's KV is served from the cache only after reuse was shown to be right for it.

Two trials on random tokens, both through the real engine. A small random twin of the model
(`engine/reduced.py`) in fp32 must be exact over a prompt of thousands of tokens. The model itself,
as it is loaded and never cast, must answer a short prompt as transformers does on the same modules.
Each figure is the largest difference of next-token logits between two ways that must agree. In
fp32 the tolerance is 1e-3, tightened for models whose logits are small; in another type it is
twice what the type itself makes of transformers' answer. A twin that differs by more must agree as
closely with transformers on angles that are not rounded, and may differ besides by what rounding
makes of its answer (YaRN sharpens attention). One check must *fail* to agree: reuse
without repair in another context has to be visible, or the other figures would show nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import torch

import chunkcache_kernels as kernels
from chunkcache.durable import whole_file
from chunkcache.engine.reduced import (
    LONG_TOKENS,
    CannotReduce,
    is_length,
    reduced_model,
    single_layers,
    twin_layers,
)
from chunkcache.engine.trial import SHORT, Trial, long_lengths
from chunkcache.errors import ChunkCacheError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedConfig

    from chunkcache.engine.decoder import DecoderModel

log = structlog.get_logger(__name__)

GATE_VERSION = 4
TOLERANCE = 1e-3
_MUST_AGREE = {
    "reference": "our full prefill differs from transformers' own forward pass",
    "continuation": "decoding after our prefill differs from transformers' forward pass",
    "unrounded": "our full prefill differs from transformers' with angles that are not rounded",
    "repair_all": "repairing every row differs from full prefill",
    "exact_first_chunk": "a chunk placed right after the head differs from full prefill",
    "prefix_reuse": "reusing an exact prefix differs from full prefill",
    "moved": "chunks of one layer's KV, moved without repair, differ from full prefill",
    "turned_queries": "a query turned to a chunk does not see its keys as one that stands there",
    "rope_relative": "rotated keys do not depend on relative positions alone",
    "own_reference": "in its own number type our full prefill differs from transformers'",
    "own_repair_all": "in its own number type repairing every row differs from transformers'",
}
# without these nothing is served
_SERVING = {"reference", "continuation", "unrounded", "own_reference"}
_ROTATION = {"turned_queries": 1e-4, "rope_relative": 1e-3}  # limits that no logits stand behind
_STANDS_OUT = ("scal", "softcap", "multiplier", "sink", "partial_rotary", "rope_type")
_PACKAGES = ("torch", "triton", "transformers", "chunkcache")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found. `serves`: our full prefill is transformers'; `reuses`: so is reuse.

    `limits` are the largest differences allowed (of `unrepaired`: the smallest), `problems` say
    what disagreed and what the likely reason is, `notes` what could not be tried.
    """

    serves: bool
    reuses: bool
    figures: dict[str, float]
    limits: dict[str, float]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def verdict_facts(model: DecoderModel) -> dict[str, str]:
    """All that a verdict depends on: the model, the machine, and every version between them."""
    return {
        "fingerprint": model.fingerprint.hex(),
        "device": _device(model.device),
        "dtype": str(model.dtype),
        "gate": str(GATE_VERSION),
        "sources": _sources(),
        **{name: _version(name) for name in _PACKAGES},
    }


def stored_verdict(model: DecoderModel, cache: Path) -> Verdict | None:
    """The verdict of an earlier run under the same facts (`verdict_facts`), if there is one."""
    try:
        data = json.loads(_verdict_path(model, cache).read_text())["verdict"]
        return Verdict(
            **{**data, "problems": tuple(data["problems"]), "notes": tuple(data["notes"])}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_verdict(verdict: Verdict, model: DecoderModel, cache: Path) -> None:
    """Remember a verdict with its facts, whole or not at all.

    It only saves time: where the cache cannot be written, that is warned about.
    """
    path = _verdict_path(model, cache)
    kept = {"facts": verdict_facts(model), "verdict": asdict(verdict)}
    try:
        with whole_file(path) as file:
            file.write(json.dumps(kept, indent=1).encode())
    except StoreError as error:
        log.warning("verdict_not_remembered", reason=error.message, effect="it is found anew")


def _verdict_path(model: DecoderModel, cache: Path) -> Path:
    facts = json.dumps(verdict_facts(model), sort_keys=True)
    return cache / "gates" / f"{hashlib.sha256(facts.encode()).hexdigest()}.json"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    return f"{device.type}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _sources() -> str:
    """Digest of the engine's and the kernels' own code; some 60 files, milliseconds."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(kernels.__file__).parent):
        for file in sorted(f for f in folder.rglob("*") if f.suffix in {".py", ".c", ".h"}):
            digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def run_gate(model: DecoderModel) -> Verdict:
    """Run all checks; nothing in the model is changed or cast.

    Cost: a few prefills of thousands of tokens through a small twin, some seconds on one core, and
    half a dozen of about 150 tokens through the model. Memory: the twin's, some ten MB.
    """
    try:
        return _judged(model)
    except ChunkCacheError as error:
        problem = f"run: the layers do not run row by row ({error})"
    except Exception as error:  # whatever a model's own code raises; the model is not served then
        problem = f"run: the trial broke off ({type(error).__name__}: {error})"
    return Verdict(False, False, {}, {}, (problem, f"likely: {_reason(model.config)}"))


def _judged(model: DecoderModel) -> Verdict:
    with Trial(model, SHORT) as trial:
        own = trial.own_figures()
    own_tolerance = _own_tolerance(model, own)
    notes: list[str] = []
    words = ""
    try:
        figures, words = _twin_figures(model)
        tolerance = _exactly(figures["logits_std"])
    except CannotReduce as error:
        notes.append(
            f"only a prompt of {SHORT.total} tokens was tried, on the model itself: {error}"
        )
        with Trial(model, SHORT) as trial:
            figures = trial.figures()
        tolerance = own_tolerance
    limits = {name: tolerance for name in _MUST_AGREE if name in figures} | _ROTATION
    if "angle_noise" in figures:
        widened = tolerance + figures["angle_noise"]
        limits |= {"reference": widened, "continuation": widened}
    if notes:  # the model itself, whose keys are rounded where they lie
        limits["turned_queries"] = max(1e-4, 8 * torch.finfo(model.dtype).eps)
    limits |= {"unrepaired": 10 * tolerance if not notes else tolerance}
    limits |= {"own_reference": own_tolerance, "own_repair_all": own_tolerance}
    figures |= own
    bad = [n for n in _MUST_AGREE if n in limits and not figures[n] <= limits[n] < math.inf]
    problems = [f"{n}: {_MUST_AGREE[n]} ({figures[n]:.2e} > {limits[n]:.0e})" for n in bad]
    if not figures["unrepaired"] > limits["unrepaired"]:
        problems.append("unrepaired: reuse without repair changes nothing, the gate is blind")
    if bad:
        problems.append(f"likely: {_likely(model, bad, words)}")
    return Verdict(
        not _SERVING & set(bad), not problems, figures, limits, tuple(problems), tuple(notes)
    )


def _twin_figures(model: DecoderModel) -> tuple[dict[str, float], str]:
    """The figures of the twin, and up to where it agrees with transformers if it does not."""
    lengths = long_lengths(min(LONG_TOKENS, model.context_tokens - 32))
    words = ""
    with Trial(reduced_model(model, twin_layers(model)), lengths) as trial:
        figures = trial.figures()
        tolerance = _exactly(figures["logits_std"])
        if not max(figures["reference"], figures["continuation"]) <= tolerance:
            figures |= trial.unrounded()
            if not figures["unrounded"] <= tolerance:
                words = trial.agreement(tolerance)
    moved = []
    for layers in single_layers(model):
        with Trial(reduced_model(model, layers), lengths) as trial:
            moved.append(trial.moved())
    return {**figures, "moved": max(moved)}, words


def _exactly(logits_std: float) -> float:
    return TOLERANCE * min(1.0, logits_std)


def _own_tolerance(model: DecoderModel, own: dict[str, float]) -> float:
    """As exact as ever in fp32; else twice what the type makes, at least the last digit."""
    if model.dtype is torch.float32:
        return _exactly(own["own_logits_std"])
    last_digit = torch.finfo(model.dtype).eps * own["own_logits_max"]
    return 2 * max(own["own_noise"], last_digit)


def _likely(model: DecoderModel, bad: list[str], words: str) -> str:
    """What the pattern of disagreements and the configuration say about the reason."""
    if set(bad) <= set(_ROTATION):
        return "the rotation of keys, not the model's layers"
    if all(name.startswith("own_") for name in bad):
        return (
            "a small twin with the same layers agrees in fp32, so it is this model's number type "
            f"({model.dtype}), its weights, or how it was loaded"
        )
    return f"{words}; {_reason(model.config)}" if words else _reason(model.config)


def _reason(config: PreTrainedConfig) -> str:
    found = _standing_out(vars(config).items())
    rope: Any = getattr(config, "rope_parameters", None) or {}
    found += [fact for fact in _standing_out(rope.items()) if fact not in found]
    if found:
        return f"the configuration stands out by {', '.join(found)}"
    return (
        f"nothing in the configuration stands out; how {config.model_type!r} attends or places "
        "tokens is not what chunkcache does"
    )


def _standing_out(fields: Iterable[tuple[str, Any]]) -> list[str]:
    return [
        f"{name}={value}"
        for name, value in fields
        if is_length(name, value)
        or (
            any(part in name for part in _STANDS_OUT)
            and isinstance(value, bool | int | float | str)
            and value not in (False, 1, "default")
        )
    ]
