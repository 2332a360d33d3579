"""What lies beside every export: who is to be named, what is known to be wrong, and where the rest is.

    ATTRIBUTIONS       one line for each work and licence: title, journal, address, how many images
    KNOWN_ISSUES.json  failed checks and captions too long for common encoders, counted, with an example
    pointers.jsonl     rows whose pixels were not to be written, with all that is needed to get them
    fetch.py           gets them, as far as they are whole files of the source

The invariant: all of it is decided by snapshot, condition and policy, never by how the export went.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from catalog.exports import CAPTION_KINDS, facts, fetch
from catalog.selection import Row, Selection

LIMITS = {75: "CLIP (77 with its two marks)", 254: "encoders of 256 tokens"}
"""Tokens that fit. Words and marks are counted, of which no tokenizer makes fewer: the counts are lower bounds."""
_WORKS = """
SELECT t.source, t.article_id, min(a.title) AS title, min(a.journal) AS journal, min(a.date) AS date,
  min(a.doi) AS doi, min(a.pmid) AS pmid, coalesce(bool_or(a.retracted), false) AS retracted, t.licence_image,
  count(DISTINCT t.sample_id) AS images
FROM taken t LEFT JOIN articles a USING (article_id)
GROUP BY t.source, t.article_id, t.licence_image ORDER BY ALL
"""
_FAILED = """
SELECT 'check ' || c."check" || ' fails' AS issue, count(*) AS rows, count(DISTINCT sample_id) AS samples,
  min(sample_id) AS example
FROM checks c JOIN taken t USING (sample_id) WHERE c.verdict = 'fail' GROUP BY ALL ORDER BY ALL
"""
_LONG = r"""
SELECT count(*) AS rows, count(DISTINCT sample_id) AS samples, min(sample_id) AS example
FROM texts x JOIN taken t USING (sample_id)
WHERE kind IN ({kinds}) AND len(regexp_extract_all(text, '\w+|[^\w\s]')) > {limit}
"""


def attributions(selection: Selection) -> Iterator[str]:
    """A line for each work and licence."""
    for work in selection.ask(_WORKS).to_pylist():
        address = f"https://doi.org/{work['doi']}" if work["doi"] else work["article_id"]
        said = [work["title"], work["journal"], work["date"], address, f"source {work['source']}"]
        said += ["RETRACTED"] if work["retracted"] else []
        said += [f"licence {work['licence_image'] or 'unknown'}", f"{work['images']} images"]
        yield ". ".join(_line(str(part)) for part in said if part) + "\n"


def known_issues(selection: Selection) -> list[dict[str, Any]]:
    """Issues with rows, samples and an example; what did not occur is not listed."""
    found: list[dict[str, Any]] = selection.ask(_FAILED).to_pylist()
    kinds = ", ".join(f"'{kind}'" for kind in CAPTION_KINDS)
    for limit, whose in LIMITS.items():
        (row,) = selection.ask(_LONG.format(kinds=kinds, limit=limit)).to_pylist()
        if row["rows"]:
            issue = f"captions of more than {limit} words and marks, too long for {whose}; they were not cut"
            found.append({"issue": issue, **row})
    return found


def write_pointers(selection: Selection, out: Path) -> int:
    """Write pointers.jsonl and fetch.py for the samples of a selection, without their pixels; returns how many."""
    volumes = {
        row["volume_id"]: row for row in selection.ask(
            "SELECT volume_id, items, sha256, shape, affine, spacing, orientation FROM volumes v WHERE volume_id IN "
            "(SELECT volume_id FROM images JOIN taken USING (sample_id)) ORDER BY volume_id"
        ).to_pylist()
    }
    written = 0
    with open(out / "pointers.jsonl", "w", encoding="utf-8") as file:
        for row in selection.rows(pictures=False):
            file.write(json.dumps(_pointer(row, volumes), ensure_ascii=False, sort_keys=True) + "\n")
            written += 1
    shutil.copyfile(fetch.__file__, out / "fetch.py")
    return written


def _pointer(row: Row, volumes: dict[str, Any]) -> dict[str, Any]:
    said = {"labels": row.labels, "rois": row.rois, "texts": row.texts}
    return {**facts(row), **said, "name": row.name, "volume": volumes.get(row.image["volume_id"])}


def _line(text: str) -> str:
    """One line of printable words, whatever a source wrote."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "", " ".join(text.split())).rstrip(".")
