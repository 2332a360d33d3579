"""The fence around SQL that people write: one SELECT, over the catalog, with limits on time and memory.

The invariant: what a question may use is named here, not what it may not. The statement is parsed by DuckDB and its
tree is walked before it runs: table functions are those of TABLE_FUNCTIONS, tables have plain names (a name like
'x.parquet' would be a file). The connection is fenced besides: no file but those of the catalog, no variable of the
calling program, no network, and settings that cannot be changed.

>>> require_select(con, "SELECT * FROM read_csv('/etc/passwd')")
CatalogError: the catalog cannot answer: read_csv() is not for questions …
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.errors import MedloomError

TABLE_FUNCTIONS = frozenset({
    "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_tables", "duckdb_types", "duckdb_views",
    "generate_series", "icu_calendar_names", "json_each", "json_tree", "pg_timezone_names", "pragma_table_info",
    "range", "repeat", "repeat_row", "unnest",
})
"""Others read files, memory of this process, other databases, or run SQL that stands in a text."""
_NOT_FOR_QUESTIONS = frozenset({
    "current_setting", "getenv", "nextval", "pg_sleep", "setseed", "sleep_ms", "write_log",
})
"""Scalar functions that tell or touch more than the catalog; the rest is arithmetic."""
_FILE = re.compile(r"[./\\:*?\[\]]")
"""In the name of a table: a file, for DuckDB."""


class CatalogError(MedloomError):
    """The catalog cannot answer; the message says what to do."""


QUIET: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false", "autoload_known_extensions": "false",
}
"""Of every connection: nothing is fetched that nobody asked for."""


def settings() -> dict[str, str | bool | int | float | list[str]]:
    """Of a connection that answers questions."""
    return {
        **QUIET, "memory_limit": os.environ.get("MEDLOOM_SQL_MEMORY", "4GB"), "temp_directory": "",
    }


def close_off(con: Any, folders: Sequence[Path] = ()) -> None:
    """Shut the connection off from files but those in these folders, from the network, from its own settings."""
    if folders:
        names = ", ".join("'" + str(folder).replace("'", "''") + "/'" for folder in folders)
        con.execute(f"SET allowed_directories = [{names}]")
    con.execute(
        "SET enable_external_access = false; SET python_enable_replacements = false; SET lock_configuration = true"
    )


def require_select(con: Any, sql: str) -> None:
    """Raises CatalogError unless `sql` is one SELECT that uses what questions may use; duckdb.Error as DuckDB does."""
    import duckdb

    statements = con.extract_statements(sql)
    if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
        raise CatalogError("the catalog answers one SELECT at a time and is never written by SQL")
    tree = json.loads(con.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()[0])
    if tree["error"]:
        raise CatalogError(f"the catalog cannot answer: {tree['error_message']}")
    for said in _refused(tree):
        raise CatalogError(f"the catalog cannot answer: {said}")


def require_condition(con: Any, text: str) -> None:
    """Raises CatalogError unless `text`, in brackets, is a condition that uses what questions may use; duckdb.Error as
    DuckDB does.

    Parsed only: what it names need not be there. Whether it is one expression, so that it cannot close the brackets
    and go on, is for a relation's filter to say, which binds it and so must see it after this.
    """
    if "\0" in text:
        raise CatalogError("a null character is in no condition")
    require_select(con, f"FROM images WHERE (\n{text}\n)")


def _refused(node: Any) -> Iterator[str]:
    """What of a parsed statement is not for questions, in words."""
    if isinstance(node, list):
        for child in node:
            yield from _refused(child)
    elif isinstance(node, dict):
        if node.get("type") == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name")).lower()
            if name not in TABLE_FUNCTIONS:
                yield f"{name}() is not for questions, which may use layers, views and {', '.join(_SHOWN)}"
        elif node.get("type") == "BASE_TABLE" and _FILE.search(str(node["table_name"])):
            yield f"{node['table_name']!r} is no table; questions read no files"
        elif node.get("class") == "FUNCTION" and str(node.get("function_name")).lower() in _NOT_FOR_QUESTIONS:
            yield f"{node['function_name']}() is not for questions"
        for child in node.values():
            yield from _refused(child)


_SHOWN = ("range", "unnest", "json_each", "duckdb_columns")


@contextmanager
def limited(con: Any, seconds: float) -> Iterator[None]:
    """Interrupt the connection when the time is over."""
    clock = threading.Timer(seconds, con.interrupt)
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()
