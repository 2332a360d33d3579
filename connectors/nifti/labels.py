"""Tables that name the values of label maps: CSV, TSV, ITK-SNAP's label files, FreeSurfer's colour tables, JSON.

>>> read_labels(Path("labels.tsv"))
{'label_table': {'1': 'liver', '2': 'spleen'}}
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from connectors.nifti.found import label_facts
from infra.errors import ConfigError

VALUES = ("value", "index", "label", "labelvalue", "id", "number", "key", "mapping", "no")
NAMES = ("name", "structure", "labelname", "organ", "roi", "region", "description", "label")
"""Headings of the two columns, without blanks and case; the first that is there."""
SNAP = re.compile(r'\s*(\d+)(?:\s+[\d.]+){6}\s+"(.*)"\s*')
"""IDX -R- -G- -B- -A-- VIS MSH LABEL"""
FREESURFER = re.compile(r"\s*(\d+)\s+(\S+)(?:\s+\d+){4}\s*")
"""No. Label Name: R G B A"""


def read_labels(path: Path) -> dict[str, Any]:
    """The facts label_table, label_unions and label_ignored of a table. Raises ConfigError if it is none, OSError."""
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() == ".json":
            stated = json.loads(text)
            return label_facts(stated["labels"] if isinstance(stated.get("labels"), dict) else stated)
        table = _lines(text) or _columns(text)
    except (ValueError, TypeError, AttributeError, KeyError, csv.Error) as error:
        raise ConfigError(f"{path.name}: not a table of labels ({error}); correct it, or state label_names") from error
    if not table:
        raise ConfigError(f"{path.name}: it names no label value; a table has one column of values and one of names")
    return {"label_table": table}


def _lines(text: str) -> dict[str, str]:
    """ITK-SNAP's and FreeSurfer's form; empty where no line has it."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    matches = [SNAP.fullmatch(line) or FREESURFER.fullmatch(line) for line in lines]
    return {str(int(match[1])): match[2] for match in matches if match} if all(matches) else {}


def _columns(text: str) -> dict[str, str]:
    """CSV or TSV with headings."""
    first = text.split("\n", 1)[0]
    rows = csv.DictReader(text.splitlines(), delimiter=max("\t;,", key=first.count))
    headings = {re.sub(r"[^a-z]", "", (heading or "").lower()): heading for heading in rows.fieldnames or ()}
    value = next((headings[name] for name in VALUES if name in headings), None)
    name = next((headings[name] for name in NAMES if name in headings and headings[name] != value), None)
    if value is None or name is None:
        raise ValueError(f"its first line has no heading of a value ({', '.join(VALUES[:4])} …) and of a name")
    return {str(int(row[value])): row[name].strip() for row in rows if row[value] and row[name]}
