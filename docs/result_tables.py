"""Tables of figures, as documents show them, from the committed results of benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def committed(benchmark: str) -> list[dict[str, Any]]:
    """All committed runs of a benchmark, a line each; none where there is no file."""
    path = RESULTS / f"bench_{benchmark}.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n") if line]  # a text may hold U+2028


def latest(benchmark: str) -> dict[str, Any] | None:
    """The last committed run of a benchmark."""
    runs = committed(benchmark)
    return runs[-1] if runs else None


def source_of(result: dict[str, Any]) -> str:
    """How to measure it again, at which commit and where it was."""
    machine = result["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    return f"`{result['command']}` at commit {result['commit']}, {where}"


def ttft_table() -> str:
    """TTFT of every arm, relative to full recompute in the same run."""
    result = latest("ttft")
    if result is None:
        return "Not measured yet.\n"
    names = list(result["rows"][0]["arms"])
    lines = ["| passages × tokens | prompt | " + " | ".join(names) + " |"]
    lines += ["|---|---|" + "---|" * len(names)]
    for row in result["rows"]:
        cells = [f"{arm['ttft_ms']:.0f} ms ({arm['of_full']:.2f})" for arm in row["arms"].values()]
        size = f"{row['passages']} × {row['tokens']}"
        lines.append(f"| {size} | {row['prompt_tokens']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{result['model']} in {result['dtype']}, policy `{result['policy']}`; median TTFT,",
    ]
    lines += [f"in brackets relative to `full` turn by turn. {source_of(result)}."]
    return "\n".join(lines) + "\n"


def decode_table() -> str:
    """Tokens a second and the whole answer beside other engines, in the same run."""
    result = latest("decode")
    if result is None:
        return "Not measured yet.\n"
    lines = ["| prompt | engine | tokens/s | TTFT | answer | tokens/s to | answer to |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in result["rows"]:
        for name, arm in row["arms"].items():
            cells = [
                str(row["prompt_tokens"]), f"{name} ({result['arms'][name]['dtype']})",
                f"{arm['tokens_per_s'][0]:.1f}", f"{arm['ttft_ms'][0]:.0f} ms",
                f"{arm['answer_ms'][0] / 1e3:.1f} s",
                *(_ratios(arm, figure) for figure in ("tokens_per_s", "answer_ms")),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{result['model']}, {result['tokens']} tokens answered, passages of 512 tokens, warm, "
        f"budget {result['budget']:g};",
        f"medians of {result['rounds']} rounds in turns, `baseline` is {result['baseline']}. "
        f"{source_of(result)}.",
    ]
    return "\n".join(lines) + "\n"


def _ratios(arm: dict[str, Any], figure: str) -> str:
    """An arm's ratios of one figure to the others, turn by turn."""
    to = {name: value for name, value in arm.items() if name.startswith("to ")}
    shown = [f"{name.removeprefix('to ')} {value[figure][0]:.2f}" for name, value in to.items()]
    return ", ".join(shown) or "–"


def against_table() -> str:
    """TTFT beside other engines, in the same run."""
    result = latest("against")
    if result is None:
        return "Not measured yet.\n"
    names = list(result["rows"][0]["arms"])
    baseline = f"; `baseline` is {result['baseline']}" if "baseline" in names else ""
    lines = ["| case | prompt | " + " | ".join(names) + " |"]
    lines += ["|---|---|" + "---|" * len(names)]
    for row in result["rows"]:
        cells = [
            f"{arm['ttft_ms'][0]:.0f} ms ({arm[f'of {names[0]}'][0]:.2f})"
            for arm in row["arms"].values()
        ]
        lines.append(f"| {row['case']} | {row['prompt_tokens']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{result['model']}; median TTFT of {result['rounds']} rounds in turns, in brackets "
        f"relative to `{names[0]}`",
        f"round by round{baseline}. {source_of(result)}.",
    ]
    return "\n".join(lines) + "\n"


def sharing_table() -> str:
    """Memory and step time of many requests over shared passages."""
    result = latest("sharing")
    if result is None:
        return "Not measured yet.\n"
    lines = ["| passages | different | build | a step | memory above the model | by requests |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in result["rows"]:
        for name, arm in row["arms"].items():
            cells = [
                row["cell"], str(row["different_passages"]), name, f"{arm['step_ms'][0]:.0f} ms",
                f"{arm['added_bytes'] / 2**20:.0f} MiB",
                f"{arm['added_by_requests_bytes'] / 2**20:.0f} MiB",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    row = result["rows"][0]
    lines += [
        "",
        f"{result['model']}, {row['requests']} requests at once with {row['passages']} passages of "
        "512 tokens each,",
        f"budget {result['budget']:g}, `baseline` is {result['baseline']}. {source_of(result)}.",
    ]
    return "\n".join(lines) + "\n"


def ingest_table() -> str:
    """Chunks a second beside the baseline, in the same run."""
    # a run of many documents alone has no baseline beside it: its memory is in the log
    runs = [run for run in committed("ingest") if any("speedup" in row for row in run["rows"])]
    if not runs:
        return "Not measured yet.\n"
    result = runs[-1]
    lines = ["| documents | chunks | build | chunks/s | memory above the model | recall@10 |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in (row for row in result["rows"] if "arms" in row):
        for name, arm in row["arms"].items():
            cells = [
                f"{arm['documents']} {row['cell']}", str(arm["chunks"]), name,
                f"{arm['chunks_per_s'][0]:.1f}", f"{arm['added_bytes'][0] / 2**20:.0f} MiB",
                f"{row['recall']:.3f}" if name == "ours" and "recall" in row else "–",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{result['model']}; medians of {result['rounds']} rounds in turns, `baseline` is "
        f"{result['baseline']}: one document at a time.",
        f"Recall: of its ten best. {source_of(result)}.",
    ]
    return "\n".join(lines) + "\n"


def _quality_runs(*splits: str) -> list[dict[str, Any]]:
    """The last run of every model, set and number of passages on these halves, by number type.

    Runs with chunks born after the head, as the papers' methods are meant, are kept beside others.
    """
    runs = committed("quality")
    what = ("model", "set", "split", "dtype", "passages")
    latest_runs = {(*(run[name] for name in what), _has_head_arms(run)): run for run in runs}
    return [run for _, run in sorted(latest_runs.items()) if run["split"] in splits]


def _has_head_arms(run: dict[str, Any]) -> bool:
    return any(arm["name"].endswith(" head") for arm in run["arms"])


def _largest_runs(split: str) -> list[dict[str, Any]]:
    """Of every model and set the run with the most questions; of equals the one without `head`."""
    largest: dict[tuple[str, str], dict[str, Any]] = {}
    for run in _quality_runs(split):
        before = largest.setdefault((run["model"], run["set"]), run)
        if run["questions"] > before["questions"]:
            largest[run["model"], run["set"]] = run
    return list(largest.values())


def _about(run: dict[str, Any]) -> str:
    full, bare = run["full_f1"], run["no_documents_f1"]
    return (
        f"**{run['model']}, {run['set']}** ({run['split']} half, {run['dtype']}), "
        f"{run['questions']} questions "
        f"with {run['passages']} passages each; F1 of full recompute {full[0]:.3f}, without "
        f"documents {bare[0]:.3f}."
    )


def _interval(values: list[float]) -> str:
    return f"{values[0]:.3f} ({values[1]:.3f}-{values[2]:.3f})"


def _signed(values: list[float]) -> str:
    return f"{values[0]:+.3f} ({values[1]:+.3f}, {values[2]:+.3f})"


def drift_table() -> str:
    """What reuse changes, in short: every policy on the halves that nothing was chosen on."""
    lines: list[str] = []
    for run in _largest_runs("report"):
        lines += [_about(run), "", "| policy | rows | TTFT | mean KL | F1 lost | other text |"]
        lines += ["|---|---|---|---|---|---|"]
        for arm in run["arms"]:
            figures = arm["figures"]
            cells = [
                f"`{arm['name']}`", f"{abs(figures['repair_ratio'][0]):.1%}",
                f"{figures['ttft_ratio'][0]:.2f}", _interval(figures["mean_kl"]),
                _signed(arm["f1_loss"]), f"{figures['changed'][0]:.0%}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", f"{source_of(run)}.", ""]
    lines += [
        "Rows: recomputed × layers ÷ reused, probes included. TTFT: of full recompute's. KL to",
        "full recompute in nats, F1 lost against it, with 95 % intervals. `all` recomputes every",
        "row: its KL is the noise floor of the number type. All chunks were born after passages;",
        "born after the head alone, as the papers' methods are meant, they drift about twice as",
        "much ([figures](docs/concepts/repair.md#figures)).",
    ]
    return "\n".join(lines) + "\n"


def drift_details_table() -> str:
    """Every figure of every run, the halves for choosing included, and the paired comparisons."""
    lines: list[str] = []
    for run in _quality_runs("report", "tune"):
        lines += [
            _about(run), "",
            "| policy | cost | first KL | mean KL | top-1 | F1 | exact | ROUGE-L | refusals |",
            "|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [_drift_row(arm) for arm in run["arms"]]
        lines += ["", f"{source_of(run)}.", ""]
        if run.get("against"):
            lines += ["| mean KL, paired difference | |", "|---|---|"]
            lines += [
                f"| `{name}` | {_signed(difference)} |"
                for name, difference in run["against"].items()
                if name.startswith(("question@0.05 ", "question@0.15 "))
            ]
            lines.append("")
        if run.get("reliability"):
            lines += ["| drift predicted | measured | answers |", "|---|---|---|"]
            lines += [f"| {r['predicted']:.3f} | {_interval(r['measured'])} | {r['answers']} |"
                      for r in run["reliability"]]  # fmt: skip
            lines.append("")
    return "\n".join(lines)


def _drift_row(arm: dict[str, Any]) -> str:
    figures = arm["figures"]
    cells = [
        f"`{arm['name']}`",
        f"{abs(figures['repair_ratio'][0]):.3f}",
        _interval(figures["first_kl"]),
        _interval(figures["mean_kl"]),
        *(f"{figures[n][0]:.3f}" for n in ("agreement", "f1", "em", "rouge_l", "unanswered")),
    ]
    return "| " + " | ".join(cells) + " |"


def order_table() -> str:
    """What an exact prefix serves, by the order of passages."""
    result = latest("order")
    if result is None:
        return "Not measured yet.\n"
    lines = ["| prefix cache | as ranked | sorted by id | `cache_friendly` |", "|---|---|---|---|"]
    for row in result["rows"]:
        if row["heads"] == "one head":
            capacity = row["capacity_tokens"]
            size = f"{capacity:,} tokens" if capacity else "unlimited"
            cells = [f"{row[n]:.0%}" for n in ("relevance", "sorted", "cache_friendly")]
            lines.append(f"| {size} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Share of passage tokens, {result['requests']:,} requests of {result['trace']} under one",
        f"head; seen before wherever they stood: {result['reuse']:.0%}. {source_of(result)}.",
    ]
    return "\n".join(lines) + "\n"


def order_answers_table() -> str:
    """What the order of passages is worth to answers."""
    runs = {(run["model"], run["set"]): run for run in committed("order_answers")}
    if not runs:
        return "Not measured yet.\n"
    table = [
        "| model, set, questions | F1, support first | lost, anywhere | lost, support last |",
        "|---|---|---|---|",
    ]
    for run in runs.values():
        cells = [f"{run['model']}, {run['set']}, {run['questions']}", _interval(run["f1"]["first"])]
        cells += [_signed(run["f1_lost"][name]) for name in ("anywhere", "last")]
        table.append("| " + " | ".join(cells) + " |")
    table += ["", f"{source_of(list(runs.values())[-1])}."]
    return "\n".join(table) + "\n"


def oracle_table() -> str:
    """Mean KL of choosers that know what no server can."""
    runs = committed("oracle")
    if not runs:
        return "Not measured yet.\n"
    names = list(runs[-1]["mean_kl"])
    lines = ["| model, set, questions | " + " | ".join(names) + " |"]
    lines += ["|---|" + "---|" * len(names)]
    for run in runs:
        cells = [_interval(run["mean_kl"][name]) for name in names]
        about = f"{run['model']}, {run['set']}, {run['questions']}"
        lines.append(f"| {about} | " + " | ".join(cells) + " |")
    lines += ["", f"{source_of(runs[-1])}.", ""]
    return "\n".join(lines)


def tried_table() -> str:
    """Ways that were tried beside the one that was built, the last run of every model and set."""
    runs = {(run["model"], run["set"]): run for run in committed("tried")}
    table: list[str] = []
    for run in runs.values():
        table += [
            f"**{run['model']}, {run['set']}** ({run['split']} half, {run['dtype']}), "
            f"{run['questions']} questions, an honest {run['budget']:.0%}:",
            "", "| born: way | cost | mean KL | paired with `passages: question` |",
            "|---|---|---|---|",
        ]  # fmt: skip
        table += [
            f"| {name} | {way['cost']:.3f} | {_interval(way['mean_kl'])} | "
            f"{_signed(way['against_question'])} |"
            for name, way in run["ways"].items()
        ]
        table += ["", f"{source_of(run)}.", ""]
    return "\n".join(table) if table else "Not measured yet.\n"


def needle_table() -> str:
    """How often every token of a needle is among the recomputed rows."""
    runs = {run["model"]: run for run in committed("needle")}
    if not runs:
        return "Not measured yet.\n"
    names = list(next(iter(runs.values()))["found"])
    table = ["| model | cases | " + " | ".join(f"`{name}`" for name in names) + " |"]
    table += ["|---|---|" + "---|" * len(names)]
    for run in runs.values():
        cells = [str(run["found"][name]) for name in names]
        table.append(f"| {run['model']} | {run['cases']} | " + " | ".join(cells) + " |")
    table += ["", f"{source_of(list(runs.values())[-1])}.", ""]
    return "\n".join(table)


TABLES: dict[str, Callable[[], str]] = {
    "ttft": ttft_table,
    "decode": decode_table,
    "against": against_table,
    "sharing": sharing_table,
    "ingest": ingest_table,
    "drift": drift_table,
    "drift-details": drift_details_table,
    "order": order_table,
    "order-answers": order_answers_table,
    "oracle": oracle_table,
    "tried": tried_table,
    "needle": needle_table,
}
