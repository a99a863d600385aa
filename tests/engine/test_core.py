"""The engine as a machine: limits, order, cancellation, failure, shutdown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from chunkcache.engine import core
from chunkcache.engine.core import Engine
from chunkcache.engine.decoder import DecoderModel
from chunkcache.engine.generation import Generation
from chunkcache.engine.observe import QuestionScores
from chunkcache.engine.outcome import Delta, Outcome
from chunkcache.engine.pages import PagePool
from chunkcache.errors import (
    Cancelled,
    ChunkCacheError,
    Overloaded,
    PromptTooLong,
    ShuttingDown,
)
from chunkcache.protocol import Sampling


class Gate:
    """Holds the model's forward pass until told to go on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        true = DecoderModel.forward

        def forward(model: DecoderModel, *args: Any, **kw: Any) -> Any:
            self.entered.set()
            assert self.go_on.wait(30)
            return true(model, *args, **kw)

        patch.setattr(DecoderModel, "forward", forward)


def run_out(request: Any) -> Outcome:
    return next(e for e in request.events() if isinstance(e, Outcome))


def test_deltas_add_up_to_the_text(bench: Any) -> None:
    request = bench.submit(bench.prompt([]), {}, exact_only=True, max_new_tokens=30)
    events = list(request.events())
    assert "".join(e.text for e in events[:-1] if isinstance(e, Delta)) == events[-1].text
    assert events[-1].finish_reason in {"stop", "length"}
    assert len(events[-1].token_ids) <= 30


def test_gauges_say_what_is_now_also_when_no_step_follows(
    tiny: DecoderModel, open_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(tiny, max_running=2)
    value = bench.engine._metrics.registry.get_sample_value

    def gauges() -> tuple[float | None, float | None]:
        return value("chunkcache_running_requests"), value("chunkcache_queue_depth")

    gate = Gate(monkeypatch)
    requests = [bench.submit(bench.prompt([]), {}, exact_only=True)]
    assert gate.entered.wait(30)
    requests += [bench.submit(bench.prompt([]), {}, exact_only=True) for _ in range(4)]
    assert gauges() == (1, 4), "no step has begun since they came"
    gate.go_on.set()
    for request in requests:
        run_out(request)
    bench.wait_until_idle()
    assert gauges() == (0, 0)


def test_more_requests_than_pages_all_finish(
    tiny: DecoderModel, open_bench: Callable[..., Any]
) -> None:
    """32 KV tokens' worth of room for requests of 30: they take turns, none is lost."""
    room = 64 * tiny.geometry.bytes_per_token
    bench = open_bench(tiny, kv_capacity_bytes=max(room, 1 << 20), max_running=3)
    requests = [
        bench.submit(bench.prompt([bench.tokens(5, s)]), {}, exact_only=True, max_new_tokens=6)
        for s in range(12)
    ]
    for request in requests:
        assert len(run_out(request).token_ids) >= 1


def test_the_waiting_get_room_when_the_pool_is_full(
    tiny: DecoderModel, open_bench: Callable[..., Any]
) -> None:
    bench = open_bench(tiny, kv_capacity_bytes=1 << 20, page_tokens=8)
    capacity = bench.engine.capacity_tokens
    size = min(capacity, tiny.context_tokens) * 2 // 3
    filler = bench.tokens(size - 40, 1)
    requests = [
        bench.submit(bench.prompt([filler]), {}, exact_only=True, salt=b"%d" % i) for i in range(3)
    ]
    texts = {run_out(r).token_ids for r in requests}
    assert len(texts) == 1
    bench.engine.pages.check()


def test_a_prompt_that_can_never_fit_is_refused_with_the_limit(bench: Any) -> None:
    prompt = bench.prompt([bench.tokens(2040, 1)])
    with pytest.raises(PromptTooLong, match="2048"):
        bench.submit(prompt, {}, exact_only=True)


def test_a_full_queue_is_overloaded_and_recovers(
    tiny: DecoderModel, open_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(tiny, queue_limit=1, max_running=1)
    gate = Gate(monkeypatch)
    first = bench.submit(bench.prompt([]), {}, exact_only=True)
    assert gate.entered.wait(30)
    second = bench.submit(bench.prompt([]), {}, exact_only=True)
    with pytest.raises(Overloaded, match="queue_limit"):
        bench.submit(bench.prompt([]), {}, exact_only=True)
    gate.go_on.set()
    assert run_out(first).token_ids == run_out(second).token_ids
    assert run_out(bench.submit(bench.prompt([]), {}, exact_only=True)).token_ids


def test_cancelling_a_running_request_frees_its_pages_and_spares_the_others(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    doomed = bench.submit(bench.prompt([bench.tokens(60, 1)]), {}, exact_only=True)
    assert gate.entered.wait(30)
    other = bench.submit(bench.prompt([bench.tokens(60, 2)]), {}, exact_only=True)
    bench.engine.cancel(doomed)
    bench.engine.cancel(doomed)
    gate.go_on.set()
    with pytest.raises(Cancelled):
        run_out(doomed)
    assert run_out(other).token_ids


def test_cancelling_a_waiting_request(
    tiny: DecoderModel, open_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(tiny, max_running=1)
    gate = Gate(monkeypatch)
    first = bench.submit(bench.prompt([]), {}, exact_only=True)
    assert gate.entered.wait(30)
    waiting = bench.submit(bench.prompt([]), {}, exact_only=True)
    bench.engine.cancel(waiting)
    gate.go_on.set()
    with pytest.raises(Cancelled, match="waited"):
        run_out(waiting)
    assert run_out(first).token_ids


def test_closing_fails_what_runs_and_what_waits_and_refuses_the_rest(
    tiny: DecoderModel, open_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(tiny, max_running=1)
    gate = Gate(monkeypatch)
    requests = [bench.submit(bench.prompt([]), {}, exact_only=True) for _ in range(3)]
    assert gate.entered.wait(30)
    closer = threading.Thread(target=bench.engine.close)
    closer.start()
    gate.go_on.set()
    closer.join(30)
    assert not closer.is_alive()
    for request in requests[1:]:
        with pytest.raises(ShuttingDown):
            run_out(request)
    with pytest.raises(ShuttingDown):
        bench.submit(bench.prompt([]), {}, exact_only=True)
    bench.engine.close()


def test_a_fault_in_a_step_reaches_every_caller_and_the_engine_lives_on(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = DecoderModel.forward
    calls = []

    def forward(model: DecoderModel, *args: Any, **kw: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a cosmic ray")
        return true(model, *args, **kw)

    monkeypatch.setattr(DecoderModel, "forward", forward)
    failing = bench.submit(bench.prompt([bench.tokens(90, 1)]), {}, exact_only=True)
    with pytest.raises(ChunkCacheError, match="cosmic ray"):
        run_out(failing)
    assert run_out(bench.submit(bench.prompt([]), {}, exact_only=True)).token_ids


def test_a_submission_between_the_last_look_and_the_closing_is_failed(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Any] = []
    submitted = threading.Event()
    closer = threading.Thread(target=bench.engine.close)
    true = Engine._receive

    def receive(engine: Engine, *, block: bool) -> None:
        true(engine, block=block)
        if late:
            return
        late.append(bench.submit(bench.prompt([]), {}, exact_only=True))
        closer.start()
        while not engine._door.is_shut:
            time.sleep(0.001)
        submitted.set()

    monkeypatch.setattr(Engine, "_receive", receive)
    early = bench.submit(bench.prompt([]), {}, exact_only=True)
    assert submitted.wait(30)
    closer.join(30)
    assert not closer.is_alive() and bench.engine.unfinished == 0
    for request in (early, late[0]):
        with pytest.raises(ShuttingDown):
            run_out(request)


def _pages_run_out(patch: pytest.MonkeyPatch, engine: Engine, doomed: Any) -> None:
    pool, true = engine.pages, PagePool.allocate  # that of the chunks has its own

    def allocate(of: PagePool, count: int) -> Any:
        return 1 / 0 if of is pool and doomed() else true(of, count)

    patch.setattr(PagePool, "allocate", allocate)


def _planning_fails(patch: pytest.MonkeyPatch, engine: Engine, doomed: Any) -> None:
    true = Generation.plan
    patch.setattr(Generation, "plan", lambda r, *a: 1 / 0 if doomed() else true(r, *a))


def _laying_out_fails(patch: pytest.MonkeyPatch, engine: Engine, doomed: Any) -> None:
    true = core.SequenceKV
    patch.setattr(core, "SequenceKV", lambda *a, **k: 1 / 0 if doomed() else true(*a, **k))


@pytest.mark.parametrize("fault", [_pages_run_out, _planning_fails, _laying_out_fails])
def test_a_fault_while_a_request_is_admitted_leaks_no_page_and_no_lease(
    bench: Any, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    chunks = [bench.tokens(20, s) for s in (1, 2)]
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    prompt = bench.prompt(chunks)
    bench.answer(prompt, {}, exact_only=True)  # so that the doomed one holds shared pages, too
    bench.wait_until_idle()
    gate = Gate(monkeypatch)
    other = bench.submit(bench.prompt([]), {}, exact_only=True, max_new_tokens=9)
    assert gate.entered.wait(30)
    with monkeypatch.context() as patch:
        failures = iter([True])
        fault(patch, bench.engine, lambda: next(failures, False))
        doomed = bench.submit(bench.prompt(chunks[::-1]), {1: records[2]}, "none", budget=0.0)
        gate.go_on.set()
        bench.wait_until_idle()
    with pytest.raises(ChunkCacheError, match="ZeroDivisionError"):
        run_out(doomed)
    assert len(run_out(other).token_ids) >= 1
    bench.engine.pages.check()
    assert bench.engine.pages.available == bench.engine.pages.num_pages
    assert bench.engine.chunks.leased == 0


def _doomed_begin(request: Any) -> None:
    request._policy = None


def _doomed_sampler(request: Any) -> None:
    request._choices[0]._sampler = None


def _doomed_scores(request: Any) -> None:
    class Scores(QuestionScores):
        def look(self, view: Any) -> None:
            raise RuntimeError("a look at the wrong moment")

    request._new_scores = lambda model: Scores(request._prompt.num_tokens, 0)


@pytest.mark.parametrize("doom", [_doomed_begin, _doomed_sampler, _doomed_scores])
def test_the_fault_of_one_request_is_its_own(
    bench: Any, monkeypatch: pytest.MonkeyPatch, doom: Any
) -> None:
    """All run in the same steps; the neighbours' answers are what they are alone."""
    chunks = [bench.tokens(60, s) for s in (1, 2)]
    records = {i + 1: bench.record(ids) for i, ids in enumerate(chunks)}
    prompt = bench.prompt(chunks)
    alone = bench.answer(prompt, records, "question", budget=0.5, salt=b"alone", max_new_tokens=8)
    gate = Gate(monkeypatch)
    first = bench.submit(prompt, records, "question", budget=0.5, salt=b"a", max_new_tokens=8)
    assert gate.entered.wait(30)
    submit = bench.engine.submit
    with monkeypatch.context() as patch:
        patch.setattr(bench.engine, "submit", lambda request: (doom(request), submit(request)))
        doomed = bench.submit(prompt, records, "question", budget=0.5, salt=b"b", max_new_tokens=8)
    second = bench.submit(prompt, records, "question", budget=0.5, salt=b"c", max_new_tokens=8)
    gate.go_on.set()
    with pytest.raises(ChunkCacheError, match="the engine failed"):
        run_out(doomed)
    assert run_out(first).token_ids == run_out(second).token_ids == alone.token_ids


def test_a_fault_in_a_step_spares_those_who_wait(
    tiny: DecoderModel, open_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(tiny, max_running=1)
    true, calls = DecoderModel.forward, []

    def forward(model: DecoderModel, *args: Any, **kw: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            while bench.engine.unfinished < 2:
                time.sleep(0.001)
            bench.engine._receive(block=False)
            raise RuntimeError("a cosmic ray")
        return true(model, *args, **kw)

    monkeypatch.setattr(DecoderModel, "forward", forward)
    failing = bench.submit(bench.prompt([]), {}, exact_only=True)
    waiting = bench.submit(bench.prompt([]), {}, exact_only=True)
    with pytest.raises(ChunkCacheError, match="cosmic ray"):
        run_out(failing)
    assert run_out(waiting).token_ids


def test_a_decoding_request_is_not_held_up_by_a_long_prefill(
    tiny: DecoderModel, open_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stall-free batching: each step has the decode row and what fits of the prefill."""
    bench = open_bench(tiny, step_tokens=16)
    steps: list[list[int]] = []
    true = DecoderModel.forward

    def forward(model: DecoderModel, batch: Any, *args: Any, **kw: Any) -> Any:
        steps.append([len(rows) for rows in batch])
        return true(model, batch, *args, **kw)

    monkeypatch.setattr(DecoderModel, "forward", forward)
    decoding = bench.submit(bench.prompt([]), {}, exact_only=True, max_new_tokens=40)
    next(iter(decoding.events()))
    run_out(bench.submit(bench.prompt([bench.tokens(200, 1)]), {}, exact_only=True))
    mixed = [s for s in steps if len(s) == 2 and s[1] > 1]
    assert len(mixed) >= 200 // 16 - 2
    assert all(rows[0] == 1 and sum(rows) <= 16 for rows in mixed)
    bench.engine.cancel(decoding)


def test_seeds_make_sampling_repeatable_whoever_else_runs(bench: Any) -> None:
    prompt = bench.prompt([bench.tokens(20, 1)])

    def wish(seed: int) -> Sampling:
        return Sampling(temperature=1.5, top_p=0.9, top_k=50, seed=seed)

    alone = run_out(bench.submit(prompt, {}, exact_only=True, sampling=wish(7), max_new_tokens=12))
    crowd = [
        bench.submit(prompt, {}, exact_only=True, sampling=wish(s), max_new_tokens=12)
        for s in (1, 7, 2)
    ]
    answers = [run_out(r).token_ids for r in crowd]
    assert answers[1] == alone.token_ids
    assert len(set(answers)) == 3


def test_the_engine_logs_its_faults(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entries: list[Any] = []

    class Log:
        def error(self, event: str, **details: Any) -> None:
            entries.append((event, details))

    monkeypatch.setattr(core, "log", Log())
    monkeypatch.setattr(DecoderModel, "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(ChunkCacheError):
        run_out(bench.submit(bench.prompt([]), {}, exact_only=True))
    assert entries[0][0] == "engine_step_failed" and "ZeroDivision" in str(entries[0][1])
