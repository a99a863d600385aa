"""Installations that share a tier: warmed by one, answered by all; when it hangs, answers stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chunkcache import ChunkCache
from chunkcache.protocol import AnswerFinished
from chunkcache.service.diagnosis import tiers_reached

SECRET = "the same for both"
OpenCache = Callable[..., ChunkCache]


@pytest.fixture(params=["shared", "object"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The settings of a tier that several installations share."""
    if request.param == "object":
        return {"object": f"file://{tmp_path}/objects"}
    return {"shared": request.getfixturevalue("own_valkey").url}


def installation(open_cache: OpenCache, home: Path, **store: Any) -> ChunkCache:
    patient = {"remote_timeout_s": 20.0, "share_secret": SECRET}
    return open_cache(home=home, store={**patient, **store})


def tiers(answer: AnswerFinished) -> list[str | None]:
    return [span.tier for span in answer.report.spans if span.kind == "chunk"]


def test_what_one_installation_warmed_another_answers_from(
    where: dict[str, str], open_cache: OpenCache, pages: Path, tmp_path: Path
) -> None:
    first = installation(open_cache, tmp_path / "first", **where)
    first.ingest([pages])
    warmed = first.warm()
    assert warmed.computed > 0
    second = installation(open_cache, tmp_path / "second", **where)
    second.ingest([pages])
    answer = second.ask("where do owls hunt?", top_k=2)
    (name,) = where
    assert tiers(answer) == [name, name]
    cached = [span.reused for span in answer.report.spans if span.kind == "chunk"]
    assert all(reused > 0 for reused in cached)
    again = second.warm()
    assert (again.computed, again.already_warm) == (0, warmed.chunks), "copied, not computed"
    first.close()
    second.close()
    alone = installation(open_cache, tmp_path / "second")
    assert alone.ask("where do owls hunt?", top_k=2).text == answer.text
    rest = alone.warm()
    assert (rest.computed, rest.already_warm) == (0, warmed.chunks), "its own disk has them all"


@pytest.mark.parametrize(
    "other", [{"share_secret": "another, as long"}, {"share_secret": SECRET, "tenant": "b"}]
)
def test_nothing_is_shared_with_another_secret_or_tenant(
    other: dict[str, str], open_cache: OpenCache, tmp_path: Path
) -> None:
    where = {"object": f"file://{tmp_path}/objects"}
    texts = ["Owls hunt at night, turning the head to find where a sound is from."]
    first = installation(open_cache, tmp_path / "first", **where)
    first.ask("why?", documents=texts)
    first.close()
    tenant = {"tenant": other["tenant"]} if "tenant" in other else {}
    secret = other["share_secret"]
    second = installation(open_cache, tmp_path / "second", **{**where, "share_secret": secret})
    asked = second.ask("why?", documents=texts, **tenant)
    assert [s.miss for s in asked.report.spans if s.kind == "chunk"] == ["absent"]


def test_the_doctor_says_which_tiers_answer(
    own_valkey: Any, tmp_path: Path, tiny_settings: Callable[..., Any]
) -> None:
    store = {"shared": own_valkey.url, "object": f"file://{tmp_path}/objects",
             "share_secret": SECRET, "remote_timeout_s": 20.0}  # fmt: skip
    facts = tiers_reached(tiny_settings(store=store), b"model")
    assert list(facts) == ["shared tier", "object tier"]
    assert all(fact.startswith("answers, after ") for fact in facts.values())
    own_valkey.kill()
    facts = tiers_reached(tiny_settings(store=store), b"model")
    assert facts["shared tier"].startswith("does not answer: store: shared: ConnectionError")
    assert tiers_reached(tiny_settings(), b"model") == {}


def test_a_shared_tier_that_hangs_changes_no_answer(
    open_cache: OpenCache, own_valkey: Any, tmp_path: Path
) -> None:
    texts = ["Owls hunt at night, turning the head.", "Cats sleep sixteen hours a day."]
    right = installation(open_cache, tmp_path / "alone").ask("why?", documents=texts)
    cache = installation(
        open_cache, tmp_path / "home", shared=own_valkey.url, remote_timeout_s=0.05,
    )  # fmt: skip
    own_valkey.pause()
    hung = cache.ask("why?", documents=texts)
    assert hung.text == right.text
    assert {s.miss for s in hung.report.spans if s.kind == "chunk"} == {"error"}
    report = cache.warm()  # nothing to warm: what is shown is that it is no error
    assert report.failed == 0
    own_valkey.kill()
    assert cache.ask("why?", documents=texts[::-1]).report.prompt_tokens > 0
    assert cache.metrics.store_errors.labels("shared", "read")._value.get() >= 2
