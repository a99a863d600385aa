"""The store as the settings ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chunkcache.config import load_settings
from chunkcache.errors import StoreError
from chunkcache.store import check_store, open_store, store_path

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
