"""An acknowledged record is not taken away by a process that knows only of an earlier one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.store import check as check_module
from chunkcache.store.check import check_store
from chunkcache.store.codec.raw import RawCodec
from chunkcache.store.host import HostTier
from chunkcache.store.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    import torch

    from chunkcache.metrics import Metrics
    from chunkcache.store.disk import DiskTier

    OpenTier = Callable[..., DiskTier]

CAPACITY = 64 * 1024 * 1024
NUMBER, TOKENS = 7, 40


@pytest.fixture
def damaged(tmp_path: Path, open_tier: OpenTier, records: ModuleType) -> Path:
    """A closed store with one record, of which a byte is wrong."""
    record = records.make_record(NUMBER, num_tokens=TOKENS)
    tier = open_tier()
    tier.put(record)
    tier.close()
    file = tmp_path / "kv" / "data.mdb"
    content, value = bytearray(file.read_bytes()), records.contents(record)[5][-500:]
    at = content.find(value)
    assert at > 0
    content[at] ^= 0x20
    file.write_bytes(content)
    return tmp_path / "kv"


@pytest.fixture
def mend(damaged: Path, other_process: Any) -> Callable[[], None]:
    """Another process finds the record corrupt and puts it anew."""

    def ask() -> None:
        answer = other_process.ask(
            "mend", path=damaged, capacity_bytes=CAPACITY, number=NUMBER, num_tokens=TOKENS
        )
        assert answer["told"] == [{"put": True}]

    return ask


class MeddledWith(RawCodec):
    """Before it decodes for the first time, something else happens."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile: Callable[[], None] | None = meanwhile

    def decode_layer(self, layer: int, buffer: memoryview, out: torch.Tensor) -> None:
        if self._meanwhile is not None:
            meanwhile, self._meanwhile = self._meanwhile, None
            meanwhile()
        super().decode_layer(layer, buffer, out)


def test_a_look_up_that_finds_damage_leaves_what_was_put_since(
    mend: Callable[[], None], open_tier: OpenTier, records: ModuleType
) -> None:
    record = records.make_record(NUMBER, num_tokens=TOKENS)
    tier = open_tier(codec=MeddledWith(mend))
    with pytest.raises(CorruptRecord):
        tier.get(record.key)
    found = tier.get(record.key)
    assert found is not None and records.contents(found) == records.contents(record)


def test_a_check_that_finds_damage_leaves_what_was_put_since(
    mend: Callable[[], None], damaged: Path, open_tier: OpenTier, records: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = check_module._Check.run

    def run_then_mend(self: Any, *arguments: Any) -> None:
        run(self, *arguments)
        mend()

    monkeypatch.setattr(check_module._Check, "run", run_then_mend)
    report = check_store(damaged, CAPACITY, fix=True)
    assert (report.corrupt, report.removed) == (1, 0)
    assert open_tier().get(records.make_record(NUMBER, num_tokens=TOKENS).key) is not None


def test_damage_that_nobody_mended_is_removed(
    damaged: Path, open_tier: OpenTier, records: ModuleType
) -> None:
    report = check_store(damaged, CAPACITY, fix=True)
    assert (report.corrupt, report.removed) == (1, 1)
    assert not open_tier().contains(records.make_record(NUMBER, num_tokens=TOKENS).key)


def test_a_store_made_anew_by_another_process_takes_no_record_for_stored(
    tmp_path: Path, open_tier: OpenTier, other_process: Any, records: ModuleType, metrics: Metrics
) -> None:
    """What this process writes then goes to a file without a name, and is gone when it ends."""
    store = TieredStore([HostTier(0), open_tier()], metrics)
    assert store.offer(records.make_record(1), wait=True)
    shutil.rmtree(tmp_path / "kv")
    order = {"path": tmp_path / "kv", "capacity_bytes": CAPACITY, "num_tokens": 400}
    assert other_process.ask("fill", first=0, last=20, **order)["code"] == 0
    with pytest.raises(StoreError, match=r"has another file now.*Hint"):
        store.offer(records.make_record(2), wait=True)
    assert store.fetch(records.make_record(1).key).miss == "error"
    store.close()
