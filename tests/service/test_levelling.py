"""Indexes are brought level in the background: what is prepared, when, and what waits for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import structlog

from chunkcache import ChunkCache
from chunkcache.errors import NotFound, ShuttingDown
from chunkcache.retrieval.entries import EntryTable
from chunkcache.server.app import create_app
from chunkcache.service import library
from chunkcache.service.levelling import Leveller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


A, B, C = ("t", "a"), ("t", "b"), ("u", "c")
WAIT_S = 30


class World:
    """Collections and a clock. `faults`: what preparing one raises; it takes `takes_s`."""

    def __init__(self, most: int = 9) -> None:
        self.generations: dict[tuple[str, str], int] = {}
        self.prepared: list[tuple[str, str]] = []
        self.tenants: list[str] = []
        self.faults: dict[tuple[str, str], Exception] = {}
        self.seen: list[str] = []
        self.takes_s = self.now_s = 0.0
        self.leveller = Leveller(
            lambda: dict(self.generations), self.prepare, self.prepare_tenant,
            most=most, clock=lambda: self.now_s,
        )  # fmt: skip

    def prepare(self, tenant: str, collection: str) -> None:
        self.prepared.append((tenant, collection))
        self.seen.append(self.leveller.state)
        self.now_s += self.takes_s
        if fault := self.faults.get((tenant, collection)):
            raise fault

    def prepare_tenant(self, tenant: str) -> None:
        self.tenants.append(tenant)
        if fault := self.faults.get((tenant, "")):
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


def test_what_failed_is_tried_again_every_ten_seconds_until_it_succeeds() -> None:
    world = World()
    world.generations = {A: 2, B: 1}
    world.faults = {A: RuntimeError("no embedder")}
    with structlog.testing.capture_logs() as logged:
        tried = {}
        for _ in range(25):
            if world.step():
                tried[world.now_s] = list(world.prepared)
            world.now_s += 1
        assert tried == {0: [A, B], 10: [A], 20: [A]}
        world.faults = {A: RuntimeError("another")}
        world.now_s = 30
        assert world.step() == [A]
        assert world.leveller.state == "behind"
        world.faults.clear()
        world.now_s = 40
        assert world.step() == [A]
        world.now_s = 60
        assert world.step() == []
    assert world.leveller.state == "level"
    assert [(one["event"], one.get("reason")) for one in logged] == [
        ("indexes_not_level", "RuntimeError('no embedder')"),
        ("indexes_not_level", "RuntimeError('another')"),
        ("indexes_level", None),
    ]
    assert logged[-1]["collections"] == 1


def test_what_takes_long_to_fail_is_tried_again_a_tenth_of_the_time() -> None:
    world = World()
    world.generations = {A: 1}
    world.faults = {A: RuntimeError("no memory")}
    world.takes_s = 3.0
    tried = []
    for _ in range(80):
        began = world.now_s
        if world.step():
            tried.append(began)
        world.now_s = began + 1 + world.takes_s * len(world.prepared)
    assert tried == [0, 33, 66]


def test_what_failed_and_was_deleted_is_not_behind() -> None:
    world = World()
    world.generations = {A: 2, B: 1}
    world.faults = {A: RuntimeError("no embedder")}
    world.step()
    del world.generations[A]
    assert world.step() == []
    assert world.leveller.state == "level"


def test_a_tenant_is_prepared_once_after_its_collections() -> None:
    world = World()
    world.generations = {A: 2, B: 1, C: 1}
    world.faults = {("t", ""): RuntimeError("damaged")}
    world.step()
    assert world.tenants == ["t", "u"]
    assert world.leveller.state == "behind"
    world.step()
    assert world.tenants == ["t", "u"]
    world.now_s, world.faults = 10.0, {}
    assert world.step() == []
    assert world.tenants == ["t", "u", "t"]
    assert world.leveller.state == "level"


def test_nothing_new_is_begun_after_stopping() -> None:
    world = World()
    world.generations = {A: 2, B: 1}
    world.faults = {A: NotFound("deleted")}
    real = world.prepare

    def stopping(tenant: str, collection: str) -> None:
        world.leveller.stop()
        real(tenant, collection)

    world.leveller._prepare = stopping
    assert world.step() == [A]
    assert world.tenants == []


@pytest.mark.parametrize("closes", ["generations", "prepare"])
def test_the_thread_ends_when_the_catalog_is_closed(closes: str) -> None:
    def closed(*_: str) -> Any:
        raise ShuttingDown("closed")

    open_: Callable[..., Any] = lambda *_: {A: 1}  # noqa: E731
    leveller = Leveller(
        closed if closes == "generations" else open_,
        closed if closes == "prepare" else open_,
        open_,
        most=9,
    )
    leveller.start()
    leveller.join()


# ---------------------------------------------------------------- of a whole service


class Held:
    """Something stops: the first event says that it has, the second lets it go on."""

    def __init__(self) -> None:
        self.stopped, self.go_on = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def stop(self) -> None:
        self.stopped.set()
        assert self.go_on.wait(WAIT_S)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Builds of word indexes stop before each batch, whose size is noted."""
    held = Held()
    real = EntryTable.searched_texts

    def slow(self: Any, tenant: str, collection: str, batch: Any) -> Any:
        held.batches.append(len(batch))
        held.stop()
        return real(self, tenant, collection, batch)

    monkeypatch.setattr(EntryTable, "searched_texts", slow)
    yield held
    held.go_on.set()


def test_a_search_after_preparing_builds_nothing(
    cache: ChunkCache, pages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.ingest([pages])
    leveller = Leveller(
        cache.catalog.entries.generations, cache._prepare, cache._prepare_tenant, most=9
    )
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
    cache: ChunkCache, live: Any, pages: Path, held: Held
) -> None:
    assert cache.health()["indexes"] == "on demand"
    cache.ingest([pages])
    found: list[Any] = []
    with live.behind(create_app(cache)) as url, httpx.Client(base_url=url, timeout=WAIT_S) as http:
        cache.keep_level()
        assert held.stopped.wait(WAIT_S)
        searching = threading.Thread(target=lambda: found.append(cache.search("owls", top_k=1)))
        searching.start()
        health, ready = http.get("/health"), http.get("/ready")
        assert (health.status_code, ready.status_code) == (200, 503)
        assert health.json()["indexes"] == ready.json()["indexes"] == "opening"
        assert found == []
        held.go_on.set()
        searching.join()
        assert found[0][0].title == "Owls"
        level = threading.Event()
        while cache.health()["indexes"] != "level":
            assert not level.wait(0.01)
        assert http.get("/ready").status_code == 200


@pytest.mark.parametrize(
    "who",
    [
        ChunkCache.keep_level,
        lambda cache: cache.search("owls"),
        lambda cache: cache.embed(["owls"]),
        lambda cache: cache.warm(document_ids=[]),
        lambda cache: cache.ingest([]),
        lambda cache: cache.ingest_bytes("a.md", b"Owls."),
        lambda cache: cache.ingest_texts([]),
    ],
    ids=["leveller", "search", "embed", "warm", "ingest", "ingest_bytes", "ingest_texts"],
)
def test_who_needs_no_embedder_does_not_wait_while_another_loads_it(
    open_cache: Callable[..., ChunkCache],
    monkeypatch: pytest.MonkeyPatch,
    who: Callable[[ChunkCache], Any],
) -> None:
    open_cache().ingest_bytes("owls.md", b"Owls hunt.")
    cache = open_cache()
    cache.load()
    loading, loaded = Held(), list[Any]()
    real = library.open_embedder

    def slow(*args: Any, **named: Any) -> Any:
        loading.stop()
        loaded.append(real(*args, **named))
        return loaded[-1]

    monkeypatch.setattr(library, "open_embedder", slow)
    waiting = threading.Thread(target=who, args=(cache,))
    waiting.start()
    assert loading.stopped.wait(WAIT_S)
    asking = threading.Thread(
        target=lambda: cache.ask("When do owls hunt?", documents=["At night."], max_tokens=1)
    )
    asking.start()
    asking.join(WAIT_S / 2)
    assert not asking.is_alive() and loaded == []
    loading.go_on.set()
    waiting.join()


@pytest.mark.parametrize("matches", [True, False])
def test_passages_are_made_ready_only_where_messages_are_searched(
    open_cache: Callable[..., ChunkCache], matches: bool
) -> None:
    cache = open_cache(retrieval={"match_messages": matches})
    cache.ingest_bytes("dog.md", b"A dog is no walrus.")
    cache._prepare("public", "default")
    cache._prepare_tenant("public")
    assert ("_matcher" in cache.__dict__) == matches


def test_closing_ends_a_build_at_its_next_batch(
    cache: ChunkCache, pages: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chunkcache.retrieval.collection_index._BATCH_ENTRIES", 1)
    cache.ingest([pages])
    closed = threading.Event()
    close_catalog = cache.catalog.close

    def close() -> None:
        close_catalog()
        closed.set()

    monkeypatch.setattr(cache.catalog, "close", close)
    cache.keep_level()
    assert held.stopped.wait(WAIT_S)
    closing = threading.Thread(target=cache.close)
    closing.start()
    assert closed.wait(WAIT_S)
    held.go_on.set()
    closing.join()
    assert held.batches == [1]
    assert not any(t.name == "chunkcache-leveller" for t in threading.enumerate())


def test_nothing_opens_the_catalog_after_closing(cache: ChunkCache) -> None:
    cache.close()
    uses = [cache.documents, cache.keep_level, lambda: cache.ingest_bytes("owls.md", b"Owls.")]
    for use in uses:
        with pytest.raises(ShuttingDown):
            use()
    assert "_catalog" not in cache.__dict__
    assert not any(t.name == "chunkcache-leveller" for t in threading.enumerate())
