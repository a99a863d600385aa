"""Every metric in one table: name, type, unit in the name, help.

A `Metrics` object owns its registry, so that two services in one process (tests) do not collide.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters, gauges and histograms of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        on = self.registry
        self.ttft_seconds = Histogram(
            "chunkcache_time_to_first_token_seconds", "Request admitted to first token", ["rung"],
            buckets=_SECONDS, registry=on,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "chunkcache_request_seconds", "Request admitted to last token",
            buckets=_SECONDS, registry=on,
        )  # fmt: skip
        self.requests = Counter(
            "chunkcache_requests", "Requests by outcome", ["outcome"], registry=on
        )
        self.tokens = Counter(
            "chunkcache_tokens", "Prompt rows by what was done to them", ["kind"], registry=on
        )
        self.generated = Counter("chunkcache_generated_tokens", "Tokens generated", registry=on)
        self.matched = Counter(
            "chunkcache_matched_tokens", "Tokens of known passages in messages", registry=on
        )
        self.chunk_queries = Counter(
            "chunkcache_chunk_queries", "Look-ups per tier", ["tier"], registry=on
        )
        self.chunk_hits = Counter("chunkcache_chunk_hits", "Hits per tier", ["tier"], registry=on)
        self.chunk_misses = Counter(
            "chunkcache_chunk_misses", "Chunks found in no tier, by reason", ["reason"], registry=on
        )
        self.planned_ratio = Histogram(
            "chunkcache_planned_ratio",
            "Time from look-up to first token, as measured / as planned",
            buckets=(0.5, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 4.0),
            registry=on,
        )
        self.queue_depth = Gauge("chunkcache_queue_depth", "Requests waiting", registry=on)
        self.running = Gauge("chunkcache_running_requests", "Requests in the batch", registry=on)
        self.step_rows = Histogram(
            "chunkcache_step_rows",
            "Rows computed per engine step",
            buckets=(1, 4, 16, 64, 128, 256, 512, 1024, 2048),
            registry=on,
        )
        self._add_store()

    def _add_store(self) -> None:
        """What tiers hold, refuse and let go, and what is damaged."""
        on = self.registry
        self.tier_bytes = Gauge("chunkcache_tier_bytes", "Bytes held", ["tier"], registry=on)
        self.tier_records = Gauge("chunkcache_tier_records", "Records held", ["tier"], registry=on)
        self.store_errors = Counter(
            "chunkcache_store_errors", "Store failures, by tier and kind", ["tier", "kind"],
            registry=on,
        )  # fmt: skip
        self.catalog_damaged = Counter(
            "chunkcache_catalog_damaged",
            "Damaged passages and texts of documents, whenever one was met and left out", ["kind"],
            registry=on,
        )  # fmt: skip
        for kind in ("passage", "text"):  # from 0 on, or the first one would be no increase
            self.catalog_damaged.labels(kind)
        self.store_refusals = Counter(
            "chunkcache_store_refusals", "Records that a durable tier did not take", ["tier"],
            registry=on,
        )  # fmt: skip
        self.tier_rests = Gauge(
            "chunkcache_tier_rests",
            "Circuit breaker of a remote tier: 0 asked, 1 tried again, 2 not asked",
            ["tier", "kind"], registry=on,
        )  # fmt: skip
        self.evictions = Counter("chunkcache_evictions", "Records evicted", ["tier"], registry=on)
        self.recompressed = Counter(
            "chunkcache_recompressed", "Cold records made denser", ["tier"], registry=on
        )
        self.recompressed_saved_bytes = Counter(
            "chunkcache_recompressed_saved_bytes", "What that gave back", ["tier"], registry=on
        )
        self.prefetches = Counter(
            "chunkcache_prefetches", "Chunks brought up before a request took them", registry=on
        )
        self.prefetches_wasted = Counter(
            "chunkcache_prefetches_wasted", "Those of them that no request took", registry=on
        )

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
