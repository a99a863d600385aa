"""Hit rate by size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chunkcache.evaluate.hitrate.policies import policy_named
from chunkcache.evaluate.hitrate.replay import Replaying, replay
from chunkcache.evaluate.hitrate.simulated import Device, TierSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.evaluate.hitrate.replay import Replay
    from chunkcache.evaluate.hitrate.trace import RecordSizes, Trace, TraceFacts

MEMORY: Final = "memory"
DISK: Final = "disk"


@dataclass(frozen=True, slots=True)
class Costs:
    """How fast things are. Defaults: one large GPU, its host's memory read in place, one NVMe."""

    tokens_per_s: float = 20_000.0
    disk: Device = Device(bytes_per_s=5e9, latency_s=1e-4)  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace, what is known of it, and how large and how fast things are."""

    trace: Trace
    sizes: RecordSizes
    facts: TraceFacts
    costs: Costs = Costs()

    def specs(self, memory_bytes: int, disk_bytes: int) -> list[TierSpec]:
        """Memory over disk. A disk takes somewhat more than memory for the same records, so it is
        simulated with as much less."""
        specs = [TierSpec(MEMORY, memory_bytes)]
        if disk_bytes:
            ratio = self.facts.footprint_bytes / max(self.facts.disk_footprint_bytes, 1)
            specs.append(TierSpec(DISK, int(disk_bytes * ratio), self.costs.disk, durable=True))
        return specs

    def replaying(self, policy: str, memory_bytes: int, disk_bytes: int = 0) -> Replaying:
        """One setting, to be replayed."""
        return Replaying(
            self.specs(memory_bytes, disk_bytes), policy, policy_named(policy),
            tokens_per_s=self.costs.tokens_per_s,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """One size of memory, and what came of it."""

    memory_bytes: int
    disk_bytes: int
    replay: Replay


def sweep(
    workload: Workload,
    policies: Sequence[str],
    memory_bytes: Sequence[int],
    disk_bytes: int = 0,
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[str, list[Point]]:
    """Every policy at every size of memory over the same disk, in one reading of the trace."""
    grid = [(policy, size) for policy in policies for size in sorted(set(memory_bytes))]
    settings = [workload.replaying(policy, size, disk_bytes) for policy, size in grid]
    points: dict[str, list[Point]] = {policy: [] for policy in policies}
    results = replay(workload.trace, workload.sizes, settings, on_progress)
    for (policy, size), result in zip(grid, results, strict=True):
        points[policy].append(Point(size, disk_bytes, result))
    return points
