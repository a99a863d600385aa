"""OpenAI's cursor pages: `limit`, `order`, `after`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from chunkcache.errors import InvalidRequest
from chunkcache.server.shapes.body import Body

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.protocol import Json


class PageQuery(Body):
    """The query string of a list. `after` is the id of the last object already seen."""

    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


class FilePageQuery(PageQuery):
    """Lists of files may be longer, and narrowed to a purpose."""

    limit: int = Field(10_000, ge=1, le=10_000)
    purpose: str | None = None


def page(objects: Sequence[Json], query: PageQuery) -> Json:
    """One page of `objects`, which must be oldest first and have an `id` each.

    Raises:
        InvalidRequest: `after` names none of them.
    """
    ordered = list(objects) if query.order == "asc" else list(reversed(objects))
    start = 0
    if query.after is not None:
        ids = [item["id"] for item in ordered]
        if query.after not in ids:
            raise InvalidRequest.of("after", query.after, "an id in this list", "start anew")
        start = ids.index(query.after) + 1
    shown = ordered[start : start + query.limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + len(shown) < len(ordered),
    }
