"""The page of models, from the committed run of `benchmarks/bench_models.py`."""

from __future__ import annotations

from result_tables import latest, source_of


def models_page() -> str:
    """Every type of decoder that transformers knows, and whether it is served."""
    result = latest("models")
    lines = ["# Models", ""]
    if result is None:
        return "\n".join([*lines, "Not measured yet."]) + "\n"
    rows = result["rows"]
    counts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(result["counts"].items()))
    lines += [
        f"Every type that transformers {result['versions']['transformers']} can load as a decoder,",
        "built tiny with random weights and put to the gate: a prompt of 2,400 tokens, chunks",
        "moved,",
        "all rows repaired, decoding; then full prefill and a decoded token at 100, 700 and 2,000",
        "tokens. Figures are the largest difference of logits to transformers' own (`unrepaired`:",
        "what reuse without repair differs by, which must show). Every model is put to the same",
        "gate when it is loaded; one that does not pass is served without reuse, or not at all,",
        "and its user is told why.",
        "", f"{counts}. {source_of(result)}.", "",
        "| type | verdict | full prefill | all repaired | moved | unrepaired | windows | why not |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in sorted(rows.items()):
        figures = row.get("figures", {})
        shown = [
            f"{figures[kind]:.0e}" if kind in figures else ""
            for kind in ("reference", "repair_all", "moved", "unrepaired")
        ]
        windows = ", ".join(map(str, row.get("windows", ())))
        reason = " ".join(row.get("reason", "").replace("|", "/").split())[:160]
        lines.append(f"| {name} | {row['verdict']} | {' | '.join(shown)} | {windows} | {reason} |")
    return "\n".join(lines) + "\n"
