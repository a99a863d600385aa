"""A file that a power failure left damaged: found before LMDB maps it, set aside, begun anew."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.errors import StoreError
from chunkcache.store.check import check_store
from chunkcache.store.damage import find_damage
from chunkcache.store.layout import map_bytes_for
from chunkcache.store.lmdb_env import RecordEnv

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from chunkcache.store.disk import DiskTier

    OpenTier = Callable[..., DiskTier]

CAPACITY = 64 * 1024 * 1024
PAGE = 4096
TOKENS = 40
RECORDS = 90


@pytest.fixture
def path(tmp_path: Path, open_tier: OpenTier, records: ModuleType) -> Path:
    """A closed store of two thirds of 90 records, with free lists and a tree of two levels."""
    tier = open_tier()
    for number in range(RECORDS):
        tier.put(records.make_record(number, num_tokens=TOKENS))
        if number % 3 == 2:
            tier.delete(records.make_record(number - 1, num_tokens=TOKENS).key)
    tier.close()
    return tmp_path / "kv"


def used_pages(path: Path) -> int:
    env = RecordEnv(path, map_bytes_for(CAPACITY))
    used: int = env._env.info()["last_pgno"] + 1
    env.close()
    return used


def zero(path: Path, first_page: int, last_page: int) -> None:
    with open(path / "data.mdb", "r+b") as file:
        file.seek(first_page * PAGE)
        file.write(bytes((last_page - first_page) * PAGE))


def is_reached(file: Path, page: int, pristine: bytes) -> bool:
    """Whether a page is in use, rather than free."""
    changed = bytearray(pristine)
    changed[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    file.write_bytes(changed)
    return find_damage(file, all_pages=True) is not None


def start_machine_again(path: Path) -> None:
    (path / "occupied").write_bytes(b"another start")


DAMAGE: dict[str, Callable[[Path, int], None]] = {
    "half of it is left": lambda path, used: os.truncate(path / "data.mdb", used * PAGE // 2),
    "three pages are left": lambda path, used: os.truncate(path / "data.mdb", 3 * PAGE),
    "half a page is left": lambda path, used: os.truncate(path / "data.mdb", PAGE // 2),
    "the first page is zero": lambda path, used: zero(path, 0, 1),
    "the second page is zero": lambda path, used: zero(path, 1, 2),
    "the second half is zero": lambda path, used: zero(path, used // 2, used),
    "the tail is zero": lambda path, used: zero(path, used - 30, used),
    "all but the meta pages is zero": lambda path, used: zero(path, 2, used),
    "it is another program's": lambda path, used: (path / "data.mdb").write_bytes(b"text" * 9000),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_set_aside_and_the_store_starts_empty(
    name: str, path: Path, open_tier: OpenTier, other_process: Any, records: ModuleType
) -> None:
    DAMAGE[name](path, used_pages(path))
    damaged = (path / "data.mdb").read_bytes()
    start_machine_again(path)
    answer = other_process.ask(  # in a process of its own, which LMDB might end with a signal
        "fill", path=path, capacity_bytes=CAPACITY, first=500, last=503, num_tokens=TOKENS
    )
    assert (answer["killed"], answer["code"]) == (False, 0)
    assert answer["told"][:4] == ["open", 500, 501, 502]
    (aside,) = path.glob("data.mdb.damaged-*")
    assert aside.read_bytes() == damaged, "nothing of it is lost"
    tier = open_tier()
    assert set(tier.scan()) == {
        records.make_record(number, num_tokens=TOKENS).key.digest for number in (500, 501, 502)
    }


def test_every_page_that_lmdb_trusts_is_looked_at(path: Path) -> None:
    file, used = path / "data.mdb", used_pages(path)
    env = RecordEnv(path, map_bytes_for(CAPACITY))
    with env.reading() as txn:
        trees = [txn.stat(), txn.stat(env._meta), txn.stat(env._slabs)]
    env.close()
    expected = 2 + sum(tree["branch_pages"] + tree["leaf_pages"] for tree in trees)
    expected += trees[-1]["entries"]  # each value begins with a page header
    pristine = file.read_bytes()
    found = []
    for page in range(used):
        zero(path, page, page + 1)
        found.append(find_damage(file, all_pages=True) is not None)
        file.write_bytes(pristine)
    free_lists = 1  # their tree is a single page
    assert sum(found) == expected + free_lists
    assert find_damage(file, all_pages=True) is None


def test_an_older_state_of_a_page_is_found(
    path: Path, open_tier: OpenTier, records: ModuleType
) -> None:
    before = (path / "data.mdb").read_bytes()
    tier = open_tier()
    for number in range(RECORDS, 2 * RECORDS):
        tier.put(records.make_record(number, num_tokens=TOKENS))
        tier.delete(records.make_record(number - 90, num_tokens=TOKENS).key)
    tier.close()
    file = path / "data.mdb"
    pristine = file.read_bytes()
    tried = 0
    for page in range(2, len(before) // PAGE):
        at = page * PAGE
        number, _, flags = struct.unpack_from("<QHH", pristine, at)
        older = before[at : at + PAGE]
        if number != page or flags not in (1, 2) or older == pristine[at : at + PAGE]:
            continue  # no page of a tree, or it has not changed
        file.write_bytes(pristine[:at] + older + pristine[at + PAGE :])
        assert (find_damage(file, all_pages=True) is not None) == is_reached(file, page, pristine)
        tried += 1
    assert tried > 5


@pytest.mark.parametrize("name", ["three pages are left", "the first page is zero"])
def test_a_file_that_another_process_has_open_is_refused_and_stays(
    name: str, path: Path, open_tier: OpenTier, other_process: Any
) -> None:
    used = used_pages(path)
    other_process.ask("hold", path=path, capacity_bytes=CAPACITY)
    DAMAGE[name](path, used)
    start_machine_again(path)
    with pytest.raises(StoreError, match=r"is damaged: .*Hint: stop all its users"):
        open_tier()
    assert not list(path.glob("data.mdb.damaged-*"))
    other_process.ask("release")
    assert open_tier().usage().records == 0
    assert len(list(path.glob("data.mdb.damaged-*"))) == 1


def test_a_check_refuses_a_damaged_file_and_sets_it_aside_with_fix(path: Path) -> None:
    os.truncate(path / "data.mdb", 9 * PAGE)
    with pytest.raises(StoreError, match=r"is truncated.*Hint: chunkcache check --fix"):
        check_store(path, CAPACITY)
    report = check_store(path, CAPACITY, fix=True)
    (aside,) = path.glob("data.mdb.damaged-*")
    assert report.records == 0 and report.problems == [f"data.mdb was damaged, it is now {aside}"]
    assert check_store(path, CAPACITY).clean


def test_of_several_damaged_files_the_last_one_stays(path: Path, open_tier: OpenTier) -> None:
    earlier = path / "data.mdb.damaged-20200101T000000Z"
    earlier.write_bytes(b"")
    os.truncate(path / "data.mdb", 9 * PAGE)
    open_tier()
    (aside,) = path.glob("data.mdb.damaged-*")
    assert aside != earlier


def test_pages_are_looked_at_once_per_start_of_the_machine(
    path: Path, open_tier: OpenTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def look(file: Path, *, all_pages: bool) -> str | None:
        looks.append(all_pages)
        return find_damage(file, all_pages=all_pages)

    monkeypatch.setattr("chunkcache.store.occupancy.find_damage", look)
    if not os.path.exists("/proc/sys/kernel/random/boot_id"):
        pytest.skip("this system does not name its starts; pages are looked at on every opening")
    open_tier().close()
    start_machine_again(path)
    open_tier().close()
    open_tier().close()
    assert looks == [False, True, False]
