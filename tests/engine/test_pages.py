"""Pages: whoever holds one holds it alone or shares it on purpose, and none is ever lost."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chunkcache.engine.pages import PagePool


class PoolMachine(RuleBasedStateMachine):
    """Holders come and go; the model is a list of what each holds."""

    @initialize(num_pages=st.integers(1, 12))
    def open_pool(self, num_pages: int) -> None:
        self.pool = PagePool(num_pages, page_tokens=4)
        self.holders: list[list[int]] = []
        self.kept: list[int] = []  # released and kept, the next to be evicted first
        self.keeps: set[int] = set()  # pages that are kept once their last holder lets go
        self.evicted: list[int] = []

    def is_held(self, page: int) -> bool:
        return any(page in holder for holder in self.holders)

    @rule(count=st.integers(0, 13))
    def allocate(self, count: int) -> None:
        available, kept_before = self.pool.available, list(self.kept)
        self.evicted.clear()
        pages = self.pool.allocate(count)
        if pages is None:
            assert count > available
            assert self.evicted == []
            return
        assert len(pages) == len(set(pages)) == count
        assert not any(self.is_held(b) for b in pages)
        # only what was needed was evicted, the oldest first
        num_free = available - len(kept_before)
        assert self.evicted == kept_before[: max(0, count - num_free)]
        self.holders.append(pages)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        self.holders.remove(holder)
        self.pool.release(holder)
        self.kept += [b for b in reversed(holder) if b in self.keeps and not self.is_held(b)]

    @precondition(lambda self: self.holders or self.kept)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        known = sorted({b for holder in self.holders for b in holder} | set(self.kept))
        if not known:
            return
        pages = data.draw(st.lists(st.sampled_from(known), min_size=1, unique=True))
        self.pool.retain(pages)
        self.kept = [b for b in self.kept if b not in pages]
        self.holders.append(pages)

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data())
    def keep_when_released(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from([b for holder in self.holders for b in holder]))
        self.pool.keep_when_released(page, self.on_evict)
        self.keeps.add(page)

    def on_evict(self, page: int) -> None:
        self.evicted.append(page)
        self.kept.remove(page)
        self.keeps.remove(page)

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        held = {b for holder in self.holders for b in holder}
        assert self.pool.available == self.pool.num_pages - len(held)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(num_tokens=st.integers(0, 10_000), size=st.integers(1, 256))
@settings(deadline=None, max_examples=50)
def test_pages_for_is_the_least_number_that_holds_the_tokens(num_tokens: int, size: int) -> None:
    count = PagePool(1, size).pages_for(num_tokens)
    assert count * size >= num_tokens
    assert count == 0 or (count - 1) * size < num_tokens


@given(held=st.sets(st.integers(0, 19)), count=st.integers(1, 20))
@settings(deadline=None, max_examples=200)
def test_what_was_freed_last_is_taken_first_in_order(held: set[int], count: int) -> None:
    pool = PagePool(20, 4)
    everything = pool.allocate(20)
    assert everything is not None
    free = set(range(20)) - held
    pool.release(sorted(free))
    pages = pool.allocate(count)
    if count > len(free):
        assert pages is None
        return
    assert pages == sorted(free)[:count]  # the pages of a sequence come back in its order
    assert everything[0] == 0 and everything == list(range(20))


def test_pages_need_not_be_neighbours() -> None:
    pool = PagePool(6, 4)
    first = pool.allocate(6)
    assert first == [0, 1, 2, 3, 4, 5]
    pool.release([0, 2, 4])
    assert pool.allocate(3) == [0, 2, 4]
    assert pool.allocate(1) is None


def test_kept_pages_are_taken_only_when_the_free_ones_do_not_suffice() -> None:
    pool = PagePool(4, 4)
    evicted: list[int] = []
    pages = pool.allocate(2)
    assert pages == [0, 1]
    for page in pages:
        pool.keep_when_released(page, evicted.append)
    pool.release(pages)
    assert pool.allocate(2) == [2, 3]
    assert evicted == []
    assert pool.available == 2
    assert pool.allocate(1) == [1]  # the later page of the sequence goes first
    assert evicted == [1]


def test_a_kept_page_that_was_used_again_is_evicted_after_the_others() -> None:
    pool = PagePool(3, 4)
    evicted: list[int] = []
    pages = pool.allocate(3)
    assert pages is not None
    for page in pages:
        pool.keep_when_released(page, evicted.append)
        pool.release([page])
    pool.retain([0])
    pool.release([0])
    assert pool.allocate(3) is not None
    assert evicted == [1, 2, 0]
    pool.check()


def test_an_evicted_page_is_plain_again_when_its_next_holder_lets_go() -> None:
    pool = PagePool(1, 4)
    told: Counter[int] = Counter()
    pool.allocate(1)
    pool.keep_when_released(0, lambda page: told.update([page]))
    pool.release([0])
    assert pool.allocate(1) == [0]
    pool.release([0])
    assert pool.allocate(1) == [0]
    assert told == {0: 1}


def test_misuse_is_an_error_and_not_a_lost_page() -> None:
    pool = PagePool(2, 4)
    with pytest.raises(ValueError, match="page 0 is free"):
        pool.retain([0])
    with pytest.raises(ValueError, match="page 1 was released more often"):
        pool.release([1])
    with pytest.raises(ValueError, match="page 0 is not held"):
        pool.keep_when_released(0, lambda page: None)
    pool.check()
    assert pool.available == 2


def test_check_notices_a_lost_page_and_a_page_with_two_states() -> None:
    pool = PagePool(3, 4)
    pool._free.remove(1)
    with pytest.raises(AssertionError, match="lost"):
        pool.check()
    pool._free.append(1)
    pool._references[1] = 1
    with pytest.raises(AssertionError, match="held page is free"):
        pool.check()
