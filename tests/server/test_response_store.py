"""Responses are kept for a while, in bounded memory, and no tenant pushes another's out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkcache.errors import NotFound
from chunkcache.protocol import Message
from chunkcache.server.response_store import ResponseStore

KIB = 1024


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def keep(store: ResponseStore, tenant: str, name: str, chars: int = 10) -> None:
    turns = [Message(role="user", content="x" * chars)]
    store.keep(tenant, {"id": name}, [{"id": "msg"}], turns)


def has(store: ResponseStore, tenant: str, name: str) -> bool:
    try:
        return bool(store.get(tenant, name).body)
    except NotFound:
        return False


def test_what_is_kept_is_what_was_given() -> None:
    store = ResponseStore(64 * KIB, 60)
    keep(store, "a", "r1")
    kept = store.get("a", "r1")
    assert json.loads(kept.body) == {"id": "r1"}
    assert json.loads(kept.input_items) == [{"id": "msg"}]
    assert kept.turns == (Message(role="user", content="x" * 10),)
    assert not has(store, "b", "r1")


def test_time_takes_them_in_turn() -> None:
    clock = Clock()
    store = ResponseStore(64 * KIB, 60, clock)
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


def test_whoever_takes_most_room_loses_the_oldest() -> None:
    store = ResponseStore(20 * KIB, 60)
    keep(store, "small", "s1")
    for number in range(40):
        keep(store, "large", f"l{number}")
    assert has(store, "small", "s1") and has(store, "large", "l39")
    assert not has(store, "large", "l0")


def test_what_is_larger_than_all_the_room_is_not_kept_and_pushes_nothing_out() -> None:
    store = ResponseStore(4 * KIB, 60)
    keep(store, "a", "r1")
    keep(store, "a", "r2", chars=4 * KIB)
    assert has(store, "a", "r1") and not has(store, "a", "r2")
    nothing = ResponseStore(0, 60)
    keep(nothing, "a", "r1")
    assert not has(nothing, "a", "r1")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["keep", "delete", "wait"]),
            st.sampled_from("ab"),
            st.integers(0, 9),
            st.integers(0, 5000),
        )
    )
)
def test_no_order_of_events_makes_it_grow(steps: list[tuple[str, str, int, int]]) -> None:
    clock, capacity_bytes = Clock(), 16 * KIB
    store = ResponseStore(capacity_bytes, 10, clock)
    for step, (what, tenant, number, size) in enumerate(steps):
        if what == "keep":
            keep(store, tenant, f"r{step}", size)
            assert has(store, tenant, f"r{step}")
        elif what == "wait":
            clock.now_s += number
        elif has(store, tenant, f"r{number}"):
            store.delete(tenant, f"r{number}")
        kept = [k for held in store._kept.values() for k in held.values()]
        assert sum(k.size_bytes for k in kept) == sum(store._sizes_bytes.values())
        assert sum(store._sizes_bytes.values()) <= capacity_bytes
