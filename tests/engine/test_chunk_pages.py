"""Chunks on the device: leased ones stay as they are, whatever comes and goes around them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chunkcache.chunk import ChunkKey, ChunkKV, ChunkStats, KVGeometry
from chunkcache.engine.chunk_pages import ChunkPages
from chunkcache.engine.resident import Resident
from chunkcache_kernels import Arena, Rotary, turned

PAGE, PAGES = 8, 10
GEOMETRY = KVGeometry(2, 2, 8, "float32", "test")
TURNED = (True, False)  # the second layer has no positions
LENGTHS = (5, 8, 9, 24, 30, 70)


class Angles:
    """RoPE of eight channels."""

    def __init__(self) -> None:
        angle = torch.outer(torch.arange(100.0), 10.0 ** -torch.arange(0, 4)).repeat(1, 2)
        self._table = Rotary(angle.cos(), angle.sin())

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._table.at(positions)

    def table(self, num_positions: int) -> Rotary:
        return self._table


def record_of(number: int, *, digest: bytes | None = None) -> ChunkKV:
    """Chunk `number`: its length and every number of it follow from its number."""
    count = LENGTHS[number % len(LENGTHS)]
    made = torch.Generator().manual_seed(number)
    nothing: Any = None
    kv = torch.randn(2, 2, count, 2, 8, generator=made)
    key = ChunkKey(digest or b"digest %d" % number, (number,) * count)
    return ChunkKV(key, GEOMETRY, kv, ChunkStats(nothing, nothing, nothing, 0.0))


def new_pages(on_evict: Callable[[int], None] = lambda _: None) -> ChunkPages:
    arena = Arena.empty(2, PAGES, 2, 8, PAGE, dtype=torch.float32, device=torch.device("cpu"))
    arena.keys.fill_(torch.nan)
    arena.values.fill_(torch.nan)
    angles: Any = Angles()
    return ChunkPages(arena, [angles if turns else None for turns in TURNED], on_evict=on_evict)


def assert_holds(pages: ChunkPages, resident: Resident, record: ChunkKV) -> None:
    """V bit for bit, K turned to its place in the chunk where the layer has positions."""
    count = record.num_tokens
    cos, sin = Angles().at(torch.arange(count))
    for layer, has_positions in enumerate(TURNED):
        keys, values = pages._arena.read_rows(layer, resident.pages)
        assert torch.equal(values[:count], record.kv[layer, 1])
        wanted = record.kv[layer, 0]
        if has_positions:
            torch.testing.assert_close(keys[:count], turned(wanted, cos, sin))
        else:
            assert torch.equal(keys[:count], wanted)
        assert not keys[count:].any() and not values[count:].any()


def pages_of(record: ChunkKV) -> int:
    return -(-record.num_tokens // PAGE)


class ChunksMachine(RuleBasedStateMachine):
    """Leases come and go; the model is who is listed and who is leased how often."""

    @initialize()
    def open(self) -> None:
        self.evicted = 0
        self.pages = new_pages(self.on_evict)
        self.listed: dict[int, Resident] = {}  # evicted ones are found out when they are asked for
        self.leases: list[tuple[Resident, ChunkKV]] = []

    def on_evict(self, count: int) -> None:
        self.evicted += count

    def forget_evicted(self) -> int:
        """Bring the model up to date; a leased chunk must never have gone."""
        gone = [n for n in self.listed if not self.pages.contains(record_of(n).key)]
        for number in gone:
            resident = self.listed.pop(number)
            assert all(resident is not leased for leased, _ in self.leases), "evicted while leased"
        return len(gone)

    @rule(number=st.integers(0, 11))
    def lease(self, number: int) -> None:
        record = record_of(number)
        found = self.pages.lease(record.key)
        assert found is self.listed.get(number)
        if found is not None:
            self.leases.append((found, record))

    @rule(number=st.integers(0, 11), listed=st.booleans())
    def hold(self, number: int, listed: bool) -> None:
        record, before = record_of(number), self.evicted
        known = self.listed.get(number) if listed else None
        in_use = {id(r): len(r.pages) for r, _ in self.leases}
        room = PAGES - sum(in_use.values())
        resident = self.pages.hold(record, listed=listed)
        if known is not None:
            assert resident is known and self.evicted == before
        elif resident is None:
            assert pages_of(record) > room, "there was room"
            assert self.evicted == before, "evicted in vain"
        else:
            assert pages_of(record) <= room
        assert self.forget_evicted() == self.evicted - before
        if resident is not None:
            assert resident.key == record.key and resident.is_listed is listed
            self.leases.append((resident, record))
            if listed:
                self.listed[number] = resident

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.leases) - 1))
        self.pages.release([self.leases.pop(which)[0]])

    @rule()
    def clear(self) -> None:
        self.pages.clear()
        self.listed.clear()

    @invariant()
    def what_is_leased_is_what_was_held(self) -> None:
        if not hasattr(self, "pages"):
            return
        for resident, record in self.leases:
            assert_holds(self.pages, resident, record)
        assert self.pages.leased == sum(r in self.listed.values() for r, _ in self.leases)

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "pages"):
            return
        self.pages._pool.check()
        alive = {id(r): r for r in [*self.listed.values(), *(r for r, _ in self.leases)]}
        held = [int(page) for r in alive.values() for page in r.pages]
        assert len(held) == len(set(held)), "two chunks share a page"
        usage, page_bytes = self.pages.usage(), self.pages._page_bytes
        assert usage.records == len(self.listed)
        assert usage.size_bytes == len(held) * page_bytes
        assert usage.capacity_bytes == PAGES * page_bytes


TestChunks = ChunksMachine.TestCase
TestChunks.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_lease_given_back_twice_is_a_fault_of_ours() -> None:
    pages = new_pages()
    resident = pages.hold(record_of(0))
    assert resident is not None
    pages.release([resident])
    with pytest.raises(AssertionError, match="given back twice"):
        pages.release([resident])


def test_the_same_digest_is_not_the_same_chunk() -> None:
    pages = new_pages()
    mine, other = record_of(0), record_of(6, digest=record_of(0).key.digest)
    first = pages.hold(mine)
    assert pages.lease(other.key) is None and not pages.contains(other.key)
    second = pages.hold(other)
    assert first is not None and second is not None
    assert_holds(pages, first, mine)  # it lives on, unlisted
    assert_holds(pages, second, other)
    assert pages.lease(mine.key) is None
    pages.release([first, second])
    assert pages.usage().size_bytes == second.size_bytes


def test_what_a_lossy_codec_gave_back_is_not_exact_however_it_comes() -> None:
    pages, name = new_pages(), "int4(group=32)"
    exact, rounded = record_of(0), replace(record_of(1), rounded_by=name)
    coming = pages.expect(record_of(2).key, exact.stats, rounded_by=name)
    sound = pages.expect(record_of(6).key, exact.stats)
    assert coming is not None and sound is not None
    found = [pages.hold(exact), pages.hold(rounded), coming[0], sound[0]]
    assert [(one.is_exact, one.codec) for one in found if one is not None] == [
        (True, None), (False, name), (False, name), (True, None),
    ]  # fmt: skip


def test_an_unlisted_chunk_is_the_callers_alone() -> None:
    pages = new_pages()
    doctored = record_of(0)
    doctored.kv[:, 1] += 1
    first = pages.hold(doctored, listed=False)
    assert first is not None and pages.lease(doctored.key) is None
    second = pages.hold(record_of(0))
    assert second is not None and second is not first
    assert_holds(pages, first, doctored)
    assert_holds(pages, second, record_of(0))
    pages.release([first])
    assert pages.usage().size_bytes == second.size_bytes


def test_a_record_that_cannot_be_written_leaves_no_page_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = new_pages()
    with monkeypatch.context() as patch:
        patch.setattr(pages, "_place", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pages.hold(record_of(5))
    assert pages.usage().size_bytes == 0
    assert pages.hold(record_of(5)) is not None


def test_threads_that_bring_up_one_record_at_once_share_one_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages, record, threads = new_pages(), record_of(1), 6
    meeting, true = threading.Barrier(threads), ChunkPages._write
    found: list[Resident | None] = []

    def write(of: ChunkPages, *args: Any) -> None:
        true(of, *args)
        meeting.wait(30)  # all of them have written before the first is listed

    monkeypatch.setattr(ChunkPages, "_write", write)
    running = [
        threading.Thread(target=lambda: found.append(pages.hold(record))) for _ in range(threads)
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(30)
    assert len(found) == threads and len({id(r) for r in found}) == 1
    (resident, *_) = found
    assert resident is not None and pages.leased == threads
    assert pages.usage().size_bytes == resident.size_bytes
    assert_holds(pages, resident, record)
    pages.release([resident] * threads)
    assert pages.leased == 0


def test_many_threads_never_read_what_another_writes() -> None:
    """Each looks at what it leases while the others evict whatever is not leased."""
    pages, faults = new_pages(), []
    evicted: list[int] = []
    pages._on_evict = evicted.append

    def work(first: int) -> None:
        try:
            for step in range(60):
                record = record_of((first + step * 5) % 12)
                resident = pages.lease(record.key) or pages.hold(record, listed=step % 3 > 0)
                if resident is not None:
                    assert_holds(pages, resident, record)
                    pages.release([resident])
        except BaseException as fault:
            faults.append(fault)

    running = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    assert faults == [] and evicted and pages.leased == 0
    pages._pool.check()
    pages.clear()
    assert pages.usage().size_bytes == 0


def test_a_chunk_that_a_waiting_request_will_want_leaves_last() -> None:
    pages = new_pages()
    wanted = record_of(0)  # a page, as each sixth is
    pages.release([pages.hold(wanted)])
    others = [record_of(6 * n) for n in range(1, PAGES)]
    for record in others:
        pages.release([pages.hold(record)])
    for _ in range(4):
        for record in others:
            pages.release([pages.lease(record.key)])
    pages.on_wait([wanted.key])
    for number in range(PAGES, PAGES + 8):
        pages.release([pages.hold(record_of(6 * number))])
        assert pages.contains(wanted.key), "the least used of all, but somebody waits for it"
    pages.on_wait_over([wanted.key])
    pages.release([pages.hold(record_of(600))])
    assert not pages.contains(wanted.key)
