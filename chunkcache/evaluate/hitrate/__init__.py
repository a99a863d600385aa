"""How often passages come again, and how large a cache must be for it: traces, replayed.

A trace (`read_trace`, `ZipfTraffic`, `read_service_log`) goes through the service's own tiers and
policies with records that have sizes alone (`simulated.py`): `analyse` → tables, curve, advice.
"""

from __future__ import annotations

from chunkcache.evaluate.hitrate.advice import Advice, advise
from chunkcache.evaluate.hitrate.amounts import parse_bytes
from chunkcache.evaluate.hitrate.bound import best_hit_rates
from chunkcache.evaluate.hitrate.curve import Costs, Point, Workload, sweep
from chunkcache.evaluate.hitrate.exports import write_chunk_lines, write_lmcache
from chunkcache.evaluate.hitrate.findings import SWEEP, Findings, Wishes, analyse
from chunkcache.evaluate.hitrate.oracle_general import write_oracle_general
from chunkcache.evaluate.hitrate.picture import draw_curve
from chunkcache.evaluate.hitrate.policies import POLICIES, SHIPPED
from chunkcache.evaluate.hitrate.replay import Replay, Replaying, replay
from chunkcache.evaluate.hitrate.reuse import Reuse, compare_reuse
from chunkcache.evaluate.hitrate.service_log import keep_sizing, read_service_log
from chunkcache.evaluate.hitrate.simulated import Device, TierSpec
from chunkcache.evaluate.hitrate.sources import FORMS, read_trace
from chunkcache.evaluate.hitrate.synthetic import ZIPF, ZipfTraffic
from chunkcache.evaluate.hitrate.trace import (
    RecordSizes,
    Trace,
    TracedRequest,
    TraceFacts,
    measure,
)

__all__ = [
    "FORMS",
    "POLICIES",
    "SHIPPED",
    "SWEEP",
    "ZIPF",
    "Advice",
    "Costs",
    "Device",
    "Findings",
    "Point",
    "RecordSizes",
    "Replay",
    "Replaying",
    "Reuse",
    "TierSpec",
    "Trace",
    "TraceFacts",
    "TracedRequest",
    "Wishes",
    "Workload",
    "ZipfTraffic",
    "advise",
    "analyse",
    "best_hit_rates",
    "compare_reuse",
    "draw_curve",
    "keep_sizing",
    "measure",
    "parse_bytes",
    "read_service_log",
    "read_trace",
    "replay",
    "sweep",
    "write_chunk_lines",
    "write_lmcache",
    "write_oracle_general",
]
