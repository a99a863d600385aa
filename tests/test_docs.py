"""Documents tell the truth: generated parts are current, code blocks compile, links resolve."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "docker/*.md",
        "kernels/*.md",
        "indexes/*.md",
        "client/*.md",
        "integrations/*/*.md",
    )
    for path in ROOT.glob(pattern)
)


def load_build() -> Any:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_build"] = module
    sys.path.insert(0, str(ROOT / "docs"))  # where a script finds what lies beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return module


def test_generated_parts_are_current() -> None:
    build = load_build()
    stale = [
        str(path.relative_to(ROOT))
        for path, text in build.build().items()
        if not path.exists() or path.read_text() != text
    ]
    assert stale == [], "run: python docs/build.py"


def test_results_are_read_whatever_their_texts_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line ends at a line feed alone; JSON may hold U+2028 and its like as they are."""
    load_build()
    tables = sys.modules["result_tables"]
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    runs = [{"command": "a\u2028b\u2029c\x85d"}, {"command": "last"}]
    lines = [json.dumps(run, ensure_ascii=False) + "\n" for run in runs]
    (tmp_path / "bench_x.jsonl").write_text("".join(lines))
    assert tables.latest("x") == runs[1]
    (tmp_path / "bench_x.jsonl").write_text(lines[0])
    assert tables.latest("x") == runs[0]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_code_blocks(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, str(path), "exec")
    for command in re.findall(r"^chunkcache ([a-z]+)", text, re.MULTILINE):
        assert command in load_build().commands_page(), f"{path.name} names chunkcache {command}"
    for target in re.findall(r"^make ([a-z]+)", text, re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_every_path_the_documents_name_exists() -> None:
    missing = []
    for path in DOCUMENTS:
        for name in re.findall(r"`((?:chunkcache|kernels|indexes|tests|benchmarks|docs)/[\w./]+)`",
                               path.read_text()):  # fmt: skip
            if not (ROOT / name.rstrip("/")).exists():
                missing.append(f"{path.name}: {name}")
    assert missing == []
