"""The scheduler: decodes never wait, the budget holds, the oldest goes first, nobody starves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from chunkcache.engine.scheduler import Candidate, Share, schedule


@st.composite
def candidate_lists(draw: st.DrawFn) -> list[Candidate]:
    """Requests in any order; a decoding one has one row, as a rule, but need not."""
    ids = draw(st.lists(st.integers(0, 1000), max_size=12, unique=True))
    return [
        Candidate(
            i, draw(st.sampled_from([0, 1, 1, 3]) if decodes else st.integers(0, 40)), decodes
        )
        for i in ids
        for decodes in [draw(st.booleans())]
    ]


@given(candidates=candidate_lists(), budget=st.integers(1, 64))
@settings(deadline=None, max_examples=300)
def test_every_step_keeps_the_promises(candidates: list[Candidate], budget: int) -> None:
    shares = schedule(candidates, budget)
    rows = {share.request_id: share.rows for share in shares}
    by_id = {c.request_id: c for c in candidates}
    assert len(rows) == len(shares), "a request got two shares"
    assert all(0 < n <= by_id[i].pending_rows for i, n in rows.items())

    decode_rows = sum(c.pending_rows for c in candidates if c.is_decode)
    for candidate in candidates:
        if candidate.is_decode:
            assert rows.get(candidate.request_id, 0) == candidate.pending_rows
    assert sum(rows.values()) <= max(budget, decode_rows)

    # work-conserving: the step is full, or nobody has anything left to run
    pending = sum(c.pending_rows for c in candidates)
    assert sum(rows.values()) >= min(budget, pending)

    # oldest first: whoever is cut short has nobody younger served after them
    waiting = sorted((c for c in candidates if not c.is_decode), key=lambda c: c.request_id)
    cut_short = False
    for candidate in waiting:
        got = rows.get(candidate.request_id, 0)
        assert not (cut_short and got), "a younger prefill overtook an older one"
        cut_short = cut_short or got < candidate.pending_rows


@given(candidates=candidate_lists(), budget=st.integers(1, 64), data=st.data())
@settings(deadline=None, max_examples=100)
def test_the_order_in_which_requests_are_listed_changes_nobodys_share(
    candidates: list[Candidate], budget: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(candidates))
    first, second = schedule(candidates, budget), schedule(shuffled, budget)
    assert {(s.request_id, s.rows) for s in first} == {(s.request_id, s.rows) for s in second}


def test_nothing_pending_is_an_empty_step() -> None:
    assert schedule([], 64) == []
    assert schedule([Candidate(1, 0, False), Candidate(2, 0, True)], 64) == []


def test_a_prefill_is_split_where_the_budget_ends() -> None:
    candidates = [Candidate(9, 1, True), Candidate(4, 100, False), Candidate(2, 30, False)]
    assert schedule(candidates, 64) == [Share(9, 1), Share(2, 30), Share(4, 33)]


def test_more_decodes_than_the_budget_all_run_and_prefill_waits() -> None:
    decodes = [Candidate(i, 1, True) for i in range(20)]
    shares = schedule([*decodes, Candidate(99, 50, False)], 16)
    assert {s.request_id for s in shares} == set(range(20))


@given(
    prompts=st.lists(st.tuples(st.integers(1, 90), st.integers(0, 12)), min_size=1, max_size=10),
    budget=st.integers(2, 32),
    seats=st.integers(1, 4),
)
@settings(deadline=None, max_examples=100)
def test_every_request_finishes_and_no_decode_ever_misses_a_step(
    prompts: list[tuple[int, int]], budget: int, seats: int
) -> None:
    """A simulated engine: `seats` at once, admitted in order, prefill and then decode."""
    waiting = list(enumerate(prompts))
    prefill: dict[int, int] = {}
    decode: dict[int, int] = {}
    finished: list[int] = []
    total = sum(rows + answer for rows, answer in prompts)
    steps = 0
    while waiting or prefill or decode:
        while waiting and len(prefill) + len(decode) < seats:
            request_id, (rows, _) = waiting.pop(0)
            prefill[request_id] = rows
        candidates = [Candidate(i, n, False) for i, n in prefill.items()]
        candidates += [Candidate(i, 1, True) for i in decode]
        shares = {s.request_id: s.rows for s in schedule(candidates, budget)}
        assert shares, "a step is empty while something is pending"
        assert set(decode) <= set(shares)
        for request_id in list(decode):
            decode[request_id] -= 1
            if decode[request_id] == 0:
                del decode[request_id]
                finished.append(request_id)
        for request_id in list(prefill):
            prefill[request_id] -= shares.get(request_id, 0)
            if prefill[request_id] == 0:
                del prefill[request_id]
                if prompts[request_id][1]:
                    decode[request_id] = prompts[request_id][1]
                else:
                    finished.append(request_id)
        steps += 1
        assert steps <= total, "some step did no work"
    assert sorted(finished) == list(range(len(prompts)))


def test_who_waits_for_chunks_runs_when_nothing_else_can_and_alone() -> None:
    coming = [Candidate(1, 700, False, is_arriving=True), Candidate(2, 5, False, is_arriving=True)]
    decoding, prefilling = Candidate(3, 1, True), Candidate(4, 9, False)
    assert schedule([*coming, decoding, prefilling], 64) == [Share(3, 1), Share(4, 9)]
    assert schedule(coming, 64) == [Share(1, 64)]
    assert schedule(coming[::-1], 64) == [Share(1, 64)]
    assert schedule([*coming, Candidate(5, 0, True)], 64) == [Share(1, 64)]


def test_whose_pass_was_given_up_waits_for_all_of_its_chunks() -> None:
    late = Candidate(1, 7, False, is_arriving=True, was_given_up=True)
    other = Candidate(2, 5, False, is_arriving=True)
    assert schedule([late], 64) == []
    assert schedule([late, other], 64) == [Share(2, 5)]
    here = Candidate(1, 7, False, was_given_up=True)
    assert schedule([here, other], 64) == [Share(1, 7)]
