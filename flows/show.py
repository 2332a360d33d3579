"""Rows shown on a terminal: as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import typer

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A spreadsheet runs a text that begins so (OWASP, CSV Injection); an apostrophe before it makes it a text again."""


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def show(rows: list[dict[str, Any]], format: str) -> None:
    """Print rows as a table, a JSON array, or CSV."""
    if format == "json":
        typer.echo(json.dumps(rows, indent=1, default=str))
    elif format == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        lines = (list(rows[0]) if rows else [], *(row.values() for row in rows))
        writer.writerows([_cell(value) for value in line] for line in lines)
        typer.echo(buffer.getvalue(), nl=False)
    elif format == "table":
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*(rows[0] if rows else ["no rows"]))
        for row in rows:
            table.add_row(*(Text("" if v is None else str(v)) for v in row.values()))
        Console(soft_wrap=False, width=None if sys.stdout.isatty() else 160).print(table)
    else:
        raise typer.BadParameter(f"{format!r} is not table, json or csv")
