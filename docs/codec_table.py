"""The tables of codecs, from the last committed run of each model and choice of codecs."""

from __future__ import annotations

from typing import Any

from result_tables import committed, source_of


def codec_table() -> str:
    """Bytes, speed, errors and drift of codecs, the last run of each model and choice of them."""
    runs = {
        (run["model"], *(row["codec"] for row in run["rows"])): run for run in committed("codec")
    }
    table: list[str] = [] if runs else ["Not measured yet."]
    for run in runs.values():
        table += [
            "| codec | of bf16 | encode, decode GB/s | error of K, V | drift alone, times `raw` "
            f"| repaired at {run['budget']}, times `raw` |",
            "|---|---|---|---|---|---|",
        ]
        for row in run["rows"]:
            rates = f"{row['encode_gb_per_s']:.3f}, {row['decode_gb_per_s']:.3f}"
            errors = f"{row['key_error']:.3f}, {row['value_error']:.3f}"
            drifts = [
                "{:.4f}, {:.2f} [{:.2f}, {:.2f}]".format(row[f"kl_{way}"][0], *times)
                for way in ("alone", "repaired")
                if (times := row[f"kl_{way}_times_raw"])
            ]
            cells = [f"`{row['codec']}`", f"{row['share']:.3f}", rates, errors, *drifts]
            table.append("| " + " | ".join(cells) + " |")
        table += [
            "",
            f"{run['model']} in {run['dtype']}, {run['questions']} questions of {run['set']} with "
            f"{run['passages']} passages; drift is mean KL to full recompute. {_beside(run)}"
            f"{source_of(run)}.",
            "",
        ]
    return "\n".join(table).rstrip() + "\n"


def _beside(run: dict[str, Any]) -> str:
    """What speeds are worth where other work ran, as the machine's load before the end tells."""
    machine = run["machine"]
    if machine["load_1min"] <= machine["cores"]:
        return ""
    return (
        f"Speeds were taken beside other work (load {machine['load_1min']:.1f}), by turns: they "
        "compare codecs of this table, and are no codec's speed. "
    )
