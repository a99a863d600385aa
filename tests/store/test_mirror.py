"""What a process knows of `meta`: exact as long as it saw every commit."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from chunkcache.store.layout import MetaEntry
from chunkcache.store.lru import LruPolicy
from chunkcache.store.mirror import Mirror


def entry(size_bytes: int, created_ns: int = 0) -> MetaEntry:
    return MetaEntry(size_bytes, 1, created_ns, b"fp", "raw")


def test_own_commits_keep_a_mirror_current_and_a_missed_one_does_not() -> None:
    mirror = Mirror(LruPolicy())
    mirror.replace(7, [])
    mirror.added(8, b"a", entry(10))
    mirror.removed(9)
    assert mirror.is_current(9)
    mirror.added(11, b"b", entry(10))  # 10 was another process's
    assert not mirror.is_current(11)
    mirror.replace(11, [(b"a", entry(10).pack()), (b"b", entry(10).pack())])
    assert mirror.is_current(11)


def test_replacing_forgets_what_left_takes_what_came_and_keeps_the_order_of_use() -> None:
    mirror = Mirror(LruPolicy())
    mirror.replace(1, [(d, entry(10, n).pack()) for n, d in enumerate((b"a", b"b", b"c"))])
    mirror.used(b"a")
    mirror.replace(
        2,
        [
            (b"a", entry(10, 0).pack()),
            (b"c", entry(20, 2).pack()),  # was replaced by a larger one
            (b"e", entry(10, 9).pack()),
            (b"d", entry(10, 4).pack()),
        ],
    )
    assert mirror.victims(1000, 1000) == [b"a", b"c", b"d", b"e"], "newcomers by age"
    assert mirror.victims(11, 1000) == [b"a", b"c"]


def test_damaged_entries_are_named_and_not_taken_over() -> None:
    mirror = Mirror(LruPolicy())
    packed = entry(10).pack()
    assert mirror.replace(1, [(b"a", packed), (b"b", packed[:-1])]) == [b"b"]
    assert mirror.victims(1000, 1000) == [b"a"]


def test_a_batch_of_victims_is_bounded_but_for_one_larger_than_the_bound() -> None:
    mirror = Mirror(LruPolicy())
    for commit, size in enumerate((50, 10, 10, 10)):
        mirror.added(commit, b"%d" % commit, entry(size))
    assert mirror.victims(1000, 20) == [b"0"]
    mirror.removed(4, [b"0"])
    assert mirror.victims(1000, 20) == [b"1", b"2"]


def test_no_records_no_victims() -> None:
    assert Mirror(LruPolicy()).victims(10, 10) == []


@pytest.mark.parametrize("verb", ["lease", "lease_many"])
def test_whoever_leases_waits_until_another_record_is_in_its_place(
    verb: str, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    mirror, told = Mirror(LruPolicy()), list[str]()

    def lease() -> None:
        if verb == "lease":
            assert mirror.lease(b"a")
        else:
            assert mirror.lease_many([b"b", b"a"]) == {b"a": 1, b"b": 1}
            mirror.give_back(b"b")
        told.append("leased")

    assert mirror.change(b"a")
    thread = threading.Thread(target=lease)
    thread.start()
    eventually(lambda: bool(told or mirror._settled._waiters))  # type: ignore[attr-defined]
    told.append("settled")
    mirror.settle([b"a"])
    thread.join()
    assert told == ["settled", "leased"]
    assert not mirror.change(b"a") and mirror.change(b"a", leases=1)
    mirror.settle([b"a"])
    mirror.give_back(b"a")
    assert mirror.change(b"a") and not mirror._leases
