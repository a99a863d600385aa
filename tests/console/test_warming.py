"""Warm-ups from outside: progress, pause, resume, stop, and how they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from chunkcache.console.warming import WarmFigures, WarmReport, WarmState, WarmUps, WarmWish
from chunkcache.errors import InvalidRequest, ShuttingDown, StoreError

TOTAL = 5


@dataclass(frozen=True)
class Step:
    done: int
    total: int = TOTAL
    tokens: int = 100
    tokens_per_s: float = 10.0
    eta_s: float = 8.0
    left_out: int = 2
    left_out_reason: str | None = "no room"


class Work:
    """A warm-up whose chunks a test lets through, one by one."""

    def __init__(self) -> None:
        self.steps = threading.Semaphore(0)
        self.noted = threading.Semaphore(0)  # a progress call has returned
        self.asked: list[tuple[str, str]] = []
        self.failure: Exception | None = None
        self.stopped_reason: str | None = None

    def __call__(
        self,
        *,
        tenant: str,
        collection: str,
        document_ids: Sequence[str] | None = None,
        texts: Any = None,
        keep: Any = None,
        on_progress: Callable[[Any], None],
    ) -> WarmReport:
        self.asked.append((tenant, collection))
        for done in range(1, TOTAL + 1):
            assert self.steps.acquire(timeout=20)
            if self.failure is not None:
                raise self.failure
            on_progress(Step(done))
            self.noted.release()
        return WarmReport(
            chunks=TOTAL, already_warm=1, computed=TOTAL - 1, kept=2, refused=1, evicted=1,
            not_kept_reason="a quota", tokens=500, warmed_only=3,
            stopped_reason=self.stopped_reason,
        )  # fmt: skip


@pytest.fixture
def work() -> Any:
    return Work()


@pytest.fixture
def warm_ups(work: Work) -> Any:
    made = WarmUps(work)
    yield made
    work.steps.release(100)
    made.close()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ended(warm_ups: WarmUps, tenant: str = "public") -> WarmState:
    until(lambda: warm_ups.state(tenant).state not in {"running", "paused"})
    return warm_ups.state(tenant)


def let_through(work: Work, count: int) -> None:
    for _ in range(count):
        work.steps.release()
        assert work.noted.acquire(timeout=20)


def test_before_the_first_one_there_is_nothing_to_tell(warm_ups: WarmUps) -> None:
    assert warm_ups.state("public") == WarmState()
    assert warm_ups.state("public").state == "idle"


def test_progress_is_told_while_it_runs_and_the_outcome_after(
    warm_ups: WarmUps, work: Work
) -> None:
    started = warm_ups.start("public", WarmWish("vs_1"))
    assert (started.state, started.vector_store_id, started.total) == ("running", "vs_1", None)
    let_through(work, 2)
    state = warm_ups.state("public")
    assert (state.state, state.done, state.total, state.tokens) == ("running", 2, TOTAL, 100)
    assert (state.left_out, state.not_kept_reason) == (2, "no room"), "ahead of the others"
    assert state.tokens_per_s is not None and state.eta_s is not None
    # what is left is 80 tokens: at this rate it takes as long as is said
    assert state.eta_s * state.tokens_per_s == pytest.approx(80)
    let_through(work, 3)
    state = ended(warm_ups)
    assert (state.state, state.done, state.computed, state.tokens) == ("done", 3, 4, 500)
    assert (state.kept, state.refused, state.evicted, state.failed) == (2, 1, 1, 0)
    assert (state.left_out, state.not_kept_reason) == (0, "a quota")
    assert state.eta_s is None and state.ended_at is not None and state.warmed_only == 3
    assert work.asked == [("public", "vs_1")]


def test_a_paused_one_computes_nothing_until_it_is_resumed(warm_ups: WarmUps, work: Work) -> None:
    warm_ups.start("public", WarmWish("default"))
    let_through(work, 1)
    assert warm_ups.pause("public").state == "paused"
    work.steps.release(TOTAL)
    assert not work.noted.acquire(timeout=0.2)  # the chunk that was being computed waits
    assert warm_ups.state("public").done == 1
    assert warm_ups.resume("public").state == "running"
    assert ended(warm_ups).state == "done"


def test_the_rate_leaves_out_the_pause(warm_ups: WarmUps, work: Work) -> None:
    warm_ups.start("public", WarmWish("default"))
    warm_ups.pause("public")
    work.steps.release()
    time.sleep(0.5)
    warm_ups.resume("public")
    assert work.noted.acquire(timeout=20)
    rate = warm_ups.state("public").tokens_per_s
    job = warm_ups._jobs["public"]
    assert rate is not None and job._paused_s > 0.2
    whole_s = time.monotonic() - job._began_s
    assert rate > Step(1).tokens / whole_s


@pytest.mark.parametrize("paused", [False, True])
def test_one_that_is_stopped_ends_after_its_chunk(
    warm_ups: WarmUps, work: Work, paused: bool
) -> None:
    warm_ups.start("public", WarmWish("default"))
    let_through(work, 1)
    if paused:
        warm_ups.pause("public")
    warm_ups.stop("public")
    work.steps.release(TOTAL)
    state = ended(warm_ups)
    assert (state.state, state.done) == ("stopped", 1)
    assert "stays" in state.message


def test_each_tenant_has_one_at_a_time(warm_ups: WarmUps, work: Work) -> None:
    warm_ups.start("one", WarmWish("default"))
    with pytest.raises(InvalidRequest, match="there is one at a time"):
        warm_ups.start("one", WarmWish("vs_2"))
    warm_ups.start("two", WarmWish("default"))
    assert warm_ups.state("three").state == "idle"
    work.steps.release(2 * TOTAL)
    assert ended(warm_ups, "one").state == ended(warm_ups, "two").state == "done"
    assert warm_ups.start("one", WarmWish("vs_2")).state == "running"


def test_verbs_that_do_not_fit_say_so(warm_ups: WarmUps, work: Work) -> None:
    for verb in (warm_ups.pause, warm_ups.resume, warm_ups.stop):
        with pytest.raises(InvalidRequest, match="start one first"):
            verb("public")
    warm_ups.start("public", WarmWish("default"))
    with pytest.raises(InvalidRequest, match=r"got 'resume'.*this one is running"):
        warm_ups.resume("public")
    warm_ups.pause("public")
    with pytest.raises(InvalidRequest, match=r"got 'pause'.*this one is paused"):
        warm_ups.pause("public")


def test_why_it_ended_early_is_told(warm_ups: WarmUps, work: Work) -> None:
    work.stopped_reason = "the store is full"
    work.steps.release(TOTAL)
    warm_ups.start("public", WarmWish("default"))
    state = ended(warm_ups)
    assert (state.state, state.message, state.done) == ("stopped", "the store is full", 3)


def test_a_failure_is_told_in_its_words_and_a_fault_in_ours(
    warm_ups: WarmUps, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.failure = StoreError("the disk went away")
    work.steps.release()
    warm_ups.start("public", WarmWish("default"))
    state = ended(warm_ups)
    assert (state.state, state.message) == ("failed", "the disk went away")
    work.failure = RuntimeError("the secret inner state")
    work.steps.release()
    warm_ups.start("public", WarmWish("default"))
    state = ended(warm_ups)
    assert state.state == "failed"
    assert "secret" not in state.message and "log" in state.message


def test_closing_stops_what_runs_and_lets_nothing_begin(work: Work) -> None:
    warm_ups = WarmUps(work)
    warm_ups.start("public", WarmWish("default"))
    warm_ups.pause("public")
    work.steps.release(TOTAL)
    warm_ups.close()
    assert warm_ups.state("public").state == "stopped"
    with pytest.raises(ShuttingDown):
        warm_ups.start("public", WarmWish("default"))
    warm_ups.close()


def some_of_each(form: type[WarmFigures]) -> dict[str, Any]:
    """Another figure in each field, and a text where it holds one."""
    return {
        name: f"why {name}" if "str" in str(field.annotation) else number
        for number, (name, field) in enumerate(form.model_fields.items(), start=3)
    }


def test_every_figure_of_a_report_is_one_of_the_state_once_it_has_ended(
    warm_ups: WarmUps, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = some_of_each(WarmFigures)
    told = WarmReport(chunks=TOTAL, **figures)
    both = WarmReport.model_fields.keys() & WarmState.model_fields.keys()
    assert both == WarmFigures.model_fields.keys(), "what both tell is written once"
    true = Work.__call__

    def call(self: Work, **wish: Any) -> WarmReport:
        true(self, **wish)
        return told

    monkeypatch.setattr(Work, "__call__", call)
    work.steps.release(TOTAL)
    warm_ups.start("public", WarmWish("default"))
    assert ended(warm_ups).model_dump(include=set(figures)) == figures


def test_parts_that_ran_side_by_side_add_up() -> None:
    one = some_of_each(WarmReport)
    parts = [WarmReport(**one), WarmReport(seconds=0.5), WarmReport(**one | {"seconds": 99.0})]
    doubled = {name: 2 * figure for name, figure in one.items() if isinstance(figure, int)}
    reasons = {name: reason for name, reason in one.items() if isinstance(reason, str)}
    assert WarmReport.of_parts(parts).model_dump() == doubled | reasons | {"seconds": 99.0}
