"""The store as the settings ask for it."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from chunkcache.config import load_settings
from chunkcache.errors import ConfigError, StoreError
from chunkcache.store import check_store, open_store, remote, store_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from chunkcache.metrics import Metrics

MIB = 1024 * 1024


def test_records_outlive_the_process_and_evictions_of_each_tier_are_counted(
    tmp_path: Path, metrics: Metrics, records: ModuleType, counted: Callable[..., float]
) -> None:
    sizes = {"host_capacity_bytes": 1000, "disk_capacity_bytes": 40 * 4096}
    settings = load_settings(home=tmp_path, store=sizes)
    store = open_store(settings, records.FINGERPRINT, metrics)
    for number in range(12):
        assert store.offer(records.make_record(number), wait=True)
    store.close()
    assert counted("evictions_total", tier="host") == 11
    assert counted("evictions_total", tier="disk") == 2
    report = check_store(store_path(settings), 40 * 4096, fingerprint=records.FINGERPRINT)
    assert report.clean and report.records == 10
    store = open_store(settings, records.FINGERPRINT, metrics)
    assert store.fetch(records.make_record(11).key).tier == "disk"
    store.close()


def test_no_disk_budget_means_no_file(
    tmp_path: Path, metrics: Metrics, records: ModuleType
) -> None:
    settings = load_settings(home=tmp_path, store={"disk_capacity_bytes": 0})
    store = open_store(settings, records.FINGERPRINT, metrics)
    assert store.offer(records.make_record(1), wait=True)
    assert not store_path(settings).exists()
    store.close()


def test_a_second_service_on_one_home_in_one_process_is_refused(
    tmp_path: Path, metrics: Metrics, records: ModuleType
) -> None:
    settings = load_settings(home=tmp_path, store={"disk_capacity_bytes": MIB})
    store = open_store(settings, records.FINGERPRINT, metrics)
    with pytest.raises(StoreError, match="Hint: "):
        open_store(settings, records.FINGERPRINT, metrics)
    store.close()


def test_two_installations_compute_a_record_once(
    tmp_path: Path, valkey: Any, metrics: Metrics, records: ModuleType
) -> None:
    """As two services do it: look up, compute where there is none, offer."""
    computed: list[int] = []

    def ask(home: str, number: int) -> None:
        remote = {"shared": valkey.url, "share_secret": "x" * 16, "remote_timeout_s": 20.0}
        settings = load_settings(home=tmp_path / home, store={**remote, "host_capacity_bytes": 0})
        store = open_store(settings, records.FINGERPRINT, metrics)
        record = records.make_record(number, num_tokens=33)
        found = store.fetch(record.key).record
        if found is None:
            computed.append(number)
            store.offer(record)
        else:
            assert records.contents(found) == records.contents(record)
        store.close()

    for home in ("a", "b", "a", "b", "c"):
        for number in (101, 102):
            ask(home, number)
    assert computed == [101, 102]


def test_remote_tiers_stand_below_the_disk_and_their_breakers_are_shown(
    tmp_path: Path, valkey: Any, metrics: Metrics, records: ModuleType,
    counted: Callable[..., float],
) -> None:  # fmt: skip
    remote = {
        "shared": valkey.url, "object": f"file://{tmp_path}/objects", "share_secret": "x" * 16,
        "remote_timeout_s": 20.0,
    }  # fmt: skip
    settings = load_settings(home=tmp_path / "home", store=remote)
    store = open_store(settings, records.FINGERPRINT, metrics)
    assert [tier.name for tier in store.tiers] == ["host", "disk", "shared", "object"]
    assert store.offer(records.make_record(201), wait=True)
    assert all(tier.contains(records.make_record(201).key) for tier in store.tiers)
    rests = metrics.registry.get_sample_value
    for tier in ("shared", "object"):
        for kind in ("read", "write"):
            labels = {"tier": tier, "kind": kind}
            assert rests("chunkcache_tier_rests", labels) == 0.0
    store.tiers[2].breakers["read"].failed()
    store.tiers[2].breakers["read"].failed()
    store.tiers[2].breakers["read"].failed()
    assert counted("tier_rests", tier="shared", kind="read") == 2
    assert metrics.registry.get_sample_value("chunkcache_tier_bytes", {"tier": "shared"}) is None
    store.close()


def test_a_wrong_address_leaves_nothing_open(
    tmp_path: Path, metrics: Metrics, records: ModuleType
) -> None:
    wrong = {"object": "shelf://a", "share_secret": "x" * 16}
    with pytest.raises(ConfigError, match=r"store\.object"):
        open_store(load_settings(home=tmp_path, store=wrong), records.FINGERPRINT, metrics)
    open_store(load_settings(home=tmp_path), records.FINGERPRINT, metrics).close()


REMOTE = {
    "shared": "redis://127.0.0.1:1", "object": "file:///nowhere", "share_secret": "x" * 16,
}  # fmt: skip


class Opening:
    """In place of both clients: each waits until the other is being opened, too."""

    def __init__(self, *wrong: str) -> None:
        self.wrong = wrong
        self.closed: list[str] = []
        self._both = threading.Barrier(2)

    def __call__(self, url: str, *_: Any, **__: Any) -> Any:
        self._both.wait(20)
        name = url.split(":")[0]
        if name in self.wrong:
            raise ConfigError(f"{name} is wrong")
        return SimpleNamespace(close=lambda: self.closed.append(name))


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Opening]:
    def put_in_place(*wrong: str) -> Opening:
        opening = Opening(*wrong)
        monkeypatch.setattr(remote, "RespBlobs", opening)
        monkeypatch.setattr(remote, "ObjectBlobs", opening)
        return opening

    return put_in_place


def test_remote_tiers_are_opened_side_by_side_and_stand_in_their_order(
    tmp_path: Path, clients: Callable[..., Opening], metrics: Metrics, records: ModuleType
) -> None:
    opening = clients()
    settings = load_settings(home=tmp_path, store=REMOTE | {"disk_capacity_bytes": 0})
    store = open_store(settings, records.FINGERPRINT, metrics)
    assert [tier.name for tier in store.tiers] == ["host", "shared", "object"]
    store.close()
    assert opening.closed == ["file", "redis"]


@pytest.mark.parametrize(
    ("wrong", "said", "closed"),
    [(("redis",), "redis", ["file"]), (("file",), "file", ["redis"]),
     (("file", "redis"), "redis", [])],
)  # fmt: skip
def test_one_wrong_remote_tier_is_named_and_the_other_closed(
    tmp_path: Path, clients: Callable[..., Opening], metrics: Metrics, records: ModuleType,
    wrong: tuple[str, ...], said: str, closed: list[str],
) -> None:  # fmt: skip
    opening = clients(*wrong)
    with pytest.raises(ConfigError, match=f"{said} is wrong"):
        open_store(load_settings(home=tmp_path, store=REMOTE), records.FINGERPRINT, metrics)
    assert opening.closed == closed
