"""Writes what documents say about the code from the code, and tables of figures from results.

    python docs/build.py            rewrite
    python docs/build.py --check    exit 1 if anything would change

Reference pages are made whole. In other documents the text between
`<!-- generated: NAME -->` and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import chunkcache.errors
from chunkcache.cli.app import app
from chunkcache.config import Settings
from chunkcache.metrics import Metrics
from chunkcache.server.routes import ROUTERS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NOTE = "<!-- made by docs/build.py; edit the code, not this page -->\n"


# ---------------------------------------------------------------- reference pages


def settings_page() -> str:
    """Every setting: name, default, meaning."""
    lines = [
        "# Settings", "", _NOTE,
        "From a TOML file (`--config`), then `CHUNKCACHE_*` variables (nested names with two",
        "underscores: `CHUNKCACHE_STORE__HOST_CAPACITY_BYTES`), then arguments; the last one wins.",
        "", "| setting | default | meaning |", "|---|---|---|",
    ]  # fmt: skip
    return "\n".join([*lines, *_setting_rows(Settings, "")]) + "\n"


def _setting_rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield from _setting_rows(kind, f"{prefix}{name}.")
            continue
        default = field.default
        shown = "per user" if default is PydanticUndefined else f"`{default!r}`"
        choices = ", ".join(str(c) for c in getattr(kind, "__args__", ()) if isinstance(c, str))
        meaning = (field.description or "") + (f" ({choices})" if choices else "")
        yield f"| `{prefix}{name}` | {shown} | {meaning} |".replace("\n", " ")


def commands_page() -> str:
    """Every command's own help text."""
    group: Any = typer.main.get_command(app)  # typer carries a click of its own
    parts = ["# Commands", "", _NOTE, "Options before the command are shared by all of them.", ""]
    context = group.context_class(group, info_name="chunkcache")
    parts += ["```text", _help(group, context), "```", ""]
    for name, command in group.commands.items():
        inner = command.context_class(command, info_name=name, parent=context)
        parts += [f"## {name}", "", "```text", _help(command, inner), "```", ""]
    return "\n".join(parts)


def _help(command: Any, context: Any) -> str:
    """Plain help, without the boxes whose width depends on the terminal."""
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"{context.command_path} {usage}", "", " ".join((command.help or "").split()), ""]
    rows = [p.get_help_record(context) for p in command.get_params(context)]
    shown = [(r[0], " ".join(r[1].split())) for r in rows if r is not None]
    width = max((len(name) for name, _ in shown), default=0)
    lines += [f"  {name:<{width}}  {meaning}".rstrip() for name, meaning in shown]
    return "\n".join(lines).strip()


def metrics_page() -> str:
    """Every metric, as `/metrics` names it."""
    lines = ["# Metrics", "", _NOTE, "Served by `/metrics` in Prometheus' text format.", ""]
    lines += ["| metric | type | meaning |", "|---|---|---|"]
    for family in Metrics().registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        lines.append(f"| `{family.name}{suffix}` | {family.type} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """The error tree, and what each one means."""
    module = chunkcache.errors
    tree = (module.__doc__ or "").split("\n\n", 1)[1].rstrip()
    lines = ["# Errors", "", _NOTE]
    lines += ['Over HTTP an error is `{"error": {"message", "type", "param", "code"}}`;']
    lines += ["the Python SDK raises the same classes again.", "", "```text", tree, "```", ""]
    lines += ["| class | status | code | meaning |", "|---|---|---|---|"]
    for name, error in vars(module).items():
        if inspect.isclass(error) and issubclass(error, module.ChunkCacheError):
            meaning = " ".join((error.__doc__ or "").split())
            lines.append(f"| `{name}` | {error.status} | `{error.code}` | {meaning} |")
    return "\n".join(lines) + "\n"


def routes_page() -> str:
    """Every route."""
    lines = ["# HTTP routes", "", _NOTE]
    lines += ["Shapes are OpenAI's; `/openapi.json` has them in full.", ""]
    lines += ["| method | path | what it does |", "|---|---|---|"]
    for router in ROUTERS:
        for route in router.routes:
            methods = "/".join(sorted(getattr(route, "methods", ())))
            endpoint = getattr(route, "endpoint", None)
            first = " ".join((inspect.getdoc(endpoint) or "").split("\n\n")[0].split())
            lines.append(f"| {methods} | `{getattr(route, 'path', '')}` | {first} |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- tables of results


def latest(benchmark: str) -> dict[str, Any] | None:
    """The last committed line of a benchmark."""
    path = RESULTS / f"bench_{benchmark}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else None


def _source(result: dict[str, Any]) -> str:
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
    lines += [f"in brackets relative to `full` turn by turn. {_source(result)}."]
    return "\n".join(lines) + "\n"


def _quality_runs(*splits: str) -> list[dict[str, Any]]:
    """The last run of every model and set on these halves, in every number type."""
    path = RESULTS / "bench_quality.jsonl"
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    latest_runs = {(run["model"], run["set"], run["split"], run["dtype"]): run for run in runs}
    return [run for _, run in sorted(latest_runs.items()) if run["split"] in splits]


def _largest_runs(split: str) -> list[dict[str, Any]]:
    """Of every model and set the run with the most questions."""
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
        lines += ["", f"{_source(run)}.", ""]
    lines += [
        "Rows: recomputed × layers ÷ reused, probes included. TTFT: of full recompute's. KL to",
        "full recompute in nats, F1 lost against it, with 95 % intervals. `… head`: chunks born",
        "after the head alone, as the papers' methods are meant. `all` recomputes every row: its",
        "KL is the noise floor of the number type.",
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
        lines += ["", f"{_source(run)}.", ""]
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
        f"head; seen before wherever they stood: {result['reuse']:.0%}. {_source(result)}.",
    ]
    return "\n".join(lines) + "\n"


def order_answers_table() -> str:
    """What the order of passages is worth to answers."""
    path = RESULTS / "bench_order_answers.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    runs = {(run["model"], run["set"]): run for run in map(json.loads, lines)}
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
    table += ["", f"{_source(list(runs.values())[-1])}."]
    return "\n".join(table) + "\n"


def oracle_table() -> str:
    """Mean KL of choosers that know what no server can."""
    path = RESULTS / "bench_oracle.jsonl"
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not runs:
        return "Not measured yet.\n"
    names = list(runs[-1]["mean_kl"])
    lines = ["| model, set, questions | " + " | ".join(names) + " |"]
    lines += ["|---|" + "---|" * len(names)]
    for run in runs:
        cells = [_interval(run["mean_kl"][name]) for name in names]
        about = f"{run['model']}, {run['set']}, {run['questions']}"
        lines.append(f"| {about} | " + " | ".join(cells) + " |")
    lines += ["", f"{_source(runs[-1])}.", ""]
    return "\n".join(lines)


def tried_table() -> str:
    """Ways that were tried beside the one that was built, the last run of every model and set."""
    path = RESULTS / "bench_tried.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    runs = {(run["model"], run["set"]): run for run in map(json.loads, lines)}
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
        table += ["", f"{_source(run)}.", ""]
    return "\n".join(table) if table else "Not measured yet.\n"


def needle_table() -> str:
    """How often every token of a needle is among the recomputed rows."""
    path = RESULTS / "bench_needle.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    runs = {run["model"]: run for run in map(json.loads, lines)}
    if not runs:
        return "Not measured yet.\n"
    names = list(next(iter(runs.values()))["found"])
    table = ["| model | cases | " + " | ".join(f"`{name}`" for name in names) + " |"]
    table += ["|---|---|" + "---|" * len(names)]
    for run in runs.values():
        cells = [str(run["found"][name]) for name in names]
        table.append(f"| {run['model']} | {run['cases']} | " + " | ".join(cells) + " |")
    table += ["", f"{_source(list(runs.values())[-1])}.", ""]
    return "\n".join(table)


TABLES: dict[str, Callable[[], str]] = {
    "ttft": ttft_table,
    "drift": drift_table,
    "drift-details": drift_details_table,
    "order": order_table,
    "order-answers": order_answers_table,
    "oracle": oracle_table,
    "tried": tried_table,
    "needle": needle_table,
}
PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/settings.md": settings_page,
    "docs/reference/commands.md": commands_page,
    "docs/reference/metrics.md": metrics_page,
    "docs/reference/errors.md": errors_page,
    "docs/reference/http.md": routes_page,
}
DOCUMENTS = (
    "README.md",
    "docs/concepts/repair.md",
    "docs/decisions/0009-order-of-passages.md",
    "kernels/README.md",
    "indexes/README.md",
)


def fill(text: str) -> str:
    """`text` with every generated block made anew.

    Raises:
        KeyError: a block names a table that is not there.
    """
    return _BLOCK.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def build() -> dict[Path, str]:
    """What every generated file should hold."""
    made = {ROOT / name: page() for name, page in PAGES.items()}
    for name in DOCUMENTS:
        path = ROOT / name
        if path.exists():
            made[path] = fill(path.read_text())
    return made


def main() -> int:
    """Rewrite, or with --check say what is out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [p for p, text in build().items() if not p.exists() or p.read_text() != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is out of date. Hint: python docs/build.py")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(build()[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
