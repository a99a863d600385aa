"""Metrics: one table, names that say their unit, and one registry per service."""

from __future__ import annotations

import re

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from chunkcache.metrics import Metrics


def test_two_services_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.generated.inc(3)
    assert b"chunkcache_generated_tokens_total 3.0" in first.render()
    assert b"chunkcache_generated_tokens_total 0.0" in second.render()


def test_every_metric_is_named_after_the_project_and_explained() -> None:
    families = list(Metrics().registry.collect())
    assert len(families) == len({f.name for f in families}) > 10
    for family in families:
        assert re.fullmatch(r"chunkcache(_[a-z]+)+", family.name)
        assert family.documentation


def test_times_are_in_seconds_and_sizes_in_bytes_by_name() -> None:
    """Prometheus' base units, which dashboards rely on."""
    for family in Metrics().registry.collect():
        assert not re.search(r"_(ms|milliseconds|kb|mb|mib|minutes)(_|$)", family.name)


def test_every_attribute_is_registered_and_rendered() -> None:
    metrics = Metrics()
    kinds = {n: v for n, v in vars(metrics).items() if isinstance(v, Counter | Gauge | Histogram)}
    assert set(vars(metrics)) == {*kinds, "registry"}
    for metric in kinds.values():
        child = metric.labels(*["x"] * len(metric._labelnames)) if metric._labelnames else metric
        if isinstance(child, Histogram):
            child.observe(0.3)
        else:
            child.inc()
    families = list(text_string_to_metric_families(metrics.render().decode()))
    # the text format counts a `_created` time as a family of its own
    moved = {f.name for f in families if any(s.value > 0 for s in f.samples)}
    names = {f.name for f in metrics.registry.collect()}
    assert len(names) == len(kinds)
    assert names <= moved


def test_a_histogram_of_times_reaches_from_a_cache_hit_to_a_slow_prefill() -> None:
    metrics = Metrics()
    metrics.ttft_seconds.labels("exact").observe(0.011)
    metrics.ttft_seconds.labels("exact").observe(45.0)
    text = metrics.render().decode()
    assert 'chunkcache_time_to_first_token_seconds_bucket{le="0.01",rung="exact"} 0.0' in text
    assert 'chunkcache_time_to_first_token_seconds_bucket{le="0.025",rung="exact"} 1.0' in text
    assert 'chunkcache_time_to_first_token_seconds_bucket{le="60.0",rung="exact"} 2.0' in text
