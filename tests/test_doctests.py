"""The examples in docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = {
    "chunkcache": ROOT,
    "chunkcache_kernels": ROOT / "kernels",
    "chunkcache_indexes": ROOT / "indexes",
}


def modules_with_examples() -> list[str]:
    """Found by their text, so that only these are imported."""
    found = []
    for package, root in SOURCE_ROOTS.items():
        for path in sorted((root / package).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(root).with_suffix("").parts
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


MODULES = modules_with_examples()


def test_there_are_examples_to_run() -> None:
    assert "chunkcache.errors" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name: str) -> None:
    module = importlib.import_module(name)
    tests = [t for t in doctest.DocTestFinder().find(module, name) if t.examples]
    assert tests, "an example stands where doctest does not look"
    runner, report = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), list[str]()
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
