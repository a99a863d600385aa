"""`doctor`: what this machine is, what the model is, and what the gate says, with its figures."""

from __future__ import annotations

import typer
from rich.table import Table

from chunkcache.cli.context import shared
from chunkcache.cli.screen import console


def doctor(context: typer.Context) -> None:
    """Run the gate now; print its figures and causes. Exit code 1 when chunk KV is not reused."""
    from chunkcache.service.diagnosis import diagnose

    found = diagnose(shared(context).settings)
    out = console()
    table = Table(box=None, show_header=False)
    for name, value in found.facts.items():
        table.add_row(name, value)
    out.print(table)
    verdict = found.verdict
    figures = Table("check", "figure", "must be", box=None, header_style="bold")
    for name, figure in verdict.figures.items():
        sign = ">" if name == "unrepaired" else "≤"
        limit = f"{sign} {verdict.limits[name]:.1e}" if name in verdict.limits else ""
        figures.add_row(name, f"{figure:.3e}", limit)
    out.print(figures)
    for note in verdict.notes:
        out.print(note)
    for problem in verdict.problems:
        out.print(problem, style="red")
    if verdict.reuses:
        out.print("the gate is passed: chunk KV is reused", style="green")
    elif verdict.serves:
        out.print("full prefill is right, reuse is not: every prompt is computed in full")
    else:
        out.print("this model cannot be served", style="red")
    if not verdict.reuses:
        raise typer.Exit(1)
