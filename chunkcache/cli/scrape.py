"""Hit rates of a running service, from its `/metrics`."""

from __future__ import annotations

from collections import defaultdict

import httpx
from prometheus_client.parser import text_string_to_metric_families

from chunkcache.errors import InvalidRequest, ServerUnreachable

_TIMEOUT_S = 10.0
_SHOWN = {
    "chunkcache_tier_records": "records",
    "chunkcache_tier_bytes": "bytes",
    "chunkcache_chunk_queries_total": "queries",
    "chunkcache_chunk_hits_total": "hits",
    "chunkcache_evictions_total": "evictions",
    "chunkcache_recompressed_total": "recompressed",
}


def tier_figures(address: str) -> list[dict[str, object]]:
    """One row a tier: records and bytes now; queries, hits, evictions and
    records recompressed since the service began.

    Args:
        address: of the service, `http://127.0.0.1:8000`.

    Raises:
        InvalidRequest: it is no address.
        ServerUnreachable: nobody answers there, or somebody else.
    """
    try:
        answer = httpx.get(f"{address.rstrip('/')}/metrics", timeout=_TIMEOUT_S)
        answer.raise_for_status()
        rows: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if sample.name in _SHOWN:
                    rows[sample.labels["tier"]][_SHOWN[sample.name]] = sample.value
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidRequest.of(
            "--metrics", address, "an address", "http://127.0.0.1:8000"
        ) from error
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise ServerUnreachable(f"--metrics: {address}: {error}") from error
    return [_row(tier, figures) for tier, figures in sorted(rows.items())]


def _row(tier: str, figures: dict[str, float]) -> dict[str, object]:
    counts = {name: _whole(figures.get(name)) for name in _SHOWN.values()}
    queries, hits = figures.get("queries", 0.0), figures.get("hits", 0.0)
    return {"tier": tier, **counts, "hit_rate": round(hits / queries, 3) if queries else None}


def _whole(value: float | None) -> int | None:
    """NaN, which is how Prometheus says unknown, becomes None."""
    return None if value is None or value != value else int(value)
