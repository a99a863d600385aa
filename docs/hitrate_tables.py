"""The tables of replayed traces, from the last committed run of each."""

from __future__ import annotations

from typing import Any

from result_tables import committed, source_of

_KINDS = {
    "exact_prefix": "the whole prompt before it",
    "ordered_prefix": "the passages before it, in order",
    "same_set": "the passages before it, in any order",
    "any_context": "nothing: any context",
}


def hitrate_table() -> str:
    """Kinds of reuse, misses of one tier by policy, costs of three tiers, and speed."""
    runs = {run["trace"]: run for run in committed("hitrate")}
    if not runs:
        return "Not measured yet.\n"
    return "\n\n".join([_reuse(runs), *(_misses(run) for run in runs.values())]) + "\n"


def _reuse(runs: dict[str, dict[str, Any]]) -> str:
    lines = ["| an infinite cache serves, if it must be the same | " + " | ".join(runs) + " |"]
    lines += ["|---|" + "---|" * len(runs)]
    for kind, words in _KINDS.items():
        shares = [f"{run['reuse'][kind][0]:.4f}" for run in runs.values()]
        lines.append(f"| {words} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _misses(run: dict[str, Any]) -> str:
    facts, speed = run["facts"], run["speed"]
    sizes = list(next(iter(run["one_tier"].values())))
    lines = [
        f"**{run['trace']}**: {facts['accesses']:,} passages of {facts['distinct']:,} chunks; "
        "objects missed by one tier, by share of the footprint",
        "",
        f"| policy | {' | '.join(sizes)} |",
        "|---|" + "---|" * len(sizes),
    ]
    for policy, cells in run["one_tier"].items():
        figures = [f"{cell['object_miss']:.3f}" for cell in cells.values()]
        lines.append(f"| {policy} | {' | '.join(figures)} |")
    if run["optimum"]:
        figures = [f"({miss:.3f})" for miss in run["optimum"].values()]
        lines.append(f"| offline optimum, of bytes | {' | '.join(figures)} |")
    lines += ["", "| device/memory/disk | policy | time | hits | disk written |"]
    lines += ["|---|---|---|---|---|"]
    for row in run["cascade"]:
        shares = "/".join(f"{share:.0%}" for share in row["shares"])
        lines.append(
            f"| {shares} | {row['policy']} | {row['cost']:.3f} | {row['hit_rate']:.3f} | "
            f"{row['disk_written']:.2f} |"
        )
    lines += _beside_optimum(run.get("beside_optimum"))
    rates = ", ".join(f"{name}: {share:.2f}" for name, share in speed["of_twin"].items())
    lines += [
        "",
        f"Time: of computing every passage. Disk written: in footprints. Speed, LRU in ten lines "
        f"at 10 % being 1: {rates}; {speed['bytes_per_distinct_chunk']} bytes of memory for each "
        f"chunk. {source_of(run)}.",
    ]
    return "\n".join(lines)


def _beside_optimum(found: dict[str, Any] | None) -> list[str]:
    """What three tiers cost beside the best placement; nothing where it was not computed."""
    if found is None:
        return []
    shares, best = "/".join(f"{share:.0%}" for share in found["shares"]), found["optimum"]
    rows = [
        f"| {policy} | {cost:.3f} | {cost / best - 1:+.1%} |"
        for policy, cost in found["costs"].items()
    ]
    return [
        "",
        f"| {shares}, what a tier evicts goes to the next, moved for nothing | time "
        "| above the optimum |",
        "|---|---|---|",
        f"| offline optimum | {best:.3f} | |",
        *rows,
    ]
