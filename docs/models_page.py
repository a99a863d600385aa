"""The page of models, from the committed runs of `bench_models.py` and `bench_real_models.py`."""

from __future__ import annotations

from typing import Any

from result_tables import committed, source_of

PARTS = ("gate", "ttft", "drift")  # of a row of real weights, each from the last run that has it


def models_page() -> str:
    """Every type of decoder that transformers knows, whether it is served, and real weights."""
    runs = committed("models")
    lines = ["# Models", ""]
    if not runs:
        return "\n".join([*lines, "Not measured yet."]) + "\n"
    return "\n".join([*lines, *_types(runs), *_real_weights()]) + "\n"


def _types(runs: list[dict[str, Any]]) -> list[str]:
    rows = {name: (row, run) for run in runs for name, row in run["rows"].items()}
    counts: dict[str, int] = {}
    for row, _ in rows.values():
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    last = runs[-1]
    machine = f"{last['machine']['cpu']}, {last['machine']['cores']} cores"
    lines = [
        f"Every type that transformers {last['versions']['transformers']} can load as a decoder or",
        "as a model that reads text beside images (of which the part that reads is served),",
        "built tiny with random weights and put to the gate: a prompt of 2,400 tokens, chunks",
        "moved,",
        "all rows repaired, decoding; then full prefill and a decoded token at 100, 700 and 2,000",
        "tokens. Figures are the largest difference of logits to transformers' own (`unrepaired`:",
        "what reuse without repair differs by, which must show). Every model is put to the same",
        "gate when it is loaded; one that does not pass is served without reuse, or not at all,",
        "and its user is told why.",
        "", f"{', '.join(f'{n} {verdict}' for verdict, n in sorted(counts.items()))}. "
        "`python benchmarks/bench_models.py`, all types or some of them at a time (`--types`), "
        f"{machine}; rows say their commit.", "",
        "| type | verdict | full prefill | all repaired | moved | unrepaired | windows | why not "
        "| commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, (row, run) in sorted(rows.items()):
        figures = row.get("figures", {})
        shown = [
            f"{figures[kind]:.0e}" if kind in figures else ""
            for kind in ("reference", "repair_all", "moved", "unrepaired")
        ]
        windows = ", ".join(map(str, row.get("windows", ())))
        reason = " ".join(row.get("reason", "").replace("|", "/").split())[:160]
        cells = [name, row["verdict"], *shown, windows, reason, run["commit"]]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _real_weights() -> list[str]:
    """A line for each model; of every part the last run that measured it."""
    found: dict[str, dict[str, Any]] = {}
    commits: dict[str, dict[str, str]] = {}
    for run in committed("real_models"):
        for row in run["rows"]:
            found.setdefault(row["model"], {}).update(row)
            measured = {part: run["commit"] for part in PARTS if part in row}
            commits.setdefault(row["model"], {}).update(measured)
    if not found:
        return []
    last = committed("real_models")[-1]
    lines = [
        "", "## Real weights", "",
        "The same gate on real weights: `twin` is its small random twin in fp32 over a long prompt",
        "(full prefill / all repaired / unrepaired), `own` the model as it is loaded, in its own",
        "number type (full prefill / all repaired, beside what the type itself differs by). Time",
        "to first token is relative to full prefill, turn by turn in one run. Drift is the mean KL",
        "to full recompute over an answer, in nats, with its 95 % interval.",
        "",
        "| model | type | parameters | gate | twin | own | prompt | full | budget 0 | budget 0.15 "
        "| drift, no repair | drift, 15 % of rows | commits |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in sorted(found.items()):
        cells = [name, row["type"], f"{row['parameters'] / 1e6:.0f} M, {row['dtype']}"]
        cells += [*_gate_cells(row), *_ttft_cells(row), *_drift_cells(row)]
        cells.append(", ".join(f"{part} {commit}" for part, commit in commits[name].items()))
        lines.append("| " + " | ".join(cells) + " |")
    questions = sorted({row["drift"]["questions"] for row in found.values() if "drift" in row})
    asked = " or ".join(map(str, questions)) or "no"
    return [*lines, "", f"Drift over {asked} questions of SQuAD, policy `question`. "
            f"{source_of(last)}."]  # fmt: skip


def _gate_cells(row: dict[str, Any]) -> list[str]:
    if "gate" not in row:
        return [""] * 3
    figures = row["gate"]["figures"]

    def shown(*names: str) -> str:
        return " / ".join(f"{figures[name]:.0e}" if name in figures else "-" for name in names)

    own = f"{shown('own_reference', 'own_repair_all')} ({shown('own_noise')})"
    passed = "passed" if row["gate"]["reuses"] else "not passed"
    return [passed, shown("reference", "repair_all", "unrepaired"), own]


def _ttft_cells(row: dict[str, Any]) -> list[str]:
    if "ttft" not in row:
        return [""] * 4
    arms = row["ttft"]["arms"]
    rest = [f"{arms[n]['ttft_ms']:.0f} ms ({arms[n]['of_full']:.2f})"
            for n in ("cache 0", "cache 0.15")]  # fmt: skip
    return [f"{row['ttft']['prompt_tokens']} tokens", f"{arms['full']['ttft_ms']:.0f} ms", *rest]


def _drift_cells(row: dict[str, Any]) -> list[str]:
    if "drift" not in row:
        return [""] * 2
    cells = []
    for arm in row["drift"]["arms"]:
        mean, low, high = arm["figures"]["mean_kl"]
        cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
    return cells
