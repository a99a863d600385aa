"""Records that nobody wants become smaller: which, when, what they are then, and what may fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from chunkcache.chunk import ChunkKV, Retention, Terms
from chunkcache.codec_spec import stored_under
from chunkcache.cold_settings import ColdSettings
from chunkcache.config import load_settings
from chunkcache.errors import ConfigError, StoreError
from chunkcache.metrics import Metrics
from chunkcache.store import check_store, open_store
from chunkcache.store.codec import codec_named, read_through
from chunkcache.store.disk import DiskTier
from chunkcache.store.popularity import Popularity
from chunkcache.store.reader import read_record
from chunkcache.store.recompress import Recompressor
from chunkcache.store.windowed import WindowedFrequencyPolicy

INT4 = "int4(group=32)"
CAPACITY = 64 * 1024 * 1024
HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Shelf:
    """A tier whose cold records become int4, and what it needs for that."""

    def __init__(
        self, open_tier: Callable[..., DiskTier], capacity_bytes: int, **cold: Any
    ) -> None:
        self.codec = codec_named(cold.pop("codec", INT4))
        self.popularity = Popularity()
        self.clock = Clock()
        policy = WindowedFrequencyPolicy(capacity_bytes, popularity=self.popularity)
        self.tier = open_tier(capacity_bytes, cold=self.codec, policy=policy)
        self.saved: list[int] = []
        self.errors = 0
        wanted = {"codec": self.codec.name, "after_s": HOUR, "above": 0.0, **cold}
        settings = ColdSettings(**{f"cold_{name}": value for name, value in wanted.items()})
        self.job = Recompressor(
            self.tier, self.codec, self.popularity, settings, clock=self.clock,
            on_recoded=self.saved.append, on_error=self.note_error,
        )  # fmt: skip

    def note_error(self) -> None:
        self.errors += 1

    def put(self, *made: ChunkKV) -> None:
        for record in made:
            assert self.tier.put(record)
        self.job.step()  # from now on time is told

    def pass_time(self, seconds: float = HOUR, steps: int = 20) -> list[float]:
        """What each step asks to wait."""
        self.clock.now_s += seconds
        return [self.job.step() for _ in range(steps)]

    def codecs(self, *made: ChunkKV) -> list[str | None]:
        found = [self.tier.get(record.key) for record in made]
        return [record.rounded_by if record is not None else "absent" for record in found]


@pytest.fixture
def shelf(open_tier: Callable[..., DiskTier]) -> Callable[..., Shelf]:
    def make(capacity_bytes: int = CAPACITY, **cold: Any) -> Shelf:
        return Shelf(open_tier, capacity_bytes, **cold)

    return make


@pytest.fixture
def made(records: ModuleType) -> list[ChunkKV]:
    return [records.make_finite(number) for number in range(4)]


NewShelf = Callable[..., Shelf]


def test_it_is_what_encoding_and_decoding_by_hand_make_of_it(
    shelf: NewShelf, made: list[ChunkKV], records: ModuleType, tmp_path: Path
) -> None:
    terms = Terms("team", 2, Retention.WARMED, 9e9)
    one, record = shelf(), replace(made[0], terms=terms)
    one.put(record)
    ((_, before),) = one.tier.entries()
    used = one.tier.usage().size_bytes
    one.pass_time()
    ((digest, entry),) = one.tier.entries()
    assert digest == stored_under(record.key.digest, INT4)
    assert (entry.codec, entry.terms, entry.created_ns) == (INT4, terms, before.created_ns)
    assert one.saved == [used - one.tier.usage().size_bytes] and one.saved[0] > used / 3
    by_hand = read_through(one.codec, record)
    found = one.tier.get(record.key)
    assert found is not None and found.rounded_by == by_hand.rounded_by == INT4
    assert records.contents(found) == records.contents(by_hand)
    with one.tier.open(record.key) as reader:
        assert reader.rounded_by == INT4
        assert records.contents(read_record(reader)) == records.contents(by_hand)
    one.tier.close()
    report = check_store(tmp_path / "kv", CAPACITY, codecs=["raw", INT4])
    assert report.clean and (report.ok, report.stale) == (1, 0)
    assert check_store(tmp_path / "kv", CAPACITY, codecs=["raw"]).stale == 1


def test_only_what_nobody_wanted_for_so_long_in_any_tier(
    shelf: NewShelf, made: list[ChunkKV]
) -> None:
    one = shelf()
    one.put(*made)
    one.pass_time(HOUR / 2)
    one.tier.get(made[1].key)
    one.popularity.count(made[2].key.digest)  # memory had it, the disk was not asked
    one.pass_time(HOUR / 2 - 1)
    assert one.saved == []
    one.pass_time(1)
    assert len(one.saved) == 2
    assert one.codecs(*made) == [INT4, None, None, INT4]
    one.pass_time(HOUR / 2)
    assert len(one.saved) == 2, "they were all wanted just now"
    one.pass_time(HOUR)
    assert one.codecs(*made) == [INT4] * 4


def test_the_coldest_go_first_as_long_as_the_tier_is_full_enough(
    shelf: NewShelf, made: list[ChunkKV]
) -> None:
    one = shelf(1_000_000, above=0.35)  # each record is some 94,000
    one.put(*made)
    one.tier.get(made[0].key)
    one.pass_time()
    assert one.codecs(*made[1:], made[0]) == [INT4, None, None, None]
    assert one.tier.usage().size_bytes <= 350_000 < one.tier.usage().size_bytes + one.saved[0]


def test_it_keeps_to_its_rate(shelf: NewShelf, made: list[ChunkKV]) -> None:
    one = shelf(bytes_per_s=1000)
    one.put(*made)
    sizes = [entry.size_bytes for _, entry in one.tier.entries()]
    waits = one.pass_time(steps=5)
    assert waits[:4] == [size / 1000 for size in sizes] and waits[4] == 30.0


def test_pinned_records_stay_as_they_are_unless_nothing_is_rounded(
    shelf: NewShelf, made: list[ChunkKV]
) -> None:
    pinned = replace(made[0], terms=Terms(retention=Retention.PINNED))
    one = shelf()
    one.put(pinned, made[1])
    one.pass_time()
    assert one.codecs(pinned, made[1]) == [None, INT4]


def test_a_lossless_codec_takes_the_same_place_and_loses_nothing(
    shelf: NewShelf, records: ModuleType
) -> None:
    one = shelf(codec="zstd")
    pinned = replace(records.make_finite(1, 900), terms=Terms(retention=Retention.PINNED))
    one.put(pinned)
    one.pass_time()
    ((digest, entry),) = one.tier.entries()
    assert (digest, entry.codec) == (pinned.key.digest, "zstd(over=raw,level=3)")
    assert len(one.saved) == 1
    found = one.tier.get(pinned.key)
    assert found is not None and found.rounded_by is None
    assert records.contents(found) == records.contents(pinned)


def test_what_would_not_be_smaller_is_left_alone_and_tried_once(
    shelf: NewShelf, records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = shelf()
    short = records.make_finite(1, 5)  # a page a layer, whatever the codec
    one.put(short)
    tried: list[bytes] = []
    recode = one.tier.recode
    monkeypatch.setattr(one.tier, "recode", lambda d, c: tried.append(d) or recode(d, c))
    one.pass_time()
    one.pass_time()
    assert len(tried) == 1 and one.saved == [] and one.codecs(short) == [None]


def test_what_is_being_read_is_tried_again(shelf: NewShelf, made: list[ChunkKV]) -> None:
    one = shelf()
    one.put(made[0])
    one.tier._mirror.lease(made[0].key.digest)  # for what asked for it before it was cold
    one.pass_time()
    assert one.saved == []
    one.tier._mirror.give_back(made[0].key.digest)
    one.pass_time(0)
    assert len(one.saved) == 1


# ---------------------------------------------------------------- beside readers and writers


def test_what_is_computed_anew_takes_its_place(
    shelf: NewShelf, made: list[ChunkKV], records: ModuleType
) -> None:
    one, record = shelf(), made[0]
    one.put(record)
    one.pass_time()
    assert one.tier.put(read_through(one.codec, record)), "it is there already"
    assert one.tier.usage().records == 1
    assert one.tier.put(record) and one.tier.usage().records == 1
    found = one.tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)
    one.pass_time()
    one.pass_time()  # since it was put and found
    assert one.codecs(record) == [INT4] and one.tier.usage().records == 1
    assert one.tier.delete(record.key) and one.tier.usage().records == 0


def test_it_is_no_newcomer_and_keeps_its_uses(shelf: NewShelf, made: list[ChunkKV]) -> None:
    one = shelf()
    one.put(*made)
    for _ in range(3):
        one.tier.get(made[0].key)
    one.pass_time()
    one.pass_time()
    assert len(one.saved) == 4
    to = [stored_under(record.key.digest, INT4) for record in made]
    assert one.popularity.uses(to[0]) > one.popularity.uses(to[1])
    with one.tier._mirror._lock:
        assert one.tier._mirror._policy.victims(1)[0] != to[0]


# ---------------------------------------------------------------- what may fail


@pytest.mark.parametrize(
    "failure", [StoreError("store: no layer 2, made up"), ValueError("odd numbers, made up")]
)
def test_what_cannot_be_read_or_coded_is_counted_and_not_tried_again(
    shelf: NewShelf, made: list[ChunkKV], monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    one = shelf()
    one.put(*made[:2])
    recode = one.tier.recode

    def fail_once(digest: bytes, codec: Any) -> int:
        if digest == made[0].key.digest:
            raise failure
        return recode(digest, codec)

    monkeypatch.setattr(one.tier, "recode", fail_once)
    assert one.pass_time(steps=2)[0] == 30.0, "whatever failed may fail for a while"
    one.pass_time()
    assert one.errors == 1 and one.codecs(*made[:2]) == [None, INT4]


def test_what_a_full_device_did_not_take_is_tried_again(
    shelf: NewShelf, made: list[ChunkKV], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = shelf()
    one.put(*made[:2])

    def refuse(*_: Any) -> None:
        raise StoreError("store: disk full, made up")

    with monkeypatch.context() as full:
        full.setattr(one.tier._env, "put", refuse)
        assert one.pass_time(steps=2) == [30.0, 30.0]
    one.pass_time(0.0)
    assert one.errors == 2 and one.codecs(*made[:2]) == [INT4, INT4]


def test_the_thread_outlives_a_fault_of_its_own(
    shelf: NewShelf, made: list[ChunkKV], monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:  # fmt: skip
    monkeypatch.setattr("chunkcache.store.recompress._LOOK_S", 0.001)
    one = shelf(after_s=0)
    usage, faults = one.tier.usage, iter([RuntimeError("made up")])

    def fail_once() -> Any:
        for fault in faults:
            raise fault
        return usage()

    monkeypatch.setattr(one.tier, "usage", fail_once)
    assert one.tier.put(made[0])
    one.job.start()
    eventually(lambda: len(one.saved) == 1)
    one.job.close()
    assert one.errors == 1


def test_a_record_with_numbers_that_cannot_be_rounded_stays(
    shelf: NewShelf, records: ModuleType
) -> None:
    one, odd = shelf(), records.make_record(7, 400)  # infinities and NaNs
    one.put(odd)
    one.pass_time()
    assert one.errors == 1 and one.saved == []
    found = one.tier.get(odd.key)
    assert found is not None and records.contents(found) == records.contents(odd)


# ---------------------------------------------------------------- as the settings ask for it


@pytest.fixture
def store_with(
    tmp_path: Path, metrics: Metrics, records: ModuleType
) -> Iterator[Callable[..., Any]]:
    opened = []

    def make(*, recompresses: bool = True, **cold: Any) -> Any:
        wanted = {f"cold_{name}": value for name, value in cold.items()}
        settings = load_settings(home=tmp_path, store={"host_capacity_bytes": 0, **wanted})
        opened.append(open_store(settings, records.FINGERPRINT, metrics, recompresses=recompresses))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def test_a_cold_basis_that_is_not_there_is_named_with_its_setting(
    store_with: Callable[..., Any],
) -> None:
    with pytest.raises(ConfigError, match=r"store\.cold_codec: got file=0{32}, there is no such"):
        store_with(codec=f"basis(file={'0' * 32})")
    store_with()  # nothing was left open


def test_the_store_does_it_by_itself_and_counts(
    store_with: Callable[..., Any], made: list[ChunkKV], counted: Callable[..., float],
    monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], bool]], None],
) -> None:  # fmt: skip
    monkeypatch.setattr("chunkcache.store.recompress._LOOK_S", 0.001)
    with closing(store_with(codec="int4", after_s=0, above=0)) as store:
        used = 0
        for record in made:
            store.offer(record, wait=True)
        eventually(lambda: counted("recompressed_total", tier="disk") == len(made))
        used = store.tiers[0].usage().size_bytes
        found = store.fetch(made[0].key)
        assert (found.tier, found.record.rounded_by) == ("disk", INT4)
    assert counted("recompressed_saved_bytes_total", tier="disk") > used
    with closing(store_with()) as store:
        assert store.fetch(made[0].key).record is None, "whoever does not name it does not get it"


def test_who_does_not_serve_rounds_nothing_and_reads_what_is_rounded(
    store_with: Callable[..., Any], made: list[ChunkKV]
) -> None:
    with closing(store_with(codec="int4", recompresses=False, after_s=0, above=0)) as store:
        store.offer(made[0], wait=True)
        assert store.jobs == ()
        assert store.tiers[-1].recode(made[0].key.digest, codec_named(INT4)) > 0
        assert store.fetch(made[0].key).record.rounded_by == INT4


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ({"codec": "int8", "cold_codec": "int4"}, "not rounded again"),
        ({"codec": "zstd", "cold_codec": "zstd(level=3)"}, "another than store.cold_codec"),
        ({"cold_codec": "raw"}, "another than store.cold_codec"),
        ({"cold_codec": "int5"}, "int5"),
        ({"cold_above": 1.5}, "store.cold_above"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(store: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings(store=store)
    assert load_settings(store={"cold_codec": "int4"}).store.codecs == ("raw", INT4)
