"""Responses are kept for a while, in bounded room, and no tenant pushes another's out."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.errors import NotFound, StoreError
from chunkcache.forms import FunctionCall
from chunkcache.protocol import Message
from chunkcache.server.response_store import ResponseStore

KIB = 1024


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "responses.sqlite"


def keep(store: ResponseStore, tenant: str, name: str, chars: int = 10) -> None:
    turns = [Message(role="user", content="x" * chars)]
    store.keep(tenant, {"id": name}, [{"id": "msg"}], turns)


def has(store: ResponseStore, tenant: str, name: str) -> bool:
    try:
        return bool(store.get(tenant, name).body)
    except NotFound:
        return False


def test_what_is_kept_is_what_was_given_also_after_a_restart(path: Path) -> None:
    call = FunctionCall(name="look", arguments="{}", id="call_1")
    turns = [
        Message(role="user", content="the cät\0 😀"),
        Message(role="assistant", content="", calls=(call,)),
        Message(role="tool", content="there", call_id="call_1"),
    ]
    ResponseStore(path, 64 * KIB, 60).keep("a", {"id": "r1"}, [{"id": "msg"}], turns)
    store = ResponseStore(path, 64 * KIB, 60)
    kept = store.get("a", "r1")
    assert json.loads(kept.body) == {"id": "r1"}
    assert json.loads(kept.input_items) == [{"id": "msg"}]
    assert kept.turns == tuple(turns)
    assert not has(store, "b", "r1")


def test_nothing_is_written_before_something_is_kept(path: Path) -> None:
    store = ResponseStore(path, 64 * KIB, 60)
    assert not has(store, "a", "r1")
    with pytest.raises(NotFound):
        store.delete("a", "r1")
    assert not path.parent.exists()


def test_time_takes_them_in_turn(path: Path) -> None:
    clock = Clock()
    store = ResponseStore(path, 64 * KIB, 60, clock)
    keep(store, "a", "r1")
    clock.now_s = 30
    keep(store, "a", "r2")
    keep(store, "b", "r3")
    clock.now_s = 60
    assert has(store, "a", "r1")
    clock.now_s = 61
    assert not has(store, "a", "r1") and has(store, "a", "r2") and has(store, "b", "r3")
    with pytest.raises(NotFound, match="kept for 60 s"):
        store.delete("a", "r1")


def test_none_outlives_its_time_because_the_clock_was_set_back(path: Path) -> None:
    clock = Clock()
    store = ResponseStore(path, 64 * KIB, 60, clock)
    clock.now_s = 3600
    keep(store, "a", "r1")
    clock.now_s = 0
    keep(store, "a", "r2")
    assert has(store, "a", "r1") and has(store, "a", "r2")
    clock.now_s = 61
    assert not has(store, "a", "r1") and not has(store, "a", "r2")


def test_whoever_takes_most_room_loses_the_oldest(path: Path) -> None:
    store = ResponseStore(path, 20 * KIB, 60)
    keep(store, "small", "s1")
    for number in range(40):
        keep(store, "large", f"l{number}")
    assert has(store, "small", "s1") and has(store, "large", "l39")
    assert not has(store, "large", "l0")


def test_what_is_larger_than_all_the_room_is_not_kept_and_pushes_nothing_out(path: Path) -> None:
    store = ResponseStore(path, 4 * KIB, 60)
    keep(store, "a", "r1")
    keep(store, "a", "r2", chars=4 * KIB)
    assert has(store, "a", "r1") and not has(store, "a", "r2")
    nothing = ResponseStore(path, 0, 60)
    keep(nothing, "a", "r3")
    assert not has(nothing, "a", "r3")


def test_what_is_forgotten_is_not_in_the_file(path: Path) -> None:
    store = ResponseStore(path, 64 * KIB, 60)
    for name in ("secret-one", "other"):
        store.keep("a", {"id": name, "text": name * 50}, [], [])
    assert b"secret-one" in path.read_bytes()
    store.delete("a", "secret-one")
    assert b"secret-one" not in path.read_bytes() and has(store, "a", "other")


def test_servers_on_one_home_keep_side_by_side(path: Path) -> None:
    def run(server: int) -> None:
        store = ResponseStore(path, 64 * KIB, 60)
        for number in range(5):
            keep(store, "a", f"r{server}-{number}")

    threads = [Thread(target=run, args=(server,)) for server in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = ResponseStore(path, 64 * KIB, 60)
    assert all(has(store, "a", f"r{s}-{n}") for s in range(4) for n in range(5))


def test_a_damaged_file_costs_no_answer_and_says_what_to_do(path: Path, logged: Any) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database " * 100)
    store = ResponseStore(path, 64 * KIB, 60)
    keep(store, "a", "r1")
    assert [entry["event"] for entry in logged] == ["response_not_kept"]
    with pytest.raises(StoreError, match="may be deleted"):
        store.get("a", "r1")


@pytest.mark.parametrize("column", ["body", "input_items", "turns"])
@pytest.mark.parametrize("damage", [b"\x00" * 40, '{"id": "r2"}', b'{"id": "r1"} ', 7, None])
def test_what_is_not_what_was_kept_is_never_shown(path: Path, column: str, damage: Any) -> None:
    store = ResponseStore(path, 64 * KIB, 60)
    keep(store, "a", "r1")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            f"UPDATE OR REPLACE responses SET {column} = coalesce(?, zeroblob(0))", (damage,)
        )
        connection.commit()
    with pytest.raises(StoreError, match="r1 is damaged"):
        store.get("a", "r1")
    keep(store, "a", "r2")
    assert has(store, "a", "r2")


def test_what_another_version_kept_is_dropped(path: Path) -> None:
    store = ResponseStore(path, 64 * KIB, 60)
    keep(store, "a", "r1")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert not has(store, "a", "r1")
    keep(store, "a", "r2")
    assert has(store, "a", "r2")


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["keep", "delete", "wait"]),
            st.sampled_from("ab"),
            st.integers(0, 9),
            st.integers(0, 5000),
        ),
        max_size=12,
    )
)
def test_no_order_of_events_makes_it_grow(steps: list[tuple[str, str, int, int]]) -> None:
    clock, capacity_bytes = Clock(), 16 * KIB
    with TemporaryDirectory() as folder:
        path = Path(folder) / "responses.sqlite"
        store = ResponseStore(path, capacity_bytes, 10, clock)
        for step, (what, tenant, number, size) in enumerate(steps):
            if what == "keep":
                keep(store, tenant, f"r{step}", size)
                assert has(store, tenant, f"r{step}")
            elif what == "wait":
                clock.now_s += number
            elif has(store, tenant, f"r{number}"):
                store.delete(tenant, f"r{number}")
                assert not has(store, tenant, f"r{number}")
        if path.exists():
            with closing(sqlite3.connect(path)) as connection:
                sizes = "SELECT coalesce(sum(size_bytes), 0) FROM responses"
                assert connection.execute(sizes).fetchone()[0] <= capacity_bytes
