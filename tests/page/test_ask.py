"""Ask, in a real browser: the streamed answer, citations, the ribbon, the same in full."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE = "<img src=x onerror=alert(1)>"


def put(served: Any, name: str, text: str) -> None:
    served.service.ingest_bytes(name, text.encode(), tenant="public", collection="default")


def ask(page: Any, question: str) -> None:
    page.get_by_role("textbox", name="Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def status(page: Any, text: str) -> None:
    page.locator("#ask-status").filter(has_text=text).wait_for()


def test_the_answer_streams_and_cites(served: Any, open_page: Callable[..., Any]) -> None:
    put(served, "owls.txt", "where owls hold their nests")
    page = open_page(served)
    ask(page, "where do owls hold on")
    answer = served.service.wait_for_answers(1)
    text = page.locator("#ask-text")
    text.filter(has_text="You").wait_for()
    assert text.inner_text().strip() == "You"  # the first word is shown while the rest is to come
    assert text.get_attribute("aria-busy") == "true"
    assert page.locator("#ask-passages li").count() == 1
    answer.go_on.set()
    status(page, "Answered.")
    assert text.inner_text().strip() == "You asked: where do owls hold on — voilà"
    assert text.get_attribute("aria-busy") == "false"
    page.get_by_role("button", name="Passage 1: owls.txt").click()
    dialog = page.get_by_role("dialog", name="[1] owls.txt")
    assert dialog.locator("#passage-text").inner_text() == "where owls hold their nests"
    assert "8 rows reused, 2 rows recomputed" in dialog.locator("#passage-meta").inner_text()
    with page.context.expect_page() as opened:
        dialog.get_by_role("link", name="Open in its document").click()
    assert opened.value.locator("mark").inner_text() == "where owls hold their nests"


def test_an_answer_that_was_cut_says_so(served: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(served)
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Longest answer").fill("1")
    ask(page, "owls")
    status(page, "Answered, and cut at the limit of tokens.")


def test_the_ribbon_shows_every_row_by_what_was_done_to_it(
    served: Any, open_page: Callable[..., Any]
) -> None:
    put(served, "owls.txt", "where owls nest")
    page = open_page(served)
    ask(page, "owls")
    status(page, "Answered.")
    assert page.locator(".ribbon .legend li").all_inner_texts() == [
        "reused as it was 8", "reused and recomputed 2",
    ]  # fmt: skip
    picture = page.locator(".ribbon svg")
    assert picture.get_attribute("aria-label") == (
        "Rows of the prompt: 0 exact, reused, 8 reused as it was, 2 reused and recomputed, "
        "0 computed"
    )
    ticks = picture.locator("rect.recomputed")
    assert [ticks.get_attribute(name) for name in ("x", "width")] == ["5", "2"]
    cells = page.locator(".spans tbody tr").first.locator("td").all_inner_texts()
    assert cells == ["[1] owls.txt", "10", "8", "2", "0", "repaired", "host"]


def test_a_switch_asks_again_in_full(served: Any, open_page: Callable[..., Any]) -> None:
    put(served, "owls.txt", "where owls nest")
    page = open_page(served)
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Repair budget").fill("0.25")
    page.get_by_label("Passages", exact=True).fill("3")
    ask(page, "owls")
    status(page, "Answered.")
    page.get_by_role("switch", name="Ask again in full, and compare").check()
    status(page, "Answered twice.")
    first, second = served.service.requests
    assert (first.options.mode, first.options.budget, first.top_k) == ("auto", 0.25, 3)
    assert (second.options.mode, second.options.budget, second.top_k) == ("full", None, 3)
    assert first.messages == second.messages
    comparison = page.locator("#ask-comparison")
    assert "Both answers are the same text." in comparison.inner_text()
    row = comparison.get_by_role("row", name=re.compile("First token"))
    assert row.locator("td").all_inner_texts() == ["1.5 ms", "1.5 ms"]
    ask(page, "owls again")  # the switch stays on
    status(page, "Answered twice.")
    served.service.wait_for_answers(4)
    page.get_by_role("switch").uncheck()
    assert comparison.is_hidden()


def test_the_difference_of_two_answers_is_shown_word_by_word(
    served: Any, open_page: Callable[..., Any]
) -> None:
    page = open_page(served)
    program = """async ([before, after]) =>
        (await import(new URL("page/difference.js", document.baseURI))).difference(before, after)"""
    runs = page.evaluate(program, ["it is the sort_keys argument", "it is the argument sort_keys."])
    assert "".join(r["text"] for r in runs if r["kind"] != "added") == (
        "it is the sort_keys argument"
    )
    assert "".join(r["text"] for r in runs if r["kind"] != "removed") == (
        "it is the argument sort_keys."
    )
    assert runs[0] == {"kind": "same", "text": "it is the "}
    for before, after in [
        ("", ""),
        ("", "a b"),
        ("a b", ""),
        ("a  b\n", "a b"),
        ("x " * 5000, "y " * 5000),
    ]:
        found = page.evaluate(program, [before, after])
        assert "".join(r["text"] for r in found if r["kind"] != "added") == before
        assert "".join(r["text"] for r in found if r["kind"] != "removed") == after


def test_titles_texts_and_questions_are_never_markup(
    served: Any, open_page: Callable[..., Any]
) -> None:
    put(served, HOSTILE, f"owls {HOSTILE} <script>alert(2)</script>")
    page = open_page(served)
    ask(page, f"owls {HOSTILE}")
    status(page, "Answered.")
    assert HOSTILE in page.locator("#ask-text").inner_text()
    assert page.locator("#ask-passages .title").inner_text() == f"{HOSTILE} › Pets › Cats"
    page.locator("#ask-passages button").click()
    assert page.locator("#passage-title").inner_text() == f"[1] {HOSTILE} › Pets › Cats"
    assert "<script>alert(2)</script>" in page.locator("#passage-text").inner_text()
    page.get_by_role("button", name="Close").click()
    for section in ("corpus", "requests"):
        page.goto(f"{served.url}/#{section}")
        page.locator(f"#{section} tbody button.plain").first.wait_for()
        assert HOSTILE in page.locator(f"#{section} tbody").inner_text()
    page.locator("#requests tbody button").first.click()
    assert page.locator("main img").count() == 0  # an alert would have failed the test, too


def test_a_link_that_is_no_web_address_is_not_offered(
    served: Any, open_page: Callable[..., Any]
) -> None:
    page = open_page(served)
    program = """async (link) => {
        const { openPassage } = await import(new URL("page/passage.js", document.baseURI));
        openPassage({title: "t", text: "x", document_id: "d", start_char: 0, end_char: 1}, 1, link);
        const anchor = document.getElementById("passage-link");
        const shown = !anchor.parentElement.hidden && anchor.href;
        document.getElementById("passage").close();
        return shown;
    }"""
    assert page.evaluate(program, "https://example.org/a") == "https://example.org/a"
    for link in ("javascript:alert(1)", "data:text/html,x", "urn:chunkcache:d#chars=0-1", "", None):
        assert page.evaluate(program, link) is False, link


def test_stop_cancels_the_answer(served: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(served)
    ask(page, "hold on")
    answer = served.service.wait_for_answers(1)
    page.locator("#ask-text").filter(has_text="You").wait_for()
    page.get_by_role("button", name="Stop").click()
    status(page, "Stopped.")
    assert answer.ended.wait(10) and answer.cancelled.is_set()
    assert page.get_by_role("button", name="Ask", exact=True).is_enabled()


def test_what_goes_wrong_is_said_in_the_servers_words(
    serve_with: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    served = serve_with(queue_limit=1)
    page = open_page(served)
    ask(page, "refused")  # after the stream has begun
    status(page, "refused half way")
    served.service.start(request_for("hold on"), gone=None)
    ask(page, "one too many")
    status(page, "the queue is full")
    assert all("429" in problem for problem in page.problems), page.problems
    page.problems.clear()


def request_for(question: str) -> Any:
    from chunkcache.protocol import AnswerRequest, Message

    return AnswerRequest(messages=[Message(role="user", content=question)])


def test_a_server_with_keys_is_asked_with_one_that_only_this_tab_knows(
    serve_with: Callable[..., Any], open_page: Callable[..., Any], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right-key someone\n")
    keys.chmod(0o600)
    served = serve_with(api_keys_file=keys)
    page = open_page(served)
    dialog = page.get_by_role("dialog", name="API key")
    for key, why in (("wrong-key", "Missing API key"), ("right-key", "Incorrect API key")):
        dialog.get_by_text(why).wait_for()
        dialog.get_by_label("Key", exact=True).fill(key)
        dialog.get_by_role("button", name="Use it").click()
    page.locator("#ask-store option").first.wait_for(state="attached")
    ask(page, "hello")
    status(page, "Answered.")
    assert served.service.requests[0].tenant == "someone"
    assert page.evaluate("Object.values(sessionStorage)") == ["right-key"]
    assert page.evaluate("localStorage.length") == 0
    assert page.context.cookies() == []
    page.get_by_role("button", name="Forget key").click()
    dialog.get_by_text("Missing API key").wait_for()
    assert page.evaluate("sessionStorage.length") == 0
    dialog.get_by_role("button", name="Cancel").click()
    status(page, "Missing API key")
    assert all("401" in problem for problem in page.problems), page.problems
    page.problems.clear()
