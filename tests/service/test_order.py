"""Orders of passages: the longest known prefix is found, nothing is lost, tenants are apart."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.service.order import OrderBook, RankedPassage

NAMES = "abcdef"
SIZES = {name: 3 + index % 3 for index, name in enumerate(NAMES)}
orders = st.lists(st.sampled_from(NAMES), max_size=6)


def passages(names: Sequence[str]) -> list[RankedPassage]:
    return [RankedPassage(name.encode(), SIZES[name]) for name in names]


def remember(book: OrderBook, names: Sequence[str], root: bytes = b"s") -> None:
    book.remember(root, [name.encode() for name in names])


def arranged(book: OrderBook, names: Sequence[str], root: bytes = b"s") -> list[str]:
    return [names[i] for i in book.arrange(root, passages(names))]


def shared_tokens(order: Sequence[str], known: Sequence[Sequence[str]]) -> int:
    """Tokens of the longest prefix of `order` that some known order begins with."""
    best = 0
    for other in known:
        tokens = 0
        for mine, theirs in zip(order, other, strict=False):
            if mine != theirs:
                break
            tokens += SIZES[mine]
        best = max(best, tokens)
    return best


def best_possible(names: Sequence[str], known: Sequence[Sequence[str]]) -> int:
    """The slow twin: of every known order, as much as the passages allow."""
    best = 0
    for other in known:
        left, tokens = Counter(names), 0
        for name in other:
            if not left[name]:
                break
            left[name] -= 1
            tokens += SIZES[name]
        best = max(best, tokens)
    return best


@given(known=st.lists(orders, max_size=6), names=orders)
@settings(deadline=None, max_examples=300)
def test_no_order_shares_more_and_no_passage_is_lost(
    known: list[list[str]], names: list[str]
) -> None:
    book = OrderBook()
    for order in known:
        remember(book, order)
    found = book.arrange(b"s", passages(names))
    assert sorted(found) == list(range(len(names)))
    assert shared_tokens([names[i] for i in found], known) == best_possible(names, known)


@given(known=st.lists(orders, max_size=4), names=orders)
@settings(deadline=None, max_examples=100)
def test_what_is_not_shared_stays_as_ranked(known: list[list[str]], names: list[str]) -> None:
    book = OrderBook()
    for order in known:
        remember(book, order)
    found = book.arrange(b"s", passages(names))
    count, tokens = 0, best_possible(names, known)
    while sum(SIZES[names[i]] for i in found[:count]) < tokens:
        count += 1
    assert found[count:] == sorted(found[count:])


def test_of_equal_prefixes_the_better_ranked_passage_leads() -> None:
    book = OrderBook()
    remember(book, "ad")
    remember(book, "da")
    assert arranged(book, "da") == ["d", "a"]
    assert arranged(book, "ad") == ["a", "d"]


def test_tenants_and_heads_do_not_see_each_other() -> None:
    book = OrderBook()
    remember(book, "cab", root=b"one")
    assert arranged(book, "abc", root=b"one") == ["c", "a", "b"]
    assert arranged(book, "abc", root=b"two") == ["a", "b", "c"]


def test_the_oldest_orders_are_forgotten_and_used_ones_are_not() -> None:
    book = OrderBook(capacity_edges=6)
    remember(book, "cab")
    remember(book, "fed")
    remember(book, "cab")
    remember(book, "ba")
    assert arranged(book, "abc") == ["c", "a", "b"]
    assert arranged(book, "def") != ["f", "e", "d"]


class CountingEdges(OrderedDict[Any, int]):
    """Counts the look-ups of a search."""

    looked_up = 0

    def get(self, *args: Any) -> Any:
        self.looked_up += 1
        return super().get(*args)


def test_a_hostile_tree_is_searched_in_bounded_time() -> None:
    """Orders of thirty passages, 17,000 nodes to visit if nothing stopped the search."""
    names = [bytes([i]) for i in range(30)]
    book = OrderBook()
    for first in names:
        for second in names:
            for third in names[:20]:
                book.remember(b"s", [first, second, third])
    counting = CountingEdges(book._edges)
    book._edges = counting
    order = book.arrange(b"s", [RankedPassage(name, 1) for name in names])
    assert sorted(order) == list(range(30))
    assert 0 < counting.looked_up <= 2000 * len(names)
