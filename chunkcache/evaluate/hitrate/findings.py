"""Everything there is to say of a trace: what is in it, what could be reused, the curve, advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from chunkcache.errors import InvalidRequest
from chunkcache.evaluate.hitrate.advice import advise
from chunkcache.evaluate.hitrate.amounts import parse_bytes
from chunkcache.evaluate.hitrate.bound import best_hit_rates
from chunkcache.evaluate.hitrate.curve import Costs, Workload, sweep
from chunkcache.evaluate.hitrate.policies import SHIPPED, policy_named
from chunkcache.evaluate.hitrate.reuse import compare_reuse
from chunkcache.evaluate.hitrate.trace import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chunkcache.evaluate.hitrate.advice import Advice
    from chunkcache.evaluate.hitrate.curve import Point
    from chunkcache.evaluate.hitrate.reuse import Reuse
    from chunkcache.evaluate.hitrate.trace import RecordSizes, Trace

    Progress = Callable[[str, int | None], Callable[[int], None]]

OPTIMUM: Final = "offline optimum"
SWEEP: Final = ("1%", "2%", "5%", "10%", "20%", "30%", "50%", "100%")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to find out. Sizes as `parse_bytes` reads them, percent of all distinct passages."""

    policies: Sequence[str] = (SHIPPED, "lru")  # advice is for the first
    memory: Sequence[str] = SWEEP
    disk: str = "0"
    target: float = 0.9
    optimum: bool = False  # needs highspy
    costs: Costs = Costs()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found out about one trace."""

    workload: Workload
    reuse: Reuse
    points: Mapping[str, Sequence[Point]]  # by policy
    advice: Advice
    optimum: Mapping[int, float] | None = None  # hit rate that no policy exceeds, by memory alone

    def lines(self) -> dict[str, list[tuple[int, float]]]:
        """Hit rates by size, for the picture."""
        lines = {
            policy: [(point.memory_bytes, point.replay.hit_rate) for point in line]
            for policy, line in self.points.items()
        }
        return lines | ({OPTIMUM: sorted(self.optimum.items())} if self.optimum else {})

    def as_dict(self) -> dict[str, Any]:
        """For a JSON line."""
        facts, advice = self.workload.facts, self.advice
        return {
            "trace": self.workload.trace.name,
            "bytes_per_token": self.workload.sizes.bytes_per_token,
            "facts": {**asdict(facts), "highest_hit_rate": round(facts.highest_hit_rate, 4),
                      "highest_token_hit_rate": round(facts.highest_token_hit_rate, 4)},
            "reuse": {
                kind: {"accesses": round(shares[0], 4), "tokens": round(shares[1], 4)}
                for kind, shares in asdict(self.reuse).items()
            },
            "costs": asdict(self.workload.costs),
            "curve": [
                {"memory_bytes": point.memory_bytes, "disk_bytes": point.disk_bytes,
                 **point.replay.as_dict()}
                for line in self.points.values() for point in line
            ],
            "optimum": [
                {"memory_bytes": size, "hit_rate": round(rate, 4)}
                for size, rate in (self.optimum or {}).items()
            ] or None,
            "advice": {"wanted": advice.wanted, "memory_bytes": advice.memory_bytes,
                       "disk_bytes": advice.disk_bytes, "said": advice.sentence(),
                       **advice.replay.as_dict()},
        }  # fmt: skip


def analyse(trace: Trace, sizes: RecordSizes, wishes: Wishes, progress: Progress) -> Findings:
    """Read a trace some twenty times, once for all sizes of the sweep.

    Args:
        progress: given a name and how many requests there are, tells what to call with how many
            are done.

    Raises:
        InvalidRequest: a wish cannot be met, or the trace's source says what is wrong with it.
    """
    for name in wishes.policies:
        policy_named(name)
    facts = measure(trace, sizes, progress("reading", trace.num_requests))
    if not facts.accesses:
        raise InvalidRequest.of("trace", trace.name, "with passages", "it has context alone")
    memory = [parse_bytes("--memory", size, facts.footprint_bytes) for size in wishes.memory]
    disk = parse_bytes("--disk", wishes.disk, facts.disk_footprint_bytes)
    workload = Workload(trace, sizes, facts, wishes.costs)
    optimum = None
    if wishes.optimum:
        rates = best_hit_rates(trace, sizes, memory, progress("optimum", len(memory)))
        optimum = dict(zip(memory, rates, strict=True))
    return Findings(
        workload,
        compare_reuse(trace, progress("reuse", facts.requests)),
        sweep(workload, wishes.policies, memory, disk, progress("replay", facts.requests)),
        advise(
            workload, wishes.target, policy=wishes.policies[0],
            on_progress=progress("advice", facts.requests),
        ),
        optimum,
    )  # fmt: skip
