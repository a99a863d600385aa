"""Sweeps, the picture of one, and advice on sizes."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.hitrate.advice import advise
from chunkcache.evaluate.hitrate.amounts import parse_bytes, shown_bytes
from chunkcache.evaluate.hitrate.bound import best_hit_rates
from chunkcache.evaluate.hitrate.curve import Costs, Point, Workload, sweep
from chunkcache.evaluate.hitrate.findings import Wishes, analyse
from chunkcache.evaluate.hitrate.picture import draw_curve
from chunkcache.evaluate.hitrate.simulated import Device
from chunkcache.evaluate.hitrate.synthetic import ZipfTraffic
from chunkcache.evaluate.hitrate.trace import RecordSizes, Trace, TracedRequest, measure

SVG = "{http://www.w3.org/2000/svg}"


def workload(trace: Trace, **costs: Any) -> Workload:
    sizes = RecordSizes(1000)
    return Workload(trace, sizes, measure(trace, sizes), Costs(**costs))


@pytest.fixture(scope="module")
def zipf() -> Workload:
    return workload(ZipfTraffic(chunks=200, requests=600, per_request=3, tokens=100).trace())


@pytest.fixture(scope="module")
def points(zipf: Workload) -> dict[str, list[Point]]:
    whole = zipf.facts.footprint_bytes
    sizes = [whole // 50, whole, whole // 10, whole // 4, whole // 10]
    return sweep(zipf, ["windowed", "lru"], sizes)


def test_a_sweep_is_by_size_and_grows(points: dict[str, list[Point]], zipf: Workload) -> None:
    assert list(points) == ["windowed", "lru"]
    for line in points.values():
        assert [p.memory_bytes for p in line] == sorted({p.memory_bytes for p in line})
        assert len(line) == 4
        rates = [p.replay.hit_rate for p in line]
        assert rates == sorted(rates) and rates[0] < rates[-1]
        assert rates[-1] == pytest.approx(zipf.facts.highest_token_hit_rate)


def circles(svg: ElementTree.Element, color: str) -> list[tuple[float, float, str]]:
    found = [c for c in svg.iter(f"{SVG}circle") if c.get("fill") == color]
    return [(float(c.get("cx", "")), float(c.get("cy", "")), c[0].text or "") for c in found]


def test_the_points_of_the_picture_are_those_of_the_table(points: dict[str, list[Point]]) -> None:
    """Told back from the pixels, by the scale that the axis of rates has."""
    pairs = {
        policy: [(p.memory_bytes, p.replay.hit_rate) for p in line]
        for policy, line in points.items()
    }
    text = draw_curve(pairs, title="a < b & c", limits={"most": 0.9})
    assert not re.search(r"<script|href|url\(", text)
    drawn = ElementTree.fromstring(text)
    texts = {t.text: float(t.get("y", "")) - 4 for t in drawn.iter(f"{SVG}text")}
    bottom, top = texts["0 %"], texts["100 %"]
    assert "a < b & c" in texts and any((t or "").startswith("most 90") for t in texts)
    lines = list(drawn.iter(f"{SVG}polyline"))
    assert len(lines) == len(points)
    for (policy, line), drawn_line in zip(points.items(), lines, strict=True):
        places = circles(drawn, drawn_line.get("stroke", ""))
        assert len(places) == len(line)
        for (x, y, said), point, pair in zip(
            places, line, drawn_line.get("points", "").split(), strict=True
        ):
            assert pair == f"{x:.2f},{y:.2f}"
            assert (bottom - y) / (bottom - top) == pytest.approx(point.replay.hit_rate, abs=1e-4)
            assert said.startswith(f"{policy}, {shown_bytes(point.memory_bytes)}: ")
        across = [x for x, _, _ in places]
        assert across == sorted(across)


def test_a_picture_of_one_size_can_be_drawn() -> None:
    drawn = ElementTree.fromstring(draw_curve({"lru": [(4096, 0.5)]}, title=""))
    assert len(circles(drawn, "#0b62c4")) == 1


def cycle(letters: str, times: int) -> Trace:
    """The same passages of a token again and again."""
    requests = [TracedRequest(float(n), [c], [1]) for n, c in enumerate(letters * times)]
    return Trace("cycle", lambda: iter(requests))


def test_advice_is_the_least_that_suffices() -> None:
    """Ten passages in a circle, and LRU: all of them or nothing."""
    work = workload(cycle("abcdefghij", 20))
    advice = advise(work, 0.9, policy="lru", with_disk=False)
    assert advice.disk_bytes == 0
    assert 9_000 < advice.memory_bytes <= 10_000
    assert advice.replay.hit_rate == pytest.approx(0.95)
    assert advice.sentence() == (
        "For 90% hits you need 10 kB of memory, which saves 95% of the time to compute passages "
        "(95.0% hits)."
    )


def test_advice_takes_disk_for_hits_and_memory_for_time() -> None:
    slow = Device(bytes_per_s=1e6)  # a millisecond a passage; computing one takes two
    work = workload(cycle("abcdefghij", 20), tokens_per_s=500.0, disk=slow)
    advice = advise(work, 0.9, policy="lru")
    everything = work.facts.disk_footprint_bytes
    assert 0.9 * everything < advice.disk_bytes <= everything
    assert 9_000 < advice.memory_bytes <= 10_000, "loads would cost half of what hits save"
    fast = workload(cycle("abcdefghij", 20), tokens_per_s=500.0, disk=Device(bytes_per_s=1e9))
    advice = advise(fast, 0.9, policy="lru")
    assert advice.memory_bytes <= 1000, "the largest prompt is enough"
    assert " of memory and " in advice.sentence() and " of disk" in advice.sentence()


def test_a_disk_that_is_slower_than_computing_is_not_advised() -> None:
    work = workload(cycle("abcdefghij", 20), tokens_per_s=500.0, disk=Device(bytes_per_s=1e5))
    advice = advise(work, 0.9, policy="lru")
    assert advice.disk_bytes == 0 and advice.replay.hit_rate == pytest.approx(0.95)


def test_advice_says_where_the_target_is_beyond_this_traffic() -> None:
    work = workload(cycle("abcdefghij", 2))
    advice = advise(work, 0.9, policy="lru", with_disk=False)
    assert advice.target < 0.9 and advice.replay.hit_rate == 0.5
    assert advice.sentence().startswith("No size gives 90% hits, because too few of these passages")


def test_everything_about_a_trace_is_one_line_of_json() -> None:
    steps: list[str] = []

    def progress(name: str, total: int | None) -> Any:
        assert total == 60
        steps.append(name)
        return lambda done: None

    trace = ZipfTraffic(chunks=30, requests=60, per_request=3).trace()
    found = analyse(trace, RecordSizes(10), Wishes(memory=("10%", "1MB"), disk="50%"), progress)
    line = found.as_dict()
    assert [(p["policy"], p["disk_bytes"] > 0) for p in line["curve"]] == [
        ("windowed", True), ("windowed", True), ("lru", True), ("lru", True),
    ]  # fmt: skip
    assert line["facts"]["accesses"] == 180
    assert line["reuse"]["any_context"]["accesses"] == line["facts"]["highest_hit_rate"]
    assert line["advice"]["wanted"] == 0.9 and steps == ["reading", "reuse", "replay", "advice"]


def test_no_policy_is_above_the_optimum() -> None:
    pytest.importorskip("highspy")
    # in a b a b each waits for the other: room for one serves one of the four, for two serves two
    assert best_hit_rates(cycle("ab", 2), RecordSizes(1), [0, 1, 2]) == pytest.approx(
        [0, 0.25, 0.5]
    )
    trace = ZipfTraffic(chunks=30, requests=60, per_request=3).trace()
    wishes = Wishes(policies=("lru", "windowed", "gdsf"), memory=("10%", "40%"), optimum=True)
    found = analyse(trace, RecordSizes(10), wishes, lambda *_: lambda _: None)
    assert found.optimum is not None
    best = list(found.optimum.values())
    for line in found.points.values():
        rates = [point.replay.hit_rate for point in line]
        assert all(rate <= limit + 1e-6 for rate, limit in zip(rates, best, strict=True))
    assert found.lines()["offline optimum"] == sorted(found.optimum.items())
    assert [point["hit_rate"] for point in found.as_dict()["optimum"]] == [
        pytest.approx(rate, abs=1e-4) for rate in best
    ]


@pytest.mark.parametrize("text", ["", "ten", "5 apples", "-1", "1e9", "10%%", "99999999TB"])
def test_an_amount_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--memory: got "):
        parse_bytes("--memory", text, 100)


def test_amounts() -> None:
    assert parse_bytes("m", "2.5GiB", 0) == 5 * 2**29 and parse_bytes("m", "200%", 7) == 14
    for size in (1, 999, 12_345, 99_999, 10**9, 123_456_789_012):
        amount, unit = shown_bytes(size).split()
        shown = float(amount) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
        assert size <= shown <= 1.1 * size
    assert shown_bytes(0) == "0 B"
