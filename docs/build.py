"""Writes what documents say about the code from the code, and tables of figures from results.

    python docs/build.py            rewrite
    python docs/build.py --check    exit 1 if anything would change

Reference pages are made whole. In other documents the text between
`<!-- generated: NAME -->` and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from codec_table import codec_table
from hitrate_tables import hitrate_table
from models_page import models_page
from options_page import options_page
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from result_tables import TABLES

import chunkcache.errors
from chunkcache.cli.app import app
from chunkcache.config import Settings
from chunkcache.metrics import Metrics
from chunkcache.server.routes import ROUTERS

ROOT = Path(__file__).resolve().parent.parent
_TABLES = {**TABLES, "codec": codec_table, "hitrate": hitrate_table}
_BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NOTE = "<!-- made by docs/build.py; edit the code, not this page -->\n"


# ---------------------------------------------------------------- reference pages


def settings_page() -> str:
    """Every setting: name, default, meaning."""
    lines = [
        "# Settings", "", _NOTE,
        "From a TOML file (`--config`), then `CHUNKCACHE_*` variables (nested names with two",
        "underscores: `CHUNKCACHE_STORE__HOST_CAPACITY_BYTES`), then arguments; the last one wins.",
        "A name that is no setting is an error, wherever it is said.",
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
    lines += ["Shapes are OpenAI's; `/openapi.json` has them in full. What is not OpenAI's: the"]
    lines += [
        "[`chunkcache` object](options.md), `documents`, and routes under `/v1/chunkcache`.",
        "",
    ]
    lines += ["| method | path | what it does |", "|---|---|---|"]
    for router in ROUTERS:
        for route in router.routes:
            methods = "/".join(sorted(getattr(route, "methods", ())))
            endpoint = getattr(route, "endpoint", None)
            first = " ".join((inspect.getdoc(endpoint) or "").split("\n\n")[0].split())
            lines.append(f"| {methods} | `{getattr(route, 'path', '')}` | {first} |")
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/settings.md": settings_page,
    "docs/reference/commands.md": commands_page,
    "docs/reference/metrics.md": metrics_page,
    "docs/reference/models.md": models_page,
    "docs/reference/errors.md": errors_page,
    "docs/reference/http.md": routes_page,
    "docs/reference/options.md": lambda: options_page(_NOTE),
}
DOCUMENTS = (
    "README.md",
    "docs/concepts/repair.md",
    "docs/concepts/store.md",
    "docs/concepts/hitrate.md",
    "docs/decisions/0009-order-of-passages.md",
    "kernels/README.md",
    "indexes/README.md",
)


def fill(text: str) -> str:
    """`text` with every generated block made anew.

    Raises:
        KeyError: a block names a table that is not there.
    """
    return _BLOCK.sub(lambda m: m[1] + _TABLES[m[2]]() + m[3], text)


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
