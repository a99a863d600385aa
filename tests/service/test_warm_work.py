"""Warming a large collection: work in proportion to its chunks, and none of them held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, SupportsIndex

import pytest

from chunkcache.chunk import Chunk, ChunkKey, Retention, Terms
from chunkcache.service.headroom import Headroom
from chunkcache.service.warm import Shard, WarmProgress, warm_chunks

CHUNKS = 400
TOKENS = 3


class Ids(tuple[int, ...]):
    """Token ids that count how often they are looked at, and how many of them live at once."""

    looks: ClassVar[int] = 0
    alive: ClassVar[int] = 0
    most_alive: ClassVar[int] = 0

    def __new__(cls, ids: Iterable[int]) -> Ids:
        cls.alive += 1
        cls.most_alive = max(cls.most_alive, cls.alive)
        return super().__new__(cls, ids)

    def __len__(self) -> int:
        Ids.looks += 1
        return super().__len__()

    def __getitem__(self, at: SupportsIndex | slice) -> Any:
        Ids.looks += 1
        return super().__getitem__(at)

    def __del__(self) -> None:
        Ids.alive -= 1


class CountedRuntime:
    """A runtime whose records weigh nothing; every other chunk is warm, if so wanted."""

    reuses = True

    def __init__(self, *, half_warm: bool = False) -> None:
        self.half_warm = half_warm
        self.kept: list[int] = []
        self.retained = 0
        self.asked: list[int] = []
        self.prompts = SimpleNamespace(chunk_ids=lambda chunk: chunk.token_ids)
        self.store = SimpleNamespace(retain=self._retain)

    def key(self, token_ids: tuple[int, ...], salt: bytes) -> ChunkKey:
        made = ChunkKey.of(token_ids, fingerprint=b"f", born_prefix=(), salt=salt)
        return ChunkKey(made.digest, Ids(token_ids))

    def are_warm(self, keys: list[ChunkKey]) -> list[bool]:
        self.asked.append(len(keys))
        return [self.half_warm and tuple.__getitem__(key.token_ids, 0) % 2 == 0 for key in keys]

    def are_kept(self, keys: list[ChunkKey]) -> list[bool]:
        return [True] * len(keys)

    def _retain(self, key: ChunkKey, terms: Terms, *, exactly: bool) -> Retention:
        assert not exactly, "nobody said on what terms"
        self.retained += 1
        return terms.retention

    def compute(self, keys: Iterable[ChunkKey], salt: bytes) -> Iterator[Any]:
        for key in keys:
            yield Record(key)

    def headroom(self, tenant: str) -> Headroom:
        return Headroom(None, tenant, bytes_per_token=1)

    def keep(self, record: Any) -> bool:
        self.kept.append(tuple.__getitem__(record.key.token_ids, 0))
        return True


@dataclass(frozen=True)
class Record:
    """A chunk's KV that weighs nothing."""

    key: ChunkKey
    terms: Any = None
    size_bytes: ClassVar[int] = 1
    num_tokens: ClassVar[int] = TOKENS


def chunks(count: int = CHUNKS, times: int = 1) -> Iterator[Chunk]:
    for _ in range(times):
        for number in range(count):
            yield Chunk(f"c{number}", (number, 7, 8), "text")


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("looks", "alive", "most_alive"):
        monkeypatch.setattr(Ids, name, 0)


def warmed(runtime: Any, **wishes: Any) -> tuple[Any, list[WarmProgress]]:
    seen: list[WarmProgress] = []
    report = warm_chunks(
        runtime, wishes.get("chunks", chunks), b"", tenant="t",
        shard=wishes.get("shard", Shard()), on_progress=seen.append,
    )  # fmt: skip
    return report, seen


def test_work_is_linear_and_chunks_are_not_held() -> None:
    runtime = CountedRuntime()
    report, seen = warmed(runtime)
    assert (report.chunks, report.computed, report.tokens) == (CHUNKS, CHUNKS, CHUNKS * TOKENS)
    assert report.kept == CHUNKS
    assert Ids.looks <= 2 * CHUNKS, "each chunk's tokens are counted once, not again for each left"
    assert Ids.most_alive <= 2 * 64 + 4, "chunks are let go when the next ones have been looked at"
    assert runtime.asked == [64] * 6 + [16], "tiers are asked about many at a time"
    assert runtime.kept == list(range(CHUNKS)), "in order"
    assert [p.done for p in seen] == list(range(1, CHUNKS + 1))
    assert seen[-1].eta_s == 0
    assert seen[0].eta_s > 0


def test_chunks_that_are_there_or_stand_twice_are_computed_once() -> None:
    runtime = CountedRuntime(half_warm=True)
    report, seen = warmed(runtime, chunks=lambda: chunks(10, times=3))
    assert (report.chunks, report.already_warm, report.computed) == (10, 5, 5)
    assert runtime.kept == [1, 3, 5, 7, 9]
    assert runtime.retained == 10, "a request may have stored one since it was looked for"
    assert (seen[-1].done, seen[-1].total) == (10, 10)


def test_chunks_removed_between_two_looks_are_left_out() -> None:
    looks = iter((10, 6, 5))
    runtime = CountedRuntime()
    report, _ = warmed(runtime, chunks=lambda: chunks(next(looks)))
    assert (report.chunks, report.computed, report.kept, report.evicted) == (10, 6, 6, 0)


def test_shards_share_all_chunks_out() -> None:
    kept: list[int] = []
    for index in range(3):
        runtime = CountedRuntime()
        warmed(runtime, shard=Shard(index, 3))
        kept += runtime.kept
    assert sorted(kept) == list(range(CHUNKS))
