"""What was done to each file, without a single value: tags, actions and counts.

The invariant: a report can be handed out with the files; it names them as they are named in the output.

>>> report.add("3f…/90….dcm", made.actions, areas)
>>> report.write(folder)      # actions.jsonl: a line a file · actions.csv: tag, keyword, action, times, files
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from infra.storage import write_bytes
from transforms.deid.engine import Actions
from transforms.deid.pixels import Area

WORDS = {
    "X": "removed", "Z": "emptied", "D": "dummy", "U": "uid", "S": "items cleaned", "T": "date moved", "C": "cleaned",
    "H": "pseudonym", "A": "age", "I": "profile cleaned", "P": "private",
}
"""Action (see profile.py) -> what a report calls it."""


class Report:
    """Actions of many files."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._times: Actions = Counter()
        self._files: Actions = Counter()

    def add(self, name: str, actions: Actions, areas: Sequence[Area] = (), face: str = "no") -> None:
        """Note what was done to one file; `face` is the verdict of faces.py."""
        self._times.update(actions)
        self._files.update(actions.keys())
        done = {f"{tag:08X} {WORDS[action]}": count for (tag, action), count in sorted(actions.items())}
        line = {"file": name, "actions": done, "filled": [asdict(area) for area in areas], "face": face}
        self._lines.append(json.dumps(line, sort_keys=True))

    def table(self) -> list[dict[str, str | int]]:
        """One row per tag and action, sorted."""
        return [
            {
                "tag": f"{tag:08X}", "keyword": keyword_of(tag), "action": WORDS[action],
                "times": self._times[tag, action], "files": self._files[tag, action],
            }
            for tag, action in sorted(self._times)
        ]

    def write(self, folder: Path) -> None:
        """Write actions.jsonl and actions.csv."""
        write_bytes(folder / "actions.jsonl", "".join(f"{line}\n" for line in self._lines).encode())
        text = io.StringIO()
        rows = csv.DictWriter(text, ["tag", "keyword", "action", "times", "files"], lineterminator="\n")
        rows.writeheader()
        rows.writerows(self.table())
        write_bytes(folder / "actions.csv", text.getvalue().encode())


def keyword_of(tag: int) -> str:
    """What the standard calls a tag; "private", or "unknown"."""
    from pydicom.datadict import keyword_for_tag

    return "private" if tag >> 16 & 1 else keyword_for_tag(tag) or "unknown"
