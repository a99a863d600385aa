"""Pages are slices: turning them one by one gives the list, each thing once."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.errors import InvalidRequest
from chunkcache.server.paging import PageQuery, page

ORDERS: tuple[Literal["asc", "desc"], ...] = ("asc", "desc")


@settings(deadline=None, max_examples=60)
@given(count=st.integers(0, 30), limit=st.integers(1, 12), order=st.sampled_from(ORDERS))
def test_turning_pages_gives_the_whole_list_in_order(
    count: int, limit: int, order: Literal["asc", "desc"]
) -> None:
    objects = [{"id": f"o{number}"} for number in range(count)]
    seen, after = [], None
    while True:
        found = page(objects, PageQuery(limit=limit, order=order, after=after))
        ids = [item["id"] for item in found["data"]]
        assert len(ids) <= limit
        assert (found["first_id"], found["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
        seen += ids
        if not found["has_more"]:
            break
        after = found["last_id"]
    wanted = [item["id"] for item in objects]
    assert seen == (wanted if order == "asc" else wanted[::-1])


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 30), limit=st.integers(1, 12), order=st.sampled_from(ORDERS))
def test_turning_back_gives_the_same_list_from_its_end(
    count: int, limit: int, order: Literal["asc", "desc"]
) -> None:
    objects = [{"id": f"o{number}"} for number in range(count)]
    whole = [item["id"] for item in page(objects, PageQuery(limit=100, order=order))["data"]]
    seen, before = whole[-1:], whole[-1]
    while True:
        found = page(objects, PageQuery(limit=limit, order=order, before=before))
        seen = [item["id"] for item in found["data"]] + seen
        if not found["has_more"]:
            break
        before = found["first_id"]
    assert seen == whole


def test_a_cursor_that_is_not_in_the_list_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        page([{"id": "a"}], PageQuery(after="b"))
    assert caught.value.param == "after"
