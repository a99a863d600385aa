"""Pages for chunks that are to come, who has leased them, and the layers that have come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from chunkcache.engine.arrival import Arrival, NotArrived

WAIT_S = 30


def test_foreseen_chunks_take_a_part_of_the_pages_and_are_counted_when_wasted(
    open_bench: Callable[..., Any], tiny: Any
) -> None:
    bench = open_bench(tiny)
    chunks, metrics = bench.engine.chunks, bench.engine._metrics
    record = bench.record(bench.tokens(9, 1))
    chunks.clear()
    most = chunks._arena.num_pages // 4
    count, taken = 0, None
    while True:
        ids = bench.tokens(8, 1000 + count)
        key = record.key.of(ids, fingerprint=b"", born_prefix=(), salt=b"")
        expected = chunks.expect(key, record.stats, foreseen=True)
        if expected is None:
            break
        assert chunks.expect(key, record.stats, foreseen=True) is None, "it is on its way"
        chunks.settle(expected[0])
        count, taken = count + 1, key
    assert count == most
    resident = chunks.lease(taken)  # asked for: it counts as foreseen no more
    expected = chunks.expect(record.key, record.stats, foreseen=True)
    assert expected is None, "two pages, and room for one"
    chunks.release([resident])
    chunks.clear()
    assert metrics.prefetches_wasted._value.get() == most - 1
    assert chunks._foreseen_pages == 0


def test_a_chunk_is_expected_once(bench: Any) -> None:
    chunks, record = bench.engine.chunks, bench.record(bench.tokens(30, 1))
    resident, is_new = chunks.expect(record.key, record.stats)
    assert is_new
    other = chunks.expect(record.key, record.stats)
    assert other == (resident, False) and resident.leases == 3
    assert chunks.hold(record) is resident and resident.leases == 4
    chunks.settle(resident, "corrupt")
    assert chunks.lease(record.key) is None and not resident.is_listed
    fresh = chunks.hold(record)
    assert fresh is not None and fresh is not resident and fresh.arrival.is_whole
    chunks.release([resident, resident, fresh])


def test_leases_end_with_their_holder(bench: Any) -> None:
    chunks, record = bench.engine.chunks, bench.record(bench.tokens(30, 1))
    resident = chunks.hold(record)
    with pytest.raises(RuntimeError), chunks.leases() as leases:
        leases.add(resident)
        raise RuntimeError
    assert resident.leases == 0
    resident = chunks.lease(record.key)
    with chunks.leases() as leases:
        leases.add(resident)
        assert leases.pass_on() == [resident]
    assert resident.leases == 1
    chunks.lease_again(resident)
    chunks.release([resident, resident])
    with pytest.raises(AssertionError):
        chunks.lease_again(resident)


# ------------------------------------------------------------ one chunk's arrival


def test_an_arrival_counts_every_layer_once() -> None:
    arrival = Arrival(4)
    arrival.came(1, 3)
    arrival.came(2, 3)
    assert not arrival.is_whole and arrival.wait_for(1, 0) == 3
    with pytest.raises(NotArrived, match="layer 0: late"):
        arrival.wait_for(0, 0)
    arrival.came(0, 1)
    assert arrival.wait_for(0, 0) == 3
    arrival.came(3, 4)
    assert arrival.is_whole and arrival.wait_for(2, 0) == 4
    arrival.fail("corrupt")
    assert arrival.failure is None and arrival.is_settled, "what is there is there"


def test_what_failed_is_waited_for_no_longer() -> None:
    arrival, found = Arrival(2), []
    arrival.came(0, 1)

    def wait() -> None:
        try:
            arrival.wait_for(1, WAIT_S)
        except NotArrived as reason:
            found.append(str(reason))

    waiting = threading.Thread(target=wait)
    waiting.start()
    arrival.fail("corrupt")
    arrival.fail("closed")
    waiting.join(WAIT_S)
    assert found == ["layer 1: corrupt"] and arrival.is_settled
    assert arrival.wait_for(0, 0) == 1
