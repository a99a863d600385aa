"""Corpus, warm-up, cache and requests, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest


def put(served: Any, name: str, text: str) -> None:
    served.service.ingest_bytes(name, text.encode(), tenant="public", collection="default")


def ask(served: Any, question: str) -> None:
    body = {"messages": [{"role": "user", "content": question}]}
    httpx.post(f"{served.url}/v1/chat/completions", json=body).raise_for_status()


def status(page: Any, section: str, text: str) -> None:
    page.locator(f"#{section}-status").filter(has_text=text).wait_for()


def test_a_document_is_uploaded_looked_at_and_deleted(
    served: Any, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page(served, "corpus")
    status(page, "corpus", "No documents yet")
    for name, data in (("owls.txt", b"owls hunt at night"), ("empty.txt", b" ")):
        (tmp_path / name).write_bytes(data)
    page.locator("#upload").set_input_files([tmp_path / "owls.txt", tmp_path / "empty.txt"])
    status(page, "corpus", "1 file added.")
    assert page.locator("#upload-problems li").all_inner_texts() == ["empty.txt: the file is empty"]
    row = page.locator("tr.document")
    assert row.count() == 1
    row.locator(".kv").filter(has_text="1 host").wait_for()
    name = page.get_by_role("button", name="owls.txt", exact=True)
    name.click()
    chunk = page.locator(".chunks li")
    assert "owls hunt at night" in chunk.inner_text()
    assert "KV in host" in chunk.inner_text()
    chunk.get_by_role("button").click()
    assert page.locator("#passage-text").inner_text() == "owls hunt at night"
    page.keyboard.press("Escape")
    name.click()
    assert page.locator(".chunks").count() == 0
    page.get_by_role("button", name="Delete owls.txt").click()
    dialog = page.get_by_role("dialog", name="Delete owls.txt?")
    dialog.get_by_role("button", name="Cancel").click()
    assert row.count() == 1
    page.get_by_role("button", name="Delete owls.txt").click()
    dialog.get_by_role("button", name="Delete").click()
    status(page, "corpus", "owls.txt is deleted.")
    assert row.count() == 0
    assert served.service.documents(tenant="public", collection="default") == []
    client = served.client()
    assert list(client.files.list()) == []


def test_a_document_from_elsewhere_is_deleted_too_and_an_upload_shared_is_kept(
    served: Any, open_page: Callable[..., Any]
) -> None:
    put(served, "by-command.txt", "cold text")
    client = served.client()
    store = client.vector_stores.create(name="other")
    file = client.files.create(file=("shared.txt", b"text"), purpose="assistants")
    for store_id in ("default", store.id):
        client.vector_stores.files.create(store_id, file_id=file.id)
    page = open_page(served, "corpus")
    for name in ("by-command.txt", "shared.txt"):
        page.get_by_role("button", name=f"Delete {name}").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        status(page, "corpus", f"{name} is deleted.")
    assert served.service.documents(tenant="public", collection="default") == []
    assert [f.id for f in client.files.list()] == [file.id]
    page.locator("#corpus-store").select_option(store.id)
    page.get_by_role("button", name="shared.txt", exact=True).wait_for()


def test_many_documents_come_in_pages(served: Any, open_page: Callable[..., Any]) -> None:
    for number in range(60):
        put(served, f"document-{number:02}.txt", "text")
    page = open_page(served, "corpus")
    status(page, "corpus", "50 documents shown.")
    page.get_by_role("button", name="More documents").click()
    status(page, "corpus", "60 documents shown.")
    assert page.get_by_role("button", name="More documents").is_hidden()
    page.locator("#documents .kv").nth(59).filter(has_text="1 host").wait_for()
    names = page.locator("#documents tr td:first-child").all_inner_texts()
    assert len(set(names)) == 60


def test_a_warm_up_is_started_paused_and_resumed(
    served: Any, open_page: Callable[..., Any]
) -> None:
    page = open_page(served, "warm-up")
    state = page.locator("#warm-state")
    assert page.locator("#warm-panel").is_hidden()
    page.get_by_role("button", name="Start").click()
    state.filter(has_text="Running").wait_for()
    served.service.warm_steps.release()
    figures = page.locator("#warm-figures")
    figures.filter(has_text="1 of 4").wait_for()
    assert "Time left" in figures.inner_text()
    assert page.get_by_role("progressbar").get_attribute("value") == "1"
    page.get_by_role("button", name="Pause").click()
    state.filter(has_text="Paused").wait_for()
    assert page.evaluate("document.activeElement.id") == "warm-resume"
    served.service.warm_steps.release(3)
    page.get_by_role("button", name="Resume").click()
    state.filter(has_text="Done").wait_for()
    assert "4 of 4" in figures.inner_text()
    page.get_by_role("button", name="Start").click()
    with page.expect_response(lambda answer: answer.request.method == "POST"):
        page.get_by_role("button", name="Stop").click()
    served.service.warm_steps.release(4)  # not before it is told, or it could be done by then
    state.filter(has_text="Stopped").wait_for()


def test_the_cache_is_drawn_over_time(
    served: Any, open_page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, history = served.service.metrics, served.service.console.history
    clock = [0.0]
    monkeypatch.setattr(history, "_clock", lambda: clock[0])
    metrics.tier_bytes.labels("host").set(3 * 2**20)
    metrics.tier_bytes.labels("disk").set(5 * 2**20)
    metrics.tier_records.labels("host").set(2)
    for number in range(4):
        metrics.chunk_queries.labels("host").inc(10)
        metrics.chunk_hits.labels("host").inc(2 * number)
        metrics.chunk_queries.labels("disk").inc(10 - 2 * number)
        metrics.chunk_hits.labels("disk").inc(2)
        metrics.chunk_misses.labels("absent").inc(8 - 2 * number)
        metrics.evictions.labels("host").inc()
        clock[0] += 10
        history.note()
    page = open_page(served, "cache")
    figures = page.locator("#cache-figures")
    figures.filter(has_text="40").wait_for()
    assert "50 %" in figures.inner_text()  # 12 of host and 8 of disk, of 40
    words = page.locator("#chart-hits [role=img]").get_attribute("aria-label")
    assert words == "Look-ups by tier over time; at the end: host 60 %, disk 20 %, no tier 20 %"
    assert page.locator("#cache canvas").count() == 3
    row = page.locator("#tiers tr").first.locator("th, td").all_inner_texts()
    assert row == ["host", "40", "12 (30 %)", "2", "3.0 MiB", "1.0 GiB", "4"]
    assert page.locator("#misses td").all_inner_texts() == ["in no tier", "20"]
    assert page.locator("#sizing").is_hidden()
    points = [{"capacity_bytes": n << 20, "hit_rate": n / 100} for n in (1, 16, 90)]
    curve = {"made_at": 1.8e9, "trace": "a week of requests", "points": points}
    home = Path(served.service.settings.home)
    home.mkdir(exist_ok=True)
    (home / "sizing.json").write_text(json.dumps(curve))
    page.get_by_label("Last days").check()
    page.locator("#sizing-caption").filter(has_text="a week of requests").wait_for()
    words = page.locator("#chart-sizing [role=img]").get_attribute("aria-label")
    assert words == "Hit rate by memory; 90 % with 90 MiB"


def test_an_unused_cache_has_nothing_to_draw_and_says_so(
    served: Any, open_page: Callable[..., Any]
) -> None:
    page = open_page(served, "cache")
    page.locator("#chart-hits").filter(has_text="Nothing to show yet.").wait_for()
    assert page.locator("#misses").inner_text().strip() == "None yet."


def test_requests_tell_why_a_passage_was_a_miss(served: Any, open_page: Callable[..., Any]) -> None:
    put(served, "a.txt", "absent friends")
    ask(served, "friends")
    ask(served, "absent friends")
    page = open_page(served, "requests")
    status(page, "requests", "2 requests shown.")
    rows = page.locator("tr.asked")
    assert rows.nth(0).locator("td").last.inner_text() == "1 in no tier"
    assert rows.nth(1).locator("td").last.inner_text() == "none"
    question = page.get_by_role("button", name="absent friends", exact=True)
    question.click()
    assert "miss: in no tier" in page.locator("#requests .spans").inner_text()
    question.click()
    assert page.locator("#requests .spans").count() == 0
    for number in range(60):
        ask(served, f"question {number}")
    page.get_by_role("button", name="Refresh").click()
    status(page, "requests", "50 requests shown.")
    page.get_by_role("button", name="Earlier requests").click()
    status(page, "requests", "62 requests shown.")
