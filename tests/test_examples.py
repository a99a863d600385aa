"""Every example runs, on the tiny model, as its own docstring says."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture
def environment(tiny_settings: Callable[..., Any]) -> dict[str, str]:
    """The tiny model by way of variables, as a user would set it."""
    given = tiny_settings().model_dump(mode="json", exclude_unset=True)
    variables = {}
    for name, value in given.items():
        if isinstance(value, dict):
            variables |= {f"CHUNKCACHE_{name}__{k}".upper(): str(v) for k, v in value.items()}
        else:
            variables[f"CHUNKCACHE_{name}".upper()] = str(value)
    return {**os.environ, **variables, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def server(environment: dict[str, str]) -> Iterator[str]:
    command = [sys.executable, "-m", "chunkcache", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        found = re.search(r"http://[^/\s]+", process.stdout.readline())
        assert found is not None
        yield found[0]
        process.terminate()
        assert process.wait(30) == 0


def run(name: str, *arguments: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_in_process(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Owls\n\nOwls hunt at night.")
    out = run("01_in_process.py", str(tmp_path), "when?", environment=environment)
    assert "- Owls" in out and "prompt tokens were reused" in out


def test_openai_client(environment: dict[str, str], server: str, tmp_path: Path) -> None:
    page = tmp_path / "owls.md"
    page.write_text("# Owls\n\nOwls hunt at night.")
    out = run("02_openai_client.py", f"{server}/v1", str(page), "when?", environment=environment)
    assert "cached tokens:" in out


def test_documents_in_the_request(environment: dict[str, str], server: str) -> None:
    out = run("03_documents_in_the_request.py", server, environment=environment)
    assert "'exact'" in out and "host" in out


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("04_langchain.py", "langchain_chunkcache", "found: ['clock']"),
        ("05_llamaindex.py", "llama_index.llms.chunkcache", "cited: ['clock'"),
        ("06_haystack.py", "haystack_integrations.components.generators.chunkcache", "['clock'"),
    ],
)
def test_an_integration(request: pytest.FixtureRequest, name: str, module: str, said: str) -> None:
    """tests/integrations/try_integrations.py runs them in environments that have the framework."""
    pytest.importorskip(module, reason=f"{module} is not installed")
    given = (request.getfixturevalue(one) for one in ("server", "environment"))
    out = run(name, next(given), environment=next(given))
    assert said in out and "rung" in out


def test_no_example_is_left_out() -> None:
    tested = set(re.findall(r'"(\d\d_\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


ALL_HELP = """
import contextlib, io, json, runpy, sys
said = {}
for path in sys.argv[1:]:
    sys.path[0], sys.argv = path.rpartition("/")[0], [path, "--help"]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        said[path] = [end.code, out.getvalue()]
print(json.dumps(said))
"""


def test_the_benchmarks_have_help() -> None:
    """They are long; here they only have to start, in one process, which loads torch once."""
    paths = [str(path) for path in sorted((ROOT / "benchmarks").glob("bench_*.py"))]
    done = subprocess.run(
        [sys.executable, "-c", ALL_HELP, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert list(said) == paths
    for path, (status, text) in said.items():
        assert status in (0, None) and "--out" in text, path


def test_committed_results_are_json_lines_with_their_surroundings() -> None:
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")):
        for line in path.read_text().rstrip("\n").split("\n"):
            result = json.loads(line)
            assert {"benchmark", "command", "commit", "machine", "seed", "versions"} <= set(result)


def test_a_result_names_its_commit_and_says_where_other_code_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    reporting = importlib.import_module("reporting")
    for name in ("code.py", "benchmarks/results/bench.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = reporting.commit(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{7,}", clean)
    (tmp_path / "benchmarks/results/bench.jsonl").write_text("the benchmark before this one\n")
    assert reporting.commit(tmp_path) == clean
    (tmp_path / "code.py").write_text("other code\n")
    assert reporting.commit(tmp_path) == f"{clean}-dirty"
