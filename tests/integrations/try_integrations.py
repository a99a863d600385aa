"""Tries the integrations, each in an environment of its own, and writes down what came of it.

    python tests/integrations/try_integrations.py URL FOLDER [NAME ...]

URL is that of a running server (`http://127.0.0.1:8321`), FOLDER is where environments are made and
kept. Without names all are tried. Writes docs/reference/integrations.md; what is known of
integrations that were not tried this time stays in it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from roster import INTEGRATIONS, Integration

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "integrations.md"
INSTALL_TIMEOUT_S = 900
TRY_TIMEOUT_S = 1200
HEAD = """# Integrations

<!-- made by tests/integrations/try_integrations.py -->

Each in an environment of its own, against `chunkcache serve` with the embedded model. Suites that
are the framework's own stand under its name; `ours` are tests of what those do not ask.

| integration | over | suite | passed | expected to fail | skipped | failed |
|---|---|---|---|---|---|---|
"""
ROW = re.compile(r"^\| (?P<folder>[^|]+) \| [^|]+ \|.* \|$", re.MULTILINE)


def prepared(integration: Integration, folder: Path) -> str:
    """The Python of the integration's environment, with its wheel and the client's as they are now.

    Raises:
        CalledProcessError: something could not be built or installed.
    """
    home = folder / integration.folder
    python, done = home / "bin" / "python", home / "installed.json"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if not done.exists() or json.loads(done.read_text()) != list(integration.packages):
        venv.create(home, with_pip=True, clear=True)
        install = [*pip, "install", *integration.packages]
        subprocess.run(install, check=True, timeout=INSTALL_TIMEOUT_S)
        done.write_text(json.dumps(integration.packages))
    sources = [str(ROOT / "client"), str(ROOT / "integrations" / integration.folder)]
    wheels = folder / "wheels" / integration.folder
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
             "--no-deps", "--no-build-isolation", "-w", str(wheels), *sources]  # fmt: skip
    subprocess.run(build, check=True, timeout=INSTALL_TIMEOUT_S)
    made = [str(path) for path in wheels.glob("*.whl")]
    reinstall = [*pip, "install", "--no-deps", "--no-index", "--force-reinstall", *made]
    subprocess.run(reinstall, check=True, timeout=INSTALL_TIMEOUT_S)
    subprocess.run([*pip, "check"], check=True, timeout=INSTALL_TIMEOUT_S)
    return str(python)


def tried(integration: Integration, folder: Path, url: str) -> list[str]:
    """Rows of the page: a suite each, the example, and the types."""
    python = prepared(integration, folder)
    here = ROOT / "integrations" / integration.folder
    known = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    report = folder / f"{integration.folder}.xml"
    report.unlink(missing_ok=True)
    subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"],
        cwd=here, timeout=TRY_TIMEOUT_S, check=False,
        env={**known, "CHUNKCACHE_URL": url, "HAYSTACK_TELEMETRY_ENABLED": "False"},
    )  # fmt: skip
    counted = counts(ElementTree.parse(report).getroot()) if report.exists() else {}
    shown = subprocess.run(
        [python, str(ROOT / "examples" / integration.example), url],
        env=known, timeout=TRY_TIMEOUT_S, check=False,
    )  # fmt: skip
    (package,) = {path.relative_to(here).parts[0] for path in here.rglob("py.typed")}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--strict", "--explicit-package-bases",
         "--python-executable", python, "--cache-dir", str(folder / "mypy"), package],
        cwd=here, timeout=TRY_TIMEOUT_S, check=False, env=known,
    )  # fmt: skip
    for what, done in ((f"example {integration.example}", shown), ("mypy --strict", checked)):
        outcome = "passed" if done.returncode == 0 else "failed"
        counted.setdefault(what, Counter())[outcome] += 1
    start = f"| {integration.folder} | {integration.over} |"
    kinds = ("passed", "xfailed", "skipped", "failed")
    return [
        f"{start} {suite} | {' | '.join(str(found[kind]) for kind in kinds)} |"
        for suite, found in counted.items()
    ]


def counts(report: ElementTree.Element) -> dict[str, Counter[str]]:
    """How many tests of each suite had which outcome, from pytest's JUnit report."""
    found: dict[str, Counter[str]] = {}
    for case in report.iter("testcase"):
        last = (case.get("classname") or "").rpartition(".")[2]
        suite = f"`{last}`" if last.startswith("Test") else "ours"
        skipped = case.find("skipped")
        outcome = "passed"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        elif skipped is not None:
            outcome = "xfailed" if skipped.get("type") == "pytest.xfail" else "skipped"
        found.setdefault(suite, Counter())[outcome] += 1
    return found


def write_page(folder: str, rows: list[str]) -> None:
    """The page with these rows of an integration, and what it had of the others."""
    kept: dict[str, list[str]] = {}
    for row in ROW.finditer(PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""):
        kept.setdefault(row["folder"], []).append(row[0])
    kept[folder] = rows
    ordered = [line for one in INTEGRATIONS for line in kept.get(one.folder, [])]
    PAGE.write_text(HEAD + "\n".join(ordered) + "\n", encoding="utf-8")


def main() -> int:
    url, folder, *names = sys.argv[1:]
    for integration in INTEGRATIONS:
        if names and integration.folder not in names:
            continue
        rows = tried(integration, Path(folder).resolve(), url)
        print("\n".join(rows), flush=True)
        write_page(integration.folder, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
