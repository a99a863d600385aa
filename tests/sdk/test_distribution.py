"""`chunkcache-client` as a distribution: alone, without torch, and beside `chunkcache`.

Nothing is downloaded: a fresh environment gets links to the installed packages that the client's
requirements lead to, and no others.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
CLIENT = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())
WHOLE = tomllib.loads((ROOT / "pyproject.toml").read_text())

ALONE = """
import importlib.util, json, sys
from chunkcache_client import AsyncClient, Client, Text, errors
with Client(sys.argv[1]) as client:
    client.put_texts([Text("7", "the cat sat", attributes={"page": 3})])
    found = [(hit.text_id, hit.attributes) for hit in client.search("cat")]
    answer = client.ask("where is the cat")
    *_, last = client.stream("where is the cat")
    try:
        client.ask("hello", model="none")
    except errors.NotFound as error:
        refused = error.code
absent = [name for name in ("torch", "numpy", "chunkcache") if importlib.util.find_spec(name)]
print(json.dumps([found, answer.report.rung, last.text == answer.text, refused, absent]))
"""
IMPORTS = {
    "chunkcache": "import chunkcache; chunkcache.Client('http://x'); chunkcache.AsyncClient",
    "chunkcache-client": "import chunkcache_client; chunkcache_client.Client('http://x')",
}


class Environment:
    """A virtual environment that pip installs into from outside."""

    def __init__(self, home: Path) -> None:
        venv.create(home, with_pip=False)
        self.python = str(home / "bin" / "python")
        (self.packages,) = home.glob("lib/python*/site-packages")

    def link(self, found: Distribution) -> None:
        for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            (self.packages / name).symlink_to(found.locate_file(name))  # type: ignore[arg-type]

    def pip(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check",
             "--python", self.python, *arguments],
            check=True, capture_output=True, text=True,
        )  # fmt: skip

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", "--no-compile", str(wheel))

    def run(self, code: str, *arguments: str) -> str:
        command = [self.python, "-I", "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def required_by(requirements: list[str]) -> dict[str, Distribution]:
    """The installed distributions that these requirements lead to, by name."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        found[name] = distribution(name)
        waiting += [Requirement(text) for text in found[name].requires or []]
    return found


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both, built as `pip install` would."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("chunkcache", "kernels", "indexes", "client"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    made = folder / "dist"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps",
         "--disable-pip-version-check", "-w", str(made), str(folder), str(folder / "client")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    by_name = {path.name.split("-")[0].replace("_", "-"): path for path in made.glob("*.whl")}
    assert set(by_name) == set(IMPORTS)
    return by_name


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_both_distributions_have_one_version_and_the_same_requirements() -> None:
    assert CLIENT["project"]["version"] == WHOLE["project"]["version"]
    assert set(CLIENT["project"]["dependencies"]) <= set(WHOLE["project"]["dependencies"])


def test_no_file_is_in_both_wheels(wheels: dict[str, Path]) -> None:
    ours, whole = contents(wheels["chunkcache-client"]), contents(wheels["chunkcache"])
    assert {name.split("/")[0] for name in ours} == {"chunkcache_client"}
    assert not ours & whole
    assert "chunkcache_client/py.typed" in ours and "chunkcache_client/sdk/texts.py" in ours
    sources = {name.replace("chunkcache_client/", "chunkcache/", 1) for name in ours}
    assert sources - whole == set()  # (both have an __init__.py and py.typed of their own)


def test_the_client_is_built_from_its_source_distribution_too(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    tree = wheels["chunkcache-client"].parents[1] / "client"
    build = "import sys; from hatchling.build import build_sdist, build_wheel as wheel; "
    run = [sys.executable, "-c"]
    code = f"{build}build_sdist(sys.argv[1])"
    subprocess.run([*run, code, str(tmp_path)], cwd=tree, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    (unpacked,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    code = f"{build}wheel(sys.argv[1])"
    subprocess.run([*run, code, str(tmp_path)], cwd=unpacked, check=True, capture_output=True)
    (again,) = tmp_path.glob("*.whl")
    assert contents(again) == contents(wheels["chunkcache-client"])


def test_alone_it_talks_to_a_server_and_has_no_torch(
    wheels: dict[str, Path], served: Any, tmp_path: Path
) -> None:
    fresh = Environment(tmp_path / "fresh")
    for found in required_by(CLIENT["project"]["dependencies"]).values():
        fresh.link(found)
    fresh.install(wheels["chunkcache-client"])
    fresh.pip("check")
    found, rung, same, refused, absent = json.loads(fresh.run(ALONE, served.url))
    assert found == [["7", {"page": 3}]]
    assert (rung, same, refused, absent) == ("repaired", True, "model_not_found", [])


def test_side_by_side_neither_breaks_the_other(wheels: dict[str, Path], tmp_path: Path) -> None:
    """Installed in both orders, and whichever of them is uninstalled."""
    both = Environment(tmp_path / "both")
    for found in required_by(CLIENT["project"]["dependencies"]).values():
        both.link(found)
    first, second = "chunkcache-client", "chunkcache"
    both.install(wheels[first])
    for one, other in ((second, first), (first, second)):
        both.install(wheels[one])
        both.run(f"{IMPORTS[one]}\n{IMPORTS[other]}")
        both.pip("uninstall", "-y", other)
        both.run(IMPORTS[one])
        kept = [path for path in contents(wheels[one]) if (both.packages / path).is_file()]
        left = [path for path in contents(wheels[other]) if (both.packages / path).exists()]
        assert (len(kept), left) == (len(contents(wheels[one])), [])
