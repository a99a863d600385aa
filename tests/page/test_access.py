"""For everyone: axe-core finds nothing, the keyboard is enough, a phone is wide enough, the policy
holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from chunkcache.console.warming import WarmWish

SECTIONS = ("ask", "corpus", "warm-up", "cache", "requests")
# Elements a Tab should stop at, of those that are shown; of a group of radio buttons only one.
STOPS = """() => [...document.querySelectorAll(
    "a[href], button, input, select, textarea, summary, [tabindex='0']")]
  .filter((e) => e.checkVisibility({visibilityProperty: true}) && !e.disabled
    && !(e.type === "radio" && !e.checked))
  .map((e) => e.id || e.className + e.textContent.trim().slice(0, 30) + e.ariaLabel)"""
FOCUSED = """() => { const e = document.activeElement;
  return e.id || e.className + e.textContent.trim().slice(0, 30) + e.ariaLabel; }"""


def fill(served: Any) -> None:
    """Something to see in every section."""
    service = served.service
    for name in ("owls.txt", "a-name-without-any-space-" * 8 + ".txt"):
        service.ingest_bytes(
            name, b"owls are absent; " + b"longword" * 40, tenant="public", collection="default"
        )
    for question in ("owls", "absent owls"):
        body = {"messages": [{"role": "user", "content": question}]}
        httpx.post(f"{served.url}/v1/chat/completions", json=body).raise_for_status()
    metrics = service.metrics
    for tier in ("host", "disk"):
        metrics.tier_bytes.labels(tier).set(2**21)
        metrics.tier_records.labels(tier).set(3)
    service.console.history._due_s.update(hour=0.0)
    metrics.chunk_queries.labels("host").inc(9)
    metrics.chunk_hits.labels("host").inc(5)
    service.console.history.note()
    metrics.chunk_queries.labels("host").inc(9)
    service.console.history._due_s.update(hour=0.0)
    service.console.warm_ups.start("public", WarmWish("default"))
    service.warm_steps.release()


def bring_up(page: Any, section: str) -> None:
    """The section with everything in it open."""
    if section == "ask":
        page.get_by_text("Options", exact=True).click()
        page.get_by_role("switch").check()
        page.get_by_role("textbox", name="Question").fill("owls")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator("#ask-status").filter(has_text="Answered twice.").wait_for()
    elif section == "corpus":
        page.locator("#documents .kv").nth(1).filter(has_text="1 host").wait_for()
        page.locator("tr.document button").first.click()
        page.locator(".chunks li").first.wait_for()
    elif section == "warm-up":
        page.locator("#warm-figures").filter(has_text="1 of 4").wait_for()
    elif section == "cache":
        page.locator("#chart-bytes canvas").wait_for()
    else:
        page.locator("tr.asked button").first.click()
        page.locator("#requests .spans").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("section", SECTIONS)
def test_axe_finds_nothing(
    served: Any, open_page: Callable[..., Any], axe: Callable[[Any], list[str]],
    section: str, scheme: str,
) -> None:  # fmt: skip
    fill(served)
    page = open_page(served, section, scheme=scheme)
    bring_up(page, section)
    assert axe(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_dialogs(
    served: Any, open_page: Callable[..., Any], axe: Callable[[Any], list[str]], scheme: str
) -> None:
    fill(served)
    page = open_page(served, "corpus", scheme=scheme)
    bring_up(page, "corpus")
    page.locator(".chunks button").first.click()
    assert axe(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete owls.txt").click()
    assert axe(page) == []
    page.keyboard.press("Escape")
    page.evaluate("document.getElementById('key').showModal()")
    assert axe(page) == []


def test_axe_would_find_something(
    served: Any, open_page: Callable[..., Any], axe: Callable[[Any], list[str]]
) -> None:
    page = open_page(served)
    page.evaluate("document.querySelector('label[for=question]').remove()")
    page.evaluate("document.getElementById('question').removeAttribute('placeholder')")
    assert any("textarea" in problem for problem in axe(page))


def test_the_colours_follow_the_readers_scheme(served: Any, open_page: Callable[..., Any]) -> None:
    grounds = {
        scheme: open_page(served, scheme=scheme).evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        for scheme in ("light", "dark")
    }
    assert grounds == {"light": "rgb(247, 247, 245)", "dark": "rgb(19, 20, 22)"}


@pytest.mark.parametrize("section", SECTIONS)
def test_tab_stops_at_everything_that_can_be_used(
    served: Any, open_page: Callable[..., Any], section: str
) -> None:
    fill(served)
    page = open_page(served, section)
    bring_up(page, section)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0); getSelection().removeAllRanges()")
    page.locator(".brand").click()  # where the reading begins
    expected = page.evaluate(STOPS)
    page.keyboard.press("Shift+Tab")
    stops = [page.evaluate(FOCUSED)]
    for _ in range(len(expected) - 1):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(FOCUSED))
    assert stops == expected


def test_a_question_is_asked_and_a_passage_read_with_the_keyboard_alone(
    served: Any, open_page: Callable[..., Any]
) -> None:
    fill(served)
    page = open_page(served)
    page.goto("about:blank")
    page.goto(served.url)  # with a fragment, the browser would begin at that section
    page.locator("#ask").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#corpus").wait_for()
    assert page.evaluate("document.activeElement.id") == "corpus-title"
    for _ in range(5):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.locator("#ask").wait_for()
    assert page.evaluate("document.activeElement.id") == "ask-title"  # said by a screen reader
    assert page.title() == "Ask · chunkcache"
    assert page.locator("nav [aria-current=page]").inner_text() == "Ask"
    page.keyboard.press("Tab")
    page.keyboard.type("owls")
    page.keyboard.press("Enter")
    page.locator("#ask-status").filter(has_text="Answered.").wait_for()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "Passage 1: owls.txt":
            break
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="[1] owls.txt").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.ariaLabel") == "Passage 1: owls.txt"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_phone_is_wide_enough(served: Any, open_page: Callable[..., Any], section: str) -> None:
    fill(served)
    page = open_page(served, section, width=360)
    bring_up(page, section)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, select, textarea")]
          .filter((e) => e.checkVisibility() && e.getBoundingClientRect().width > 360)
          .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert small == []


def test_the_policy_lets_nothing_inline_or_foreign_run(
    served: Any, open_page: Callable[..., Any]
) -> None:
    page = open_page(served)
    assert page.problems == []
    failed = page.evaluate(
        """() => {
          const failed = [];
          try { document.body.innerHTML += "<b>x</b>"; } catch { failed.push("innerHTML"); }
          const script = document.createElement("script");
          try { script.text = "window.ran = true"; document.body.append(script); }
          catch { failed.push("script"); }
          const style = document.createElement("style");
          style.textContent = "body { display: none }";
          document.body.append(style);
          if (getComputedStyle(document.body).display !== "none") failed.push("style");
          return [...failed, window.ran === true];
        }"""
    )
    assert failed == ["innerHTML", "script", "style", False]
    assert len(page.problems) >= 2  # the browser complained
    page.problems.clear()
