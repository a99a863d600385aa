"""Answers of `/v1/responses` that can be read again and gone on from, in memory for a while."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.protocol import Json, Message

_OVERHEAD_BYTES = 1024  # of what is kept, beside its text


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """A response, what was asked, and the conversation up to and with its answer."""

    body: bytes
    input_items: bytes
    turns: tuple[Message, ...]
    size_bytes: int
    kept_at: float

    @classmethod
    def of(
        cls, response: Json, input_items: Sequence[Json], turns: Sequence[Message], now: float
    ) -> KeptResponse:
        """Kept as JSON, which is smaller than its objects, and whose size is known."""
        body, items = json.dumps(response).encode(), json.dumps(list(input_items)).encode()
        text_bytes = sum(len(turn.content.encode()) for turn in turns)
        size_bytes = len(body) + len(items) + text_bytes + _OVERHEAD_BYTES
        return cls(body, items, tuple(turns), size_bytes, now)


class ResponseStore:
    """Keeps responses by tenant and id. For one thread, the event loop's.

    Where there is too little room, the tenant that takes most of it loses its oldest response, so
    that nobody's conversations are pushed out by somebody else's.

    Args:
        capacity_bytes: of all tenants together; 0: nothing is kept.
        ttl_s: how long a response is kept.
        clock: seconds, never going back.
    """

    def __init__(
        self, capacity_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._kept: dict[str, OrderedDict[str, KeptResponse]] = {}
        self._sizes_bytes: dict[str, int] = {}

    def keep(
        self,
        tenant: str,
        response: Json,
        input_items: Sequence[Json],
        turns: Sequence[Message],
    ) -> None:
        """Keep a response. One that is larger than all the room there is is not kept."""
        self._expire()
        kept = KeptResponse.of(response, input_items, turns, self._clock())
        if kept.size_bytes > self._capacity_bytes:
            return
        while sum(self._sizes_bytes.values()) + kept.size_bytes > self._capacity_bytes:
            largest = max(self._sizes_bytes, key=self._sizes_bytes.__getitem__)
            self._drop(largest, next(iter(self._kept[largest])))
        self._kept.setdefault(tenant, OrderedDict())[response["id"]] = kept
        self._sizes_bytes[tenant] = self._sizes_bytes.get(tenant, 0) + kept.size_bytes

    def get(self, tenant: str, response_id: str) -> KeptResponse:
        """A response of this tenant's. Raises NotFound."""
        self._expire()
        kept = self._kept[tenant].get(response_id) if tenant in self._kept else None
        if kept is None:
            raise NotFound(
                f"Response with id '{response_id[:80]}' not found. Hint: responses are kept for "
                f"{self._ttl_s:g} s, in memory, unless store is false.",
                param="response_id",
            )
        return kept

    def delete(self, tenant: str, response_id: str) -> None:
        """Forget a response; those that went on from it stay. Raises NotFound."""
        self.get(tenant, response_id)
        self._drop(tenant, response_id)

    def _expire(self) -> None:
        limit = self._clock() - self._ttl_s
        for tenant in list(self._kept):
            while tenant in self._kept:
                response_id, kept = next(iter(self._kept[tenant].items()))
                if kept.kept_at >= limit:
                    break
                self._drop(tenant, response_id)

    def _drop(self, tenant: str, response_id: str) -> None:
        kept = self._kept[tenant].pop(response_id)
        self._sizes_bytes[tenant] -= kept.size_bytes
        if not self._kept[tenant]:
            del self._kept[tenant], self._sizes_bytes[tenant]
