"""Flushing goes on, whatever one flush ran into."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import structlog

from chunkcache.errors import StoreError
from chunkcache.store.syncing import Syncing


@pytest.mark.parametrize("failure", [StoreError("store: the disk is full"), OSError("odd")])
def test_a_flush_that_fails_is_said_and_tried_again(
    failure: Exception, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    calls: list[int] = []

    def sync() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise failure

    with structlog.testing.capture_logs() as logs:
        syncing = Syncing(sync, 0.001)
        eventually(lambda: len(calls) > 2)
        syncing.stop()
    assert [line["effect"] for line in logs] == ["tried again"]
