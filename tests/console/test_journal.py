"""The journal of requests: bounded, per tenant, without what would fill the memory."""

from __future__ import annotations

from typing import Any

from chunkcache.chunk import Rung, SpanKind
from chunkcache.console.journal import QUESTION_CHARS, Journal
from chunkcache.protocol import (
    AnswerFinished,
    AnswerRequest,
    Message,
    Report,
    SpanReport,
    Timings,
)


def asked(question: str, **fields: Any) -> AnswerRequest:
    return AnswerRequest(messages=[Message(role="user", content=question)], **fields)


def finished(miss: str | None = None) -> AnswerFinished:
    span = SpanReport(
        kind=SpanKind.CHUNK, start=0, tokens=900, rung=Rung.REPAIRED, reused=0, recomputed=900,
        computed=0, miss=miss, recomputed_positions=list(range(900)),
    )  # fmt: skip
    report = Report(
        rung=Rung.REPAIRED, policy="question", budget=1.0, prompt_tokens=900, reused_tokens=0,
        recomputed_tokens=900, computed_tokens=0, cost_ratio=1.0, spans=[span], timings=Timings(),
    )  # fmt: skip
    return AnswerFinished(
        text="so", finish_reason="stop", completion_tokens=3, report=report, citations=[]
    )


def test_a_request_is_kept_with_its_report_and_the_reason_of_its_miss() -> None:
    journal = Journal()
    journal.begin(asked("why?", collection="vs_1"))("ok", finished("absent"))
    (record,) = journal.of("public")
    assert (record.question, record.outcome, record.vector_store_id) == ("why?", "ok", "vs_1")
    assert record.completion_tokens == 3
    assert record.report is not None
    assert record.report.spans[0].miss == "absent"
    assert record.report.spans[0].recomputed == 900
    assert record.report.spans[0].recomputed_positions == []


def test_the_response_keeps_its_positions() -> None:
    answer = finished()
    Journal().begin(asked("why?"))("ok", answer)
    assert len(answer.report.spans[0].recomputed_positions) == 900


def test_one_that_came_to_nothing_is_kept_without_a_report() -> None:
    journal = Journal()
    journal.begin(asked("why?"))("cancelled", None)
    (record,) = journal.of("public")
    assert (record.outcome, record.report, record.completion_tokens) == ("cancelled", None, 0)


def test_tenants_do_not_see_each_other() -> None:
    journal = Journal()
    journal.begin(asked("a secret", tenant="one"))("ok", finished())
    assert journal.of("two") == []
    assert len(journal.of("one")) == 1


def test_memory_is_bounded_for_each_tenant() -> None:
    journal = Journal(limit=3)
    journal.begin(asked("q" * 10_000, tenant="quiet"))("ok", finished())
    for number in range(7):
        journal.begin(asked(f"question {number}", tenant="busy"))("ok", finished())
    assert [r.question for r in journal.of("busy")] == [f"question {n}" for n in (4, 5, 6)]
    assert len({r.id for r in journal.of("busy")}) == 3
    (quiet,) = journal.of("quiet")
    assert len(quiet.question) == QUESTION_CHARS
