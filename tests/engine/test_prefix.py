"""The prefix cache against a slow twin that remembers every registered prefix whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chunkcache.engine.pages import PagePool
from chunkcache.engine.prefix import PrefixCache

SIZE = 2
SALTS = [b"anna", b"ben"]

# two token ids and short prompts: prefixes are shared, diverge and come back all the time
prompts = st.lists(st.integers(0, 1), min_size=0, max_size=11).map(tuple)


class PrefixMachine(RuleBasedStateMachine):
    """Requests match, get pages, compute, register and leave, as the engine makes them.

    `content` is what is really in a page: the salt and the whole prefix up to its end. A match is
    right exactly if every matched page has that content for the prompt asked for.
    """

    @initialize(num_pages=st.integers(2, 14))
    def open_cache(self, num_pages: int) -> None:
        self.pool = PagePool(num_pages, SIZE)
        self.cache = PrefixCache(self.pool)
        self.content: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        self.running: list[tuple[bytes, tuple[int, ...], list[int]]] = []

    @rule(salt=st.sampled_from(SALTS), tokens=prompts)
    def admit(self, salt: bytes, tokens: tuple[int, ...]) -> None:
        shared = self.cache.match(salt, tokens[:-1])
        self.check_match(salt, tokens[:-1], shared)
        own = self.pool.allocate(self.pool.pages_for(len(tokens)) - len(shared))
        if own is None:
            self.pool.release(shared)
            return
        assert not set(own) & {b for _, _, held in self.running for b in held}
        pages = shared + own
        for index, page in enumerate(pages):
            if page in own:  # only what is not shared is written
                self.content[page] = (salt, tokens[: (index + 1) * SIZE])
        self.running.append((salt, tokens, pages))

    def check_match(self, salt: bytes, tokens: Sequence[int], pages: list[int]) -> None:
        for index, page in enumerate(pages):
            assert self.content[page] == (salt, tuple(tokens[: (index + 1) * SIZE]))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        salt, tokens, pages = data.draw(st.sampled_from(self.running))
        exact = data.draw(st.integers(0, len(tokens)))
        self.cache.insert(salt, tokens[:exact], pages)
        found = self.cache.match(salt, tokens[:exact])
        assert len(found) == exact // SIZE  # what was just registered is found, to the last page
        self.check_match(salt, tokens, found)
        self.pool.release(found)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.running))
        self.running.remove(request)
        self.pool.release(request[2])

    @invariant()
    def the_books_balance(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()
            held = {b for _, _, pages in self.running for b in pages}
            assert self.pool.available == self.pool.num_pages - len(held)


TestPrefix = PrefixMachine.TestCase
TestPrefix.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


class LongestPrefixMachine(RuleBasedStateMachine):
    """Without eviction a match is as long as the longest registered prefix, no more and no less."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(400, SIZE)
        self.cache = PrefixCache(self.pool)
        self.registered: set[tuple[bytes, tuple[int, ...]]] = set()

    @rule(salt=st.sampled_from(SALTS), tokens=prompts)
    def register(self, salt: bytes, tokens: tuple[int, ...]) -> None:
        pages = self.pool.allocate(self.pool.pages_for(len(tokens)))
        assert pages is not None
        self.cache.insert(salt, tokens, pages)
        self.pool.release(pages)
        ends = range(SIZE, len(tokens) + 1, SIZE)
        self.registered |= {(salt, tokens[:end]) for end in ends}

    @rule(salt=st.sampled_from(SALTS), tokens=prompts)
    def match(self, salt: bytes, tokens: tuple[int, ...]) -> None:
        pages = self.cache.match(salt, tokens)
        expected = max(
            (n for n in range(len(tokens) // SIZE + 1) if (salt, tokens[: n * SIZE]) in
             self.registered), default=0,
        )  # fmt: skip
        assert len(pages) == expected
        self.pool.release(pages)
        self.pool.check()


TestLongestPrefix = LongestPrefixMachine.TestCase
TestLongestPrefix.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


class Colliding(int):
    """A token id that hashes like every other one: the worst an adversary could find."""

    def __hash__(self) -> int:
        return 7


def collide(*tokens: int) -> tuple[int, ...]:
    return tuple(Colliding(t) for t in tokens)


def registered(cache: PrefixCache, pool: PagePool, salt: bytes, tokens: Sequence[int]) -> list[int]:
    pages = pool.allocate(pool.pages_for(len(tokens)))
    assert pages is not None
    cache.insert(salt, tokens, pages)
    return pages


def test_tokens_whose_hashes_collide_are_told_apart() -> None:
    pool = PagePool(20, SIZE)
    cache = PrefixCache(pool)
    first = registered(cache, pool, b"s", collide(1, 2, 5, 6))
    assert hash(collide(1, 2)) == hash(collide(3, 4))
    assert cache.match(b"s", collide(3, 4, 5, 6)) == []
    second = registered(cache, pool, b"s", collide(3, 4, 5, 6))
    # the second pages hold the same tokens after different ones: not the same KV
    assert cache.match(b"s", collide(1, 2, 5, 6)) == first
    assert cache.match(b"s", collide(3, 4, 5, 6)) == second


def test_salts_whose_hashes_collide_share_nothing() -> None:
    class Salt(bytes):
        def __hash__(self) -> int:
            return 7

    pool = PagePool(20, SIZE)
    cache = PrefixCache(pool)
    registered(cache, pool, Salt(b"anna"), collide(1, 2, 3, 4))
    assert cache.match(Salt(b"ben"), collide(1, 2, 3, 4)) == []
    assert len(cache.match(Salt(b"anna"), collide(1, 2, 3, 4))) == 2


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 32, 33])
def test_only_full_pages_are_registered_and_matched(length: int) -> None:
    pool = PagePool(20, 16)
    cache = PrefixCache(pool)
    tokens = list(range(length))
    registered(cache, pool, b"s", tokens)
    assert len(cache.match(b"s", tokens)) == length // 16
    assert len(cache.match(b"s", [*tokens, *range(100, 140)])) == length // 16


def test_an_evicted_block_is_never_found_again() -> None:
    pool = PagePool(2, SIZE)
    cache = PrefixCache(pool)
    pool.release(registered(cache, pool, b"s", [1, 2, 3, 4]))
    taken = pool.allocate(1)
    assert taken == [1]  # the end of the prefix goes first, so that the rest stays useful
    found = cache.match(b"s", [1, 2, 3, 4])
    assert found == [0]
    pool.release(found)
    pool.allocate(1)
    assert cache.match(b"s", [1, 2, 3, 4]) == []
    pool.check()


def test_what_came_after_an_evicted_block_is_not_found_after_another_prefix() -> None:
    """A child outlives its parent when two requests computed the same prefix side by side."""
    pool = PagePool(4, SIZE)
    cache = PrefixCache(pool)
    first = pool.allocate(1)
    second = pool.allocate(2)
    assert first == [0] and second == [1, 2]
    cache.insert(b"s", [1, 2], first)
    cache.insert(b"s", [1, 2, 3, 4], second)  # its own copy of the first page stays private
    assert cache.match(b"s", [1, 2, 3, 4]) == [0, 2]
    pool.release([0, 2])
    pool.release(first)
    pool.allocate(2)  # page 3 was free, page 0 had to be forgotten; its child is held
    assert cache.match(b"s", [1, 2, 3, 4]) == []
    pool.release([0, 3])
    other = registered(cache, pool, b"s", [9, 9])
    assert other == [0]  # the room of the old parent, with other tokens
    assert cache.match(b"s", [9, 9, 3, 4]) == [0]
    pool.release([0])
    # the request that still holds the child registers again: all of its prefix is found
    cache.insert(b"s", [1, 2, 3, 4], second)
    assert cache.match(b"s", [1, 2, 3, 4]) == [1, 2]
    pool.check()


def test_what_came_after_a_child_whose_parent_is_known_anew_is_found_again() -> None:
    pool = PagePool(5, SIZE)
    cache = PrefixCache(pool)
    first, second = pool.allocate(1), pool.allocate(2)
    assert first == [0] and second == [1, 2]
    cache.insert(b"s", [1, 2], first)
    cache.insert(b"s", [1, 2, 3, 4], second)
    longer = [1, 2, 3, 4, 5, 6]
    shared, own = cache.match(b"s", longer), pool.allocate(1)
    assert shared == [0, 2] and own == [3]
    cache.insert(b"s", longer, [*shared, *own])
    pool.release([0, 0])
    pool.release([2, 3])  # page 2 is held by the second request still, page 3 is only kept
    assert sorted(pool.allocate(2) or ()) == [0, 4]
    assert cache.match(b"s", longer) == []
    cache.insert(b"s", [1, 2, 3, 4], second)
    assert cache.match(b"s", longer) == [1, 2, 3]
    pool.check()


def test_fewer_blocks_than_tokens_register_what_there_is() -> None:
    pool = PagePool(4, SIZE)
    cache = PrefixCache(pool)
    pages = pool.allocate(1)
    assert pages is not None
    cache.insert(b"s", [1, 2, 3, 4], pages)
    assert cache.match(b"s", [1, 2, 3, 4]) == pages
