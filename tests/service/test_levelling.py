"""Indexes are brought level in the background: what is prepared, when, and what waits for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import structlog

from chunkcache.errors import NotFound, ShuttingDown
from chunkcache.retrieval.entries import EntryTable
from chunkcache.server.app import create_app
from chunkcache.service.levelling import Leveller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chunkcache import ChunkCache

A, B, C = ("t", "a"), ("t", "b"), ("u", "c")
WAIT_S = 30


class World:
    """Collections and a clock. `faults`: what preparing one raises; it takes `takes_s`."""

    def __init__(self, most: int = 9) -> None:
        self.generations: dict[tuple[str, str], int] = {}
        self.prepared: list[tuple[str, str]] = []
        self.faults: dict[tuple[str, str], Exception] = {}
        self.seen: list[str] = []
        self.takes_s = self.now_s = 0.0
        self.leveller = Leveller(
            lambda: dict(self.generations), self.prepare, most=most, clock=lambda: self.now_s
        )

    def prepare(self, tenant: str, collection: str) -> None:
        self.prepared.append((tenant, collection))
        self.seen.append(self.leveller.state)
        self.now_s += self.takes_s
        if fault := self.faults.get((tenant, collection)):
            raise fault

    def step(self) -> list[tuple[str, str]]:
        self.prepared.clear()
        self.leveller.step()
        return self.prepared


def test_at_first_all_are_prepared_then_what_changes() -> None:
    world = World()
    assert world.leveller.state == "opening"
    world.generations = {A: 3, B: 8, C: 0}
    assert world.step() == [B, A]  # nothing was ever put into C
    assert world.leveller.state == "level"
    assert world.step() == []
    world.generations |= {C: 1, A: 4}
    assert world.step() == [A, C]
    assert world.seen == ["opening", "opening", "behind", "behind"]
    del world.generations[A]
    assert world.step() == []
    world.generations[A] = 4  # another of that name
    assert world.step() == [A]


def test_of_very_many_the_most_changed_are_prepared() -> None:
    world = World(most=2)
    world.generations = {A: 3, B: 8, C: 5}
    assert world.step() == [B, C]
    assert world.step() == []


def test_an_ingest_that_goes_on_is_followed_a_tenth_of_the_time() -> None:
    world = World()
    pauses = []
    for takes_s in (0.0, 0.05, 0.5, 60.0):
        world.takes_s = takes_s
        world.generations = {A: 1 + len(pauses)}
        pauses.append(world.leveller.step())
    assert pauses == pytest.approx([1.0, 1.0, 5.0, 10.0])


def test_one_that_cannot_be_prepared_holds_up_no_other() -> None:
    world = World()
    world.generations = {A: 2, B: 1}
    world.faults = {A: RuntimeError("no embedder")}
    with structlog.testing.capture_logs() as logged:
        assert world.step() == [A, B]
    assert world.leveller.state == "behind"
    assert [(one["event"], one["collection"]) for one in logged if "reason" in one] == [
        ("indexes_not_level", "a")
    ]
    assert world.step() == []  # not again and again
    assert world.leveller.state == "behind"
    world.faults = {A: NotFound("deleted")}
    world.generations[A] = 3
    assert world.step() == [A]
    assert world.leveller.state == "level"


@pytest.mark.parametrize("closes", ["generations", "prepare"])
def test_the_thread_ends_when_the_catalog_is_closed(closes: str) -> None:
    def closed(*_: str) -> Any:
        raise ShuttingDown("closed")

    open_: Callable[..., Any] = lambda *_: {A: 1}  # noqa: E731
    leveller = Leveller(
        closed if closes == "generations" else open_,
        closed if closes == "prepare" else open_,
        most=9,
    )
    leveller.start()
    leveller.join()


# ---------------------------------------------------------------- of a whole service


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Builds of word indexes stop: the first event says that one has, the second lets it go on."""
    stopped, go_on = threading.Event(), threading.Event()
    real = EntryTable.searched_texts

    def slow(self: Any, *args: Any) -> Any:
        stopped.set()
        assert go_on.wait(WAIT_S)
        return real(self, *args)

    monkeypatch.setattr(EntryTable, "searched_texts", slow)
    yield stopped, go_on
    go_on.set()


def test_a_search_after_preparing_builds_nothing(
    cache: ChunkCache, pages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.ingest([pages])
    leveller = Leveller(cache.catalog.entries.generations, cache._prepare, most=9)
    leveller.step()
    for name in ("searched_texts", "read", "all"):
        monkeypatch.setattr(EntryTable, name, None)
    assert cache.search("a scent that dogs follow", top_k=1)[0].title == "Dogs"
    monkeypatch.undo()
    cache.ingest_bytes("new.md", b"A walrus is no dog.")
    assert cache.search("walrus", top_k=1)[0].text.endswith("A walrus is no dog.")
    leveller.step()  # what a search has done already is not done again
    assert leveller.state == "level"


def test_a_server_answers_while_indexes_are_built_and_says_when_it_is_ready(
    cache: ChunkCache, live: Any, pages: Path, held: tuple[threading.Event, threading.Event]
) -> None:
    stopped, go_on = held
    assert cache.health()["indexes"] == "on demand"
    cache.ingest([pages])
    found: list[Any] = []
    with live.behind(create_app(cache)) as url, httpx.Client(base_url=url, timeout=WAIT_S) as http:
        cache.keep_level()
        assert stopped.wait(WAIT_S)
        searching = threading.Thread(target=lambda: found.append(cache.search("owls", top_k=1)))
        searching.start()
        health, ready = http.get("/health"), http.get("/ready")
        assert (health.status_code, ready.status_code) == (200, 503)
        assert health.json()["indexes"] == ready.json()["indexes"] == "opening"
        assert found == []
        go_on.set()
        searching.join()
        assert found[0][0].title == "Owls"
        level = threading.Event()
        while cache.health()["indexes"] != "level":
            assert not level.wait(0.01)
        assert http.get("/ready").status_code == 200


def test_closing_ends_a_build_at_its_next_batch(
    cache: ChunkCache, pages: Path, held: tuple[threading.Event, threading.Event]
) -> None:
    cache.ingest([pages])
    stopped, go_on = held
    cache.keep_level()
    assert stopped.wait(WAIT_S)
    closing = threading.Thread(target=cache.close)
    closing.start()
    go_on.set()
    closing.join()
    assert not any(t.name == "chunkcache-leveller" for t in threading.enumerate())
