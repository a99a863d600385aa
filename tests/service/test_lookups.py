"""What the service writes of its look-ups: every passage under the name its KV has, and no text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chunkcache.console.lookup_log import FILE_NAME
from chunkcache.evaluate.hitrate.service_log import read_service_log
from chunkcache.service.asking import Measure


def test_what_was_looked_up_is_logged_without_text(
    open_cache: Callable[..., Any], pages: Path
) -> None:
    cache = open_cache()
    cache.ingest([pages])
    answer = cache.ask("where do owls hunt?", max_tokens=1)
    cache.ask("where do owls hunt?", max_tokens=1, documents=["Owls are shy.", "Owls are shy."])
    home = cache.settings.home
    first, second = read_service_log(home)
    spans = [span for span in answer.report.spans if span.kind == "chunk"]
    assert [tokens for _, tokens in first.passages()] == [span.tokens for span in spans]
    assert first.is_passage is not None and not first.is_passage[0] and first.is_passage[-1]
    head = first.ids[0]
    assert second.ids[0] == head, "the head is the same"
    facts = cache.runtime.engine.chunks
    (sizes,) = {read_service_log(home).sizes}
    assert sizes is not None and sizes.page_tokens == facts.page_tokens
    assert sizes.in_memory(1) == facts.page_bytes
    written = (home / FILE_NAME).read_text()
    assert "owls" not in written.lower() and "shy" not in written

    # asked again it is the same trace; another tenant's text is another passage
    cache.ask("where do owls hunt?", max_tokens=1)
    cache.ask("?", max_tokens=1, documents=["Owls are shy."], tenant="other")
    *_, again, other = read_service_log(home)
    assert again.ids == first.ids
    assert not set(other.ids) & set(second.ids)


def test_exact_answers_and_measurements_are_not_logged(
    open_cache: Callable[..., Any], pages: Path
) -> None:
    cache = open_cache(home=pages.parent / "one")
    cache.ask("?", max_tokens=1, documents=["Owls are shy."], mode="exact")
    list(cache.start(_request(cache), measure=Measure()).events())
    assert not (cache.settings.home / FILE_NAME).exists()
    silent = open_cache(home=pages.parent / "two", store={"lookup_log_bytes": 0})
    silent.ask("?", max_tokens=1, documents=["Owls are shy."])
    assert not (silent.settings.home / FILE_NAME).exists()


def _request(cache: Any) -> Any:
    from chunkcache.service.wishes import answer_request

    return answer_request("?", {"documents": ["Owls are shy."], "max_tokens": 1})
