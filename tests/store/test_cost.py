"""Bring up or compute: one choice for a prompt, by measurements, made again now and then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pytest

from chunkcache.store.cost import CostModel, Rows, Stored

ROW_S, PAIR_S = 1e-3, 1e-6
SIZE = 1_000_000
CHUNK = Rows.after(40, 100)
CHUNK_S = 100 * ROW_S + CHUNK.pairs * PAIR_S


@dataclass(frozen=True)
class Device:
    """A tier that takes `latency_s` and then moves so many bytes a second."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, size_bytes: float) -> float:
        return self.latency_s + size_bytes / self.bytes_per_s if size_bytes else 0.0


def row_s(rows: Rows) -> float:
    return rows.rows * ROW_S + rows.pairs * PAIR_S


def measured(devices: dict[str, Device], *, cost: CostModel | None = None) -> CostModel:
    """A model that has seen rows and loads of several shapes."""
    cost = cost or CostModel()
    for tokens, context in ((64, 0), (512, 0), (100, 3000), (512, 1500)) * 5:
        rows = Rows.after(context, tokens)
        cost.observe_prefill(tokens, int(rows.pairs), row_s(rows))
    for name, device in devices.items():
        for size in (SIZE, 7 * SIZE, 3 * SIZE) * 5:
            cost.observe_load(name, size, device.seconds(size))
    return cost


def chunks(tier: str, count: int, size_bytes: int = SIZE) -> list[Stored]:
    return [Stored(tier, size_bytes, CHUNK)] * count


def test_a_row_looks_at_all_before_it_and_at_itself() -> None:
    assert Rows.after(3, 2) == Rows(2, 4 + 5)
    assert Rows.after(0, 1) == Rows(1, 1)


def test_latency_and_rate_and_rows_and_pairs_are_told_apart() -> None:
    cost = measured({"disk": Device(0.02, 1e8)})
    assert cost.load_s("disk", 20 * SIZE) == pytest.approx(0.02 + 0.2)
    assert cost.load_s("disk", 1) == pytest.approx(0.02, rel=1e-3)
    long = Rows.after(8000, 10)
    assert cost.compute_s(long) == pytest.approx(row_s(long))


def test_samples_of_one_shape_are_taken_for_a_rate() -> None:
    cost = CostModel()
    for _ in range(3):
        cost.observe_load("disk", SIZE, 0.5)
        cost.observe_prefill(100, 5000, 0.1)
    assert cost.load_s("disk", 2 * SIZE) == pytest.approx(1.0)
    assert cost.compute_s(Rows(200, 20_000)) == pytest.approx(0.2)


def test_until_both_were_measured_everything_comes_up() -> None:
    cost = CostModel()
    assert cost.choose(chunks("disk", 2), CHUNK).loads == (True, True)
    cost.observe_load("disk", 1, 1000.0)  # as slow as can be
    choice = cost.choose(chunks("disk", 2), CHUNK)
    assert choice.loads == (True, True) and choice.planned is None
    only_rows = CostModel()
    only_rows.observe_prefill(1000, 1000, 0.001)
    choice = only_rows.choose(chunks("disk", 1), CHUNK)
    assert choice.loads == (True,) and choice.planned is None
    assert only_rows.pays(*chunks("disk", 1)) and cost.pays(*chunks("disk", 1))


def test_what_comes_while_rows_run_costs_nothing() -> None:
    slower = Device(0.0, SIZE / (1.5 * CHUNK_S))  # one chunk takes longer than computing it
    cost = measured({"disk": slower})
    assert not cost.pays(*chunks("disk", 1))
    assert cost.choose(chunks("disk", 1), Rows()).loads == (False,)
    long = Rows.after(0, 500)  # rows to be repaired, for longer than that
    choice = cost.choose(chunks("disk", 1), long)
    assert choice.loads == (True,) and choice.planned is not None
    assert choice.planned.seconds == pytest.approx(row_s(long))


def test_chunks_share_a_tier() -> None:
    """Each alone is faster than computing it; all together keep the prompt waiting."""
    cost = measured({"disk": Device(0.0, SIZE / (0.6 * CHUNK_S))})
    assert cost.choose(chunks("disk", 1), Rows()).loads == (True,)
    assert sum(cost.choose(chunks("disk", 8), Rows()).loads) == 5  # 5 · 0.6 and 3 · 1
    repaired = Rows(1000, 0)
    assert all(cost.choose(chunks("disk", 8), repaired).loads)


def test_a_larger_budget_leaves_more_to_the_tier() -> None:
    cost = measured({"disk": Device(0.0, SIZE / (0.9 * CHUNK_S))})
    loads = [
        sum(cost.choose(chunks("disk", 10), Rows(budget * 1000, 0)).loads)
        for budget in (0.0, 0.15, 0.3, 1.0)
    ]
    assert loads == sorted(loads) and loads[0] < loads[-1] == 10


def test_what_is_on_its_way_is_in_front() -> None:
    cost = measured({"disk": Device(0.0, SIZE / (0.6 * CHUNK_S))})
    alone = cost.choose(chunks("disk", 2), Rows())
    behind = cost.choose(chunks("disk", 2), Rows(), {("disk", ""): 8 * SIZE})
    assert sum(behind.loads) < sum(alone.loads)
    assert behind.planned is not None and behind.planned.seconds > 4 * CHUNK_S


def test_a_tier_that_loses_is_left_and_the_other_is_not() -> None:
    cost = measured({"disk": Device(0.0, 100 * SIZE / CHUNK_S), "far": Device(0.0, SIZE / 100)})
    choice = cost.choose([*chunks("disk", 2), *chunks("far", 2)], Rows(10, 0))
    assert choice.loads == (True, True, False, False)


def test_a_losing_tier_gets_its_chance_with_one_chunk() -> None:
    cost = measured({"disk": Device(0.0, 1000.0)})
    mixed = [*chunks("disk", 2), Stored("disk", SIZE // 2, CHUNK)]
    choices = [cost.choose(mixed, Rows()) for _ in range(16)]
    assert [sum(c.loads) for c in choices] == [0] * 15 + [1]
    assert choices[-1].loads == (False, False, True) and choices[-1].probed == ("disk", "")
    assert sum(cost.choose(mixed, Rows()).loads) == 1, "until it was measured"
    for _ in range(60):
        cost.observe_load("disk", SIZE, 1e-6)
    assert all(cost.choose(mixed, Rows()).loads)


def test_a_tier_that_lost_its_chance_waits_for_the_next_one() -> None:
    cost = measured({"disk": Device(0.0, 1000.0)})
    lost = chunks("disk", 2)
    assert [cost.choose(lost, Rows()).probed for _ in range(16)][-1] == ("disk", "")
    cost.observe_load("disk", SIZE, SIZE / 1000)
    assert [cost.choose(lost, Rows()).probed for _ in range(16)] == [None] * 15 + [("disk", "")]


@pytest.mark.parametrize("prompt_s", [0.5, 8.0])
def test_what_comes_on_top_is_a_share_of_the_shorter_one(prompt_s: float) -> None:
    """Samples that scatter may lie outside; what is planned lies between the longest and both."""
    cost = measured({"disk": Device(0.0, SIZE / (CHUNK_S / 2))})
    planned = cost.choose(chunks("disk", 1), CHUNK).planned
    assert planned is not None
    cost.observe_overlap(planned, prompt_s * planned.computing_s)
    again = cost.choose(chunks("disk", 1), CHUNK).planned
    assert again is not None and planned.loading_s == pytest.approx(CHUNK_S / 2)
    share = 0.0 if prompt_s < 1.0 else 1.0
    assert again.seconds == pytest.approx(again.computing_s + share * again.loading_s)


def test_the_choice_is_the_best_of_all() -> None:
    """Against every subset, by the simulated devices themselves."""
    draw = random.Random(3)
    for _ in range(25):
        devices = {
            name: Device(draw.choice([0.0, 0.05]), SIZE / (draw.uniform(0.2, 3.0) * CHUNK_S))
            for name in ("disk", "far")
        }
        cost, always = measured(devices), Rows(draw.choice([0, 100, 600]), 0)
        given = [*chunks("disk", 4), *chunks("far", 2)]

        def seconds(
            loads: tuple[bool, ...], devices: dict[str, Device] = devices,
            given: list[Stored] = given, always: Rows = always,
        ) -> float:  # fmt: skip
            rows, sizes = always, dict.fromkeys(devices, 0)
            for chunk, load in zip(given, loads, strict=True):
                if load:
                    sizes[chunk.tier] += chunk.size_bytes
                else:
                    rows += chunk.instead
            return max(row_s(rows), *(devices[tier].seconds(size) for tier, size in sizes.items()))

        best = min(seconds(loads) for loads in product((True, False), repeat=len(given)))
        choice = cost.choose(given, always)
        assert seconds(choice.loads) <= 1.02 * best
        assert choice.planned is not None
        assert choice.planned.seconds == pytest.approx(seconds(choice.loads), rel=0.02)


def planned_of_actual(shared: float, seed: int) -> Iterator[float]:
    """Samples scatter by a tenth, prompts take 1.4 times what their rows alone would, and of the
    shorter of bringing up and computing a part comes on top, where they share a CPU's cores.
    """
    draw = random.Random(seed)

    def scattered(seconds: float) -> float:
        return seconds * draw.uniform(0.9, 1.1)

    cost, disk = CostModel(), Device(0.01, 8 * SIZE / CHUNK_S)
    for number in range(60):
        count = draw.randint(1, 12)
        always = Rows.after(100 * count, draw.randint(20, 400))
        from_memory = number % 3 == 0
        choice = cost.choose([] if from_memory else chunks("disk", count), always)
        computing = 1.4 * scattered(row_s(always))
        loading = 0.0 if from_memory else scattered(disk.seconds(count * SIZE))
        actual = max(computing, loading) + shared * min(computing, loading)
        if number > 20:
            assert choice.planned is not None
            yield choice.planned.seconds / actual
        rows = Rows.after(draw.randint(0, 3000), 512)
        cost.observe_prefill(512, int(rows.pairs), scattered(row_s(rows)))
        if from_memory:
            cost.observe_prompt(always, actual)
        else:
            cost.observe_load("disk", count * SIZE, loading)
            if choice.planned is not None and all(choice.loads):
                cost.observe_overlap(choice.planned, actual)


@pytest.mark.parametrize("shared", [0.0, 0.4, 1.0])
def test_planned_is_within_a_fifth_of_what_noisy_devices_take(shared: float) -> None:
    found = [ratio for seed in range(20) for ratio in planned_of_actual(shared, seed)]
    assert sum(0.8 < ratio < 1.25 for ratio in found) >= 0.99 * len(found)
    assert sum(found) / len(found) == pytest.approx(1.0, abs=0.03)


@dataclass(frozen=True)
class Mixed:
    """A tier of records that two codecs made: one latency, and what each takes for its bytes."""

    latency_s: float = 0.01
    raw_s: float = CHUNK_S / 12  # a chunk
    int8_s: float = CHUNK_S / 3

    def moving(self, raw: int, int8: int) -> dict[str, float]:
        return {"raw": raw * self.raw_s, "int8": int8 * self.int8_s}

    def seconds(self, raw: int, int8: int) -> float:
        return self.latency_s + sum(self.moving(raw, int8).values())

    def observed(self, cost: CostModel, raw: int, int8: int, seconds: float) -> None:
        """As a loader says it, which knows what kept it busy."""
        moving = self.moving(raw, int8)
        for codec, count in (("raw", raw), ("int8", int8)):
            share = moving[codec] / sum(moving.values())
            cost.observe_load("disk", count * SIZE, share * seconds, codec=codec, share=share)


def mixed(raw: int, int8: int, instead: Rows = CHUNK) -> list[Stored]:
    made = ["raw"] * raw + ["int8"] * int8
    return [Stored("disk", SIZE, instead, codec) for codec in made]


def test_codecs_of_one_tier_have_rates_of_their_own_and_share_its_latency() -> None:
    cost, disk, dear = measured({}), Mixed(), Rows(1e6)
    for raw, int8 in ((1, 2), (5, 1), (3, 0), (0, 4), (2, 2)) * 20:
        disk.observed(cost, raw, int8, disk.seconds(raw, int8))
    for raw, int8 in ((6, 0), (0, 6), (6, 2)):
        choice = cost.choose(mixed(raw, int8, dear), Rows())
        assert choice.planned is not None
        assert choice.planned.seconds == pytest.approx(disk.seconds(raw, int8), rel=0.05)
    coming = {("disk", "int8"): 2 * SIZE}
    behind = cost.choose(mixed(6, 0, dear), Rows(), coming)
    assert behind.planned is not None
    assert behind.planned.seconds == pytest.approx(disk.seconds(6, 2), rel=0.05)


def test_the_codec_that_frees_its_tier_most_is_computed_and_tried_again() -> None:
    """Chunks of both take as long to compute; the slow codec loses, the fast one goes on."""
    cost = measured({})
    for size in (SIZE, 5 * SIZE) * 10:
        cost.observe_load("disk", size, 0.1 * size / SIZE * CHUNK_S, codec="raw")
        cost.observe_load("disk", size, 2.0 * size / SIZE * CHUNK_S, codec="int8")
    given = [*mixed(2, 2), *mixed(2, 0)]
    choices = [cost.choose(given, Rows())]
    assert choices[0].loads == (True, True, False, False, True, True)
    for _ in range(15):
        cost.observe_load("disk", SIZE, 0.1 * CHUNK_S, codec="raw")
        choices.append(cost.choose(given, Rows()))
    assert [choice.probed for choice in choices] == [None] * 15 + [("disk", "int8")]
    assert choices[-1].loads == (True, True, True, False, True, True)


def test_a_codec_that_was_never_measured_comes_up() -> None:
    cost = measured({})
    cost.observe_load("disk", SIZE, 100.0, codec="raw")
    assert cost.choose(mixed(1, 0), Rows()).loads == (False,)
    choice = cost.choose(mixed(1, 1), Rows())
    assert choice.loads == (True, True) and choice.planned is None
    assert [cost.pays(chunk) for chunk in mixed(1, 1)] == [False, True]


def test_planned_is_within_a_fifth_where_codecs_are_mixed() -> None:
    """A store that is on its way from one codec to another; loads scatter by a tenth."""
    draw = random.Random(11)
    cost, disk = measured({}), Mixed()
    off: list[float] = []
    for number in range(90):
        raw, int8 = draw.choice([(8, 0), (0, 8), (draw.randint(1, 8), draw.randint(1, 8))])
        actual = disk.seconds(raw, int8) * draw.uniform(0.9, 1.1)
        choice = cost.choose(mixed(raw, int8, Rows(1e6)), Rows())
        if number > 20:
            assert choice.planned is not None
            off.append(choice.planned.seconds / actual)
        disk.observed(cost, raw, int8, actual)
    assert all(0.8 < ratio < 1.2 for ratio in off), off


def test_samples_that_scatter_are_met_in_the_middle() -> None:
    cost = CostModel()
    for _ in range(40):
        cost.observe_load("disk", SIZE, 0.1)
        cost.observe_load("disk", SIZE, 0.3)
    assert cost.load_s("disk", SIZE) == pytest.approx(0.2, rel=0.15)


@pytest.mark.parametrize(("size", "seconds"), [(0, 1.0), (10, 0.0), (10, -1.0), (-5, 1.0)])
def test_what_no_rate_can_be_told_from_is_ignored(size: int, seconds: float) -> None:
    cost = CostModel()
    cost.observe_load("disk", size, seconds)
    cost.observe_prefill(size, size, seconds)
    assert cost.load_s("disk", SIZE) is None and cost.compute_s(CHUNK) is None
    cost.observe_prompt(CHUNK, 1.0)
    assert cost.choose([], CHUNK).planned is None


@pytest.mark.parametrize(("decoded_gb_per_s", "loads"), [(0.012, False), (0.21, True)])
def test_a_basis_is_read_where_it_is_decoded_faster_than_rows_run(
    decoded_gb_per_s: float, *, loads: bool
) -> None:
    """SmolLM2 on a core: 23,040 bytes of bf16 a token, 600 rows a second (docs/decisions/0029)."""
    cost, passage = CostModel(), Rows.after(0, 512)
    size = 512 * 23_040
    for share in (0.25, 0.5, 1.0) * 3:
        rows = Rows.after(0, int(share * 512))
        cost.observe_prefill(int(rows.rows), int(rows.pairs), rows.rows / 600)
        seconds = 0.001 + share * size / decoded_gb_per_s / 1e9
        cost.observe_load("disk", int(share * size), seconds, codec="basis(file=0,k=3,v=4.7)")
    chunk = Stored("disk", size, passage, "basis(file=0,k=3,v=4.7)")
    assert cost.pays(chunk) is loads
    # by itself, and beside rows that must run whatever is chosen
    assert cost.choose([chunk], Rows.after(512, 20)).loads == (loads,)
    assert all(cost.choose([chunk] * 5, Rows.after(2560, 20)).loads) is loads
