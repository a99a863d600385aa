"""Records looked for together: the same readers, reasons, uses and counts as one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import platformdirs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chunkcache.chunk import ChunkKey, ChunkKV
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.metrics import Metrics
from chunkcache.store.base import AskedTogether, OpensTogether, SeveralCodecs
from chunkcache.store.codec import codec_named
from chunkcache.store.disk import DiskTier
from chunkcache.store.host import HostTier
from chunkcache.store.layout import header_key, slab_key
from chunkcache.store.lookup import Opened
from chunkcache.store.lru import LruPolicy
from chunkcache.store.reader import read_record
from chunkcache.store.tiered import TieredStore
from chunkcache_kernels.compiler import NoCompiler
from chunkcache_kernels.slabs import SlabReader

MIB = 1024 * 1024
NUMBERS = range(9)
TOKENS = 70  # slabs of 4,480 bytes, which C reads
INT8 = "int8(group=64)"
OpenTier = Callable[..., DiskTier]


class Far:
    """Durable, and on another machine as far as anybody can tell: records come whole."""

    name, durable, remote = "far", True, True

    def __init__(self) -> None:
        self.held = HostTier(MIB)
        self.asked: list[int] = []

    def __getattr__(self, verb: str) -> Any:
        if verb in ("open_many", "retain"):
            raise AttributeError(verb)
        return getattr(self.held, verb)

    def contains_many(self, keys: Any) -> list[bool]:
        self.asked.append(len(keys))
        return self.held.contains_many(keys)


class AtOnce:
    """Instead of a write queue: nobody waits."""

    def __init__(self, write: Callable[[ChunkKV], bool], *_: Any, **__: Any) -> None:
        self._write = write

    def offer(self, record: ChunkKV, *, wait_for_place: bool = False) -> Future[bool]:
        done: Future[bool] = Future()
        done.set_result(self._write(record))
        return done

    def flush(self) -> None: ...

    def close(self) -> None: ...


class World:
    """A store of three tiers, in which all uses are told."""

    def __init__(self, disk: DiskTier, host_records: int) -> None:
        self.metrics, self.disk, self.far = Metrics(), disk, Far()
        self.host = HostTier(host_records * 13_440, LruPolicy())
        self.store = TieredStore([self.host, disk, self.far], self.metrics, queue=AtOnce)  # type: ignore[list-item]
        self.uses: list[tuple[str, bytes]] = []
        for name, policy in (("host", self.host._policy), ("disk", disk._mirror._policy)):
            self._tell(name, policy)

    def _tell(self, name: str, policy: Any) -> None:
        real = policy.on_use

        def told(*digests: bytes) -> None:
            self.uses.extend((name, digest) for digest in digests)
            real(*digests)

        policy.on_use = told

    def damage(self, key: bytes) -> None:
        env = self.disk._env
        with env.writing() as txn:
            value = txn.get(key, db=env._slabs)
            if value is not None:
                txn.put(key, value[:40] + bytes([value[40] ^ 4]) + value[41:], db=env._slabs)

    def counts(self) -> dict[str, float]:
        found = self.metrics.registry.collect()
        samples = [s for metric in found for s in metric.samples if not s.name.endswith("_created")]
        return {f"{s.name}{sorted(s.labels.items())}": s.value for s in samples}

    def held(self) -> dict[str, Any]:
        """Of each tier: what it holds; of those that evict, in which order that would leave."""
        on_disk = self.disk._mirror._policy
        return {
            "host": self.host._policy.victims(MIB), "disk": on_disk.victims(64 * MIB),
            "scan": sorted(self.disk.scan()), "far": sorted(self.far.scan()),
            "leases": dict(self.disk._mirror._leases),
        }  # fmt: skip


def one_by_one(store: TieredStore, keys: list[ChunkKey]) -> tuple[list[Any], list[Opened]]:
    """The slow twin."""
    return [store.locate(key) for key in keys], [store.open(key) for key in keys]


def together(store: TieredStore, keys: list[ChunkKey]) -> tuple[list[Any], list[Opened]]:
    sources = store.locate_many(keys)
    return sources, store.open_many(keys, sources)


def read(records: ModuleType, store: TieredStore, key: ChunkKey, opened: Opened) -> Any:
    """What comes of it, as whoever opened it does: read, then promoted or reported."""
    if opened.reader is None or opened.tier is None:
        return opened.miss
    try:
        with opened.reader as reader:
            record = read_record(reader)
    except StoreError as error:
        return opened.tier, store.failed(opened.tier, key, error)
    store.promote(record, opened.tier)
    return opened.tier, records.contents(record)


@pytest.fixture(scope="module")
def reader() -> SlabReader | None:
    try:
        return SlabReader(Path(platformdirs.user_cache_dir("chunkcache", appauthor=False)))
    except NoCompiler:
        return None


@pytest.fixture
def new_world(
    open_tier: OpenTier, tmp_path: Path, reader: SlabReader | None
) -> Iterator[Callable[..., World]]:
    numbers = itertools.count()

    def make(codec: str = "raw", host_records: int = 3) -> World:
        options = {"policy": LruPolicy(), "reader": reader, "sync_interval_s": 3600}
        path = tmp_path / f"kv{next(numbers)}"
        disk = open_tier(MIB, codec=codec_named(codec), path=path, **options)
        return World(disk, host_records)

    yield make


KEYS = st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=7)
STEPS = st.one_of(
    st.tuples(st.just("find"), KEYS),
    st.tuples(st.sampled_from(["offer", "near", "far", "slab", "header", "delete"]), KEYS),
)


def step(world: World, what: str, made: list[ChunkKV]) -> None:
    for record in made:
        digest = record.key.digest
        if what == "offer":
            world.store.offer(record)
        elif what == "near":
            world.disk.put(record)
        elif what == "far":
            world.far.held.put(record)
        elif what == "delete":
            world.disk.delete(record.key)
        else:
            world.damage(header_key(digest) if what == "header" else slab_key(digest, 1))


@pytest.mark.parametrize("codec", ["raw", INT8])
def test_together_is_one_by_one(
    codec: str, new_world: Callable[..., World], records: ModuleType
) -> None:
    made = [records.make_finite(number, TOKENS) for number in NUMBERS]

    @settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.lists(STEPS, min_size=3, max_size=9))
    def holds(steps: list[tuple[str, list[int]]]) -> None:
        fast, slow = new_world(codec, 9), new_world(codec, 9)  # nobody is pushed out
        for world in (fast, slow):
            step(world, "near", made[:3])
            step(world, "far", made[2:6])
        for what, numbers in steps:
            if what != "find":
                for world in (fast, slow):
                    step(world, what, [made[n] for n in numbers])
                continue
            keys = [made[n].key for n in numbers]
            ours, theirs = together(fast.store, keys), one_by_one(slow.store, keys)
            assert ours[0] == theirs[0]
            assert [(o.tier, o.miss) for o in ours[1]] == [(o.tier, o.miss) for o in theirs[1]]
            for key, one, other in zip(keys, ours[1], theirs[1], strict=True):
                assert read(records, fast.store, key, one) == read(records, slow.store, key, other)
        for name in ("host", "disk"):  # in the same order, whatever stands between them
            mine, twins = ([d for n, d in w.uses if n == name] for w in (fast, slow))
            assert mine == twins
        assert fast.counts() == slow.counts() and fast.held() == slow.held()
        assert not fast.held()["leases"]
        for world in (fast, slow):
            world.store.close()

    holds()


def test_each_tier_is_asked_as_it_can_be(open_tier: OpenTier) -> None:
    disk, host, far = open_tier(), HostTier(MIB), Far()
    assert isinstance(disk, SeveralCodecs) and isinstance(disk, OpensTogether)
    assert isinstance(host, AskedTogether) and isinstance(host, OpensTogether)
    assert isinstance(far, AskedTogether) and not isinstance(far, OpensTogether)


def test_one_transaction_looks_for_all(
    new_world: Callable[..., World], records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, made = new_world(), [records.make_finite(n, TOKENS) for n in range(4)]
    step(world, "near", made)
    begun: list[int] = []
    env = world.disk._env
    real = env.reading
    monkeypatch.setattr(env, "reading", lambda: (begun.append(1), real())[1])
    keys = [record.key for record in made]
    assert world.store.locate_many(keys) == [("disk", "raw")] * 4 and len(begun) == 1
    opened = world.store.open_many(keys, [("disk", "raw")] * 4)
    assert [one.tier for one in opened] == ["disk"] * 4 and len(begun) == 2
    assert world.far.asked == []
    absent = [records.make_key(n, TOKENS) for n in (20, 21)]
    assert world.store.locate_many([keys[0], *absent]) == [("disk", "raw"), None, None]
    assert world.far.asked == [2]
    for one in opened:
        one.close()
        one.close()  # a second time, nothing
    assert not world.disk._mirror._leases


@pytest.mark.parametrize("fails", ["reading", "encoded_header"])
def test_a_disk_that_fails_is_asked_key_by_key(
    fails: str, new_world: Callable[..., World], records: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And says and counts what it would have, for the keys it fails for alone."""
    made = [records.make_finite(n, TOKENS) for n in range(3)]
    keys = [record.key for record in made]
    outcomes = []
    for way in (together, one_by_one):
        world = new_world()
        step(world, "near", made)
        with monkeypatch.context() as patch:
            env, real = world.disk._env, world.disk._env.encoded_header

            def encoded(txn: Any, digest: bytes, real: Any = real) -> bytes:
                if digest == keys[1].digest:
                    raise StoreError("the device failed")
                return bytes(real(txn, digest))

            def no_reading() -> Any:
                raise StoreError("no reader's place is free")

            patch.setattr(
                env,
                *(("reading", no_reading) if fails == "reading" else ("encoded_header", encoded)),
            )
            sources, opened = way(world.store, keys)
        for one in opened:
            one.close()
        outcomes.append((sources, [(o.tier, o.miss) for o in opened], world.counts(), world.held()))
        assert [one.miss for one in opened] == (
            ["error"] * 3 if fails == "reading" else [None, "error", None]
        )
    assert outcomes[0] == outcomes[1] and not outcomes[0][3]["leases"]


def test_what_comes_whole_pushes_out_what_it_would_one_by_one(
    new_world: Callable[..., World], records: ModuleType
) -> None:
    """Memory has room for three; each that comes from far takes the place of the oldest."""
    made = [records.make_finite(n, TOKENS) for n in range(5)]
    outcomes = []
    for way in (together, one_by_one):
        world = new_world()
        step(world, "offer", made[:3])
        step(world, "far", made[3:])
        _, opened = way(world.store, [made[n].key for n in (3, 0, 4, 1)])
        outcomes.append(([one.tier for one in opened], world.counts()))
        for one in opened:
            one.close()
        outcomes[-1] += (world.held(),)
    assert outcomes[0] == outcomes[1] and outcomes[0][0] == ["far", "disk", "far", "disk"]


def test_a_fault_of_ours_leaves_no_lease(
    new_world: Callable[..., World], records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, made = new_world(), [records.make_finite(n, TOKENS) for n in range(3)]
    step(world, "near", made)
    monkeypatch.setattr(world.disk._mirror, "used", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.disk.open_many([record.key for record in made])
    assert not world.disk._mirror._leases


WAYS: dict[str, Callable[[World, list[ChunkKey]], Iterable[Opened]]] = {
    "together": lambda world, keys: together(world.store, keys)[1],
    "key by key": lambda world, keys: together(world.store, keys)[1],
    "one by one": lambda world, keys: (world.store.open(key) for key in keys),
    # far, as it was when they were looked for; near, when they are opened
    "alone": lambda world, keys: world.store.open_many(keys, [("far", "")] * len(keys)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_fault_at_any_call_leaves_no_lease(
    way: str, new_world: Callable[..., World], records: ModuleType,
    fails_at_each_call: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Two are near, one is damaged, one far and one nowhere."""
    world, made = new_world(), [records.make_finite(n, TOKENS) for n in range(5)]
    step(world, "far", made[3:4])
    keys = [made[n].key for n in (0, 2, 1, 3, 4)]
    tried: set[str] = set()

    def fails_as_a_whole(_: Any) -> Any:
        raise StoreError("not now")

    if way == "key by key":
        monkeypatch.setattr(world.disk, "open_many", fails_as_a_whole)

    def attempt() -> None:
        for one in WAYS[way](world, keys):
            one.close()

    def after(where: str) -> None:
        tried.add(where)
        assert not world.disk._mirror._leases, f"after a fault in {where}"
        for record in made:
            world.host._drop(record.key.digest)
        world.disk.delete(made[3].key)
        step(world, "near", made[:3])
        step(world, "header", made[2:3])

    after("")
    fails_at_each_call(attempt, after)
    assert tried >= {"lease_many" if way == "together" else "lease", "used", "promote", "miss"}


def test_what_is_about_to_leave_is_lent_to_nobody(
    new_world: Callable[..., World], records: ModuleType
) -> None:
    world, made = new_world(), [records.make_finite(n, TOKENS) for n in range(3)]
    step(world, "near", made)
    mirror, keys = world.disk._mirror, [record.key for record in made]
    assert mirror.victims(1, 1) == [keys[0].digest]
    opened = world.store.open_many(keys, [("disk", "raw")] * 3)
    assert [one.tier for one in opened] == [None, "disk", "disk"]
    mirror.stay()
    for one in opened:
        one.close()
    assert not mirror._leases


def test_a_damaged_header_costs_only_its_own_record(
    new_world: Callable[..., World], records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, made = new_world(), [records.make_finite(n, TOKENS) for n in range(3)]
    step(world, "near", made)
    step(world, "header", made[1:2])
    begun, real = list[int](), world.disk._env.reading
    with monkeypatch.context() as patch:
        patch.setattr(world.disk._env, "reading", lambda: (begun.append(1), real())[1])
        for one in world.disk.open_many([record.key for record in made])[::2]:
            with one:  # type: ignore[union-attr]
                pass
    assert len(begun) == 2, "one for those that are sound, one that says what is damaged"
    step(world, "near", made)
    step(world, "header", made[1:2])
    found = world.disk.open_many([made[n].key for n in (0, 1, 2, 1)])
    assert [type(one) for one in found[1:4:2]] == [CorruptRecord, type(None)], "it was dropped"
    for place in (0, 2):
        with found[place] as opened:  # type: ignore[union-attr]
            assert records.contents(read_record(opened)) == records.contents(made[place])
    assert not world.disk.contains(made[1].key)
