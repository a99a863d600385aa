"""OpenAI's cursor pages: `limit`, `order`, `after`, `before`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from chunkcache.errors import InvalidRequest
from chunkcache.server.shapes.body import Parameters, stated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.protocol import Json


class PageQuery(Parameters):
    """The query string of a list.

    `after` is the id of the last object already seen, `before` that of the first: what is nearest
    to it is shown.
    """

    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None

    @model_validator(mode="after")
    def _one_direction(self) -> Self:
        if self.after is not None and self.before is not None:
            raise stated("after and before exclude each other; send one of them")
        return self


class FilePageQuery(PageQuery):
    """Lists of files may be longer, and narrowed to a purpose."""

    limit: int = Field(10_000, ge=1, le=10_000)
    purpose: str | None = None


def page(objects: Sequence[Json], query: PageQuery) -> Json:
    """One page of `objects`, which must be oldest first and have an `id` each.

    Raises:
        InvalidRequest: `after` or `before` names none of them.
    """
    ordered = list(objects) if query.order == "asc" else list(reversed(objects))
    ids = [item["id"] for item in ordered]
    if query.before is not None:
        end = _place("before", query.before, ids)
        start = max(0, end - query.limit)
        has_more = start > 0
    else:
        start = 0 if query.after is None else _place("after", query.after, ids) + 1
        end = start + query.limit
        has_more = end < len(ids)
    shown = ordered[start:end]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": has_more,
    }


def _place(name: str, cursor: str, ids: Sequence[str]) -> int:
    if cursor not in ids:
        raise InvalidRequest.of(name, cursor, "an id in this list", "start anew")
    return ids.index(cursor)
