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
from dataclasses import replace
from pathlib import Path
from typing import Any

from catalog.exports import CAPTION_KINDS, facts, fetch
from catalog.selection import Row, Selection

LIMITS = {75: "CLIP (77 with its two marks)", 254: "encoders of 256 tokens"}
"""Tokens that fit. Words and marks are counted, of which no tokenizer makes fewer: the counts are lower bounds."""
_OF_VOLUMES = ("volume_id", "items", "sha256", "shape", "affine", "spacing", "orientation")
_WORKS = """
SELECT t.source, t.article_id, a.title, a.journal, a.date, a.doi, a.pmid, coalesce(a.retracted, false) AS retracted,
  t.licence_image, t.images
FROM (SELECT source, article_id, licence_image, count(*) AS images FROM taken GROUP BY ALL) t
LEFT JOIN (SELECT article_id, min(title) AS title, min(journal) AS journal, min(date) AS date, min(doi) AS doi,
  min(pmid) AS pmid, bool_or(retracted) AS retracted FROM articles GROUP BY article_id) a USING (article_id)
ORDER BY ALL
"""
_FAILED = """
SELECT issue, sum(n)::BIGINT AS rows, count(*) AS samples, min(sample_id) AS example FROM taken JOIN
  (SELECT 'check ' || "check" || ' fails' AS issue, sample_id, count(*) AS n FROM checks WHERE verdict = 'fail'
    GROUP BY ALL) USING (sample_id)
GROUP BY issue ORDER BY issue
"""
_LONG = r"""
SELECT most, sum(n)::BIGINT AS rows, count(*) AS samples, min(sample_id) AS example FROM taken JOIN
  (SELECT most, sample_id, count(*) AS n FROM (SELECT unnest({limits}) AS most) JOIN
    (SELECT sample_id, len(regexp_extract_all(text, '\w+|[^\w\s]')) AS tokens FROM texts
      WHERE kind IN ({kinds}) AND length(text) > {least}) ON tokens > most
    GROUP BY ALL) USING (sample_id)
GROUP BY most ORDER BY most
"""
"""A text has as many characters as tokens at least, which is faster to ask."""


def attributions(selection: Selection) -> Iterator[str]:
    """A line for each work and licence."""
    for work in selection.ask(_WORKS):
        address = f"https://doi.org/{work['doi']}" if work["doi"] else work["article_id"]
        said = [work["title"], work["journal"], work["date"], address, f"source {work['source']}"]
        said += ["RETRACTED"] if work["retracted"] else []
        said += [f"licence {work['licence_image'] or 'unknown'}", f"{work['images']} images"]
        yield ". ".join(_line(str(part)) for part in said if part) + "\n"


def known_issues(selection: Selection) -> list[dict[str, Any]]:
    """Issues with rows, samples and an example; what did not occur is not listed."""
    found = list(selection.ask(_FAILED))
    kinds = ", ".join(f"'{kind}'" for kind in CAPTION_KINDS)
    for row in selection.ask(_LONG.format(kinds=kinds, limits=sorted(LIMITS), least=min(LIMITS))):
        limit = row.pop("most")
        issue = f"captions of more than {limit} words and marks, too long for {LIMITS[limit]}; they were not cut"
        found.append({"issue": issue, **row})
    return found


def write_pointers(selection: Selection, out: Path) -> int:
    """Write pointers.jsonl and fetch.py for the samples of a selection, without their pixels; returns how many."""
    written = 0
    with open(out / "pointers.jsonl", "w", encoding="utf-8") as file:
        for row in replace(selection, volumes=True).rows(pictures=False):
            file.write(json.dumps(_pointer(row), ensure_ascii=False, sort_keys=True) + "\n")
            written += 1
    shutil.copyfile(fetch.__file__, out / "fetch.py")
    return written


def _pointer(row: Row) -> dict[str, Any]:
    said = {"labels": row.labels, "rois": row.rois, "texts": row.texts}
    volume = None if row.volume is None else {name: row.volume[name] for name in _OF_VOLUMES}
    return {**facts(row), **said, "name": row.name, "volume": volume}


def _line(text: str) -> str:
    """One line of printable words, whatever a source wrote."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "", " ".join(text.split())).rstrip(".")
