"""Lineage: from a text (or a region, a label, a sample) back to the bytes of its source.

The invariant: every step is a row or a manifest that stands in the snapshot; what cannot be found is said to be
missing, never passed over.

>>> for step in lineage(home, text_id):
...     print("  " * step.depth + step.what, step.id, step.said)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.catalog import CatalogError, reader
from catalog.manifest import read_manifest

KINDS = {
    "text": ("texts", "text_id", "kind || ': ' || text"), "roi": ("rois", "roi_id", "label || ', ' || position"),
    "label": ("labels", "label_id", "name || ' ' || value"),
    "passage": ("passages", "passage_id", "corpus || ': ' || text"),
    "measure": ("measures", "measure_id", "name || ' ' || value"), "sample": ("images", "sample_id", "source_item"),
}
"""Kind of evidence -> layer, its id, and what of its row is told."""
TOLD = 160
"""Characters of a row's words."""


@dataclass(frozen=True)
class Step:
    """One step back, `depth` steps from what was asked for."""

    depth: int
    what: str
    id: str
    said: str
    made_by: str
    """the unit that wrote the row: stage, version, parameters and hashes of what else decided it"""


def lineage(home: Path, id: str, at: int | None = None) -> list[Step]:
    """The steps, evidence first, the sample and its source's bytes last. Raises CatalogError for an unknown id."""
    with reader(home, at) as con:
        for kind, (layer, column, _) in KINDS.items():
            if con.execute(f"SELECT 1 FROM {layer} WHERE {column} = ? LIMIT 1", [id]).fetchone():
                return list(_steps(con, home, kind, id))
    raise CatalogError(f"no text, region, label, passage, measure or sample has the id {id!r} in this snapshot")


def _steps(con: Any, home: Path, kind: str, id: str) -> Iterator[Step]:
    (sample,) = con.execute(f"SELECT sample_id FROM {KINDS[kind][0]} WHERE {KINDS[kind][1]} = ?", [id]).fetchone()
    yield from _row(con, home, kind, id, sample, 0, set())
    if kind != "sample":
        yield from _row(con, home, "sample", sample, sample, 1, set())
    found = con.execute("SELECT * EXCLUDE (phash) FROM images WHERE sample_id = ?", [sample])
    image = dict(zip([d[0] for d in found.description], found.fetchone(), strict=True))
    yield Step(2, "item", image["source_item"], _said({
        name: image[name] for name in ("source", "source_uri", "source_version", "group_id", "article_id", "parent_id")
    }), "")
    yield Step(2, "pixels", image["sha256"], f"in {image['shard']}", "")
    licences = {name: image[name] for name in image if name.startswith("licence")}
    yield Step(2, "licences", image["licence_image"] or "unknown", _said(licences), "")
    if image["volume_id"]:
        scan = con.execute("SELECT items, sha256 FROM volumes WHERE volume_id = ?", [image["volume_id"]]).fetchone()
        files = "missing from volumes" if scan is None else f"{len(scan[0])} files, SHA-256 {', '.join(scan[1][:3])} …"
        yield Step(2, "scan", image["volume_id"], f"slice {image['slice_index']} of {files}", "")


def _row(con: Any, home: Path, kind: str, id: str, sample: str, depth: int, seen: set[str]) -> Iterator[Step]:
    layer, column, words = KINDS[kind]
    extra = ", evidence, generator, model, prompt_sha256, request_sha256" if kind == "text" else ""
    row = con.execute(
        f"SELECT {words}, shard{extra} FROM {layer} WHERE {column} = ? AND sample_id = ?", [id, sample]
    ).fetchone()
    if row is None:
        yield Step(depth, kind, id, "missing: no such row in this snapshot", "")
        return
    said = " ".join(str(row[0]).split())[:TOLD]
    if kind == "text":
        said += _said(dict(zip(("", "generator", "model", "prompt", "request"), row[2:], strict=True)), skip="")
    yield Step(depth, kind, id, said, _unit(con, home, row[1]))
    for cited in row[2] if kind == "text" else ():
        name, _, rest = cited.partition(":")
        at = rest.partition("@")[0]
        if name == "image":
            (value,) = con.execute(f'SELECT "{rest}"::VARCHAR FROM images WHERE sample_id = ?', [sample]).fetchone()
            yield Step(depth + 1, "image", rest, str(value), "")
        elif name in KINDS and at not in seen:
            seen.add(at)
            yield from _row(con, home, name, at, sample, depth + 1, seen)


def _unit(con: Any, home: Path, shard: str) -> str:
    made_by = "SELECT u.path FROM units u JOIN shards s ON s.unit = u.id WHERE s.path = ?"
    (path,) = con.execute(made_by, [shard]).fetchone()
    made = read_manifest(home, path)
    told = {**({"params": json.dumps(dict(made.params), sort_keys=True)} if made.params else {}), **made.ingredients}
    return f"{made.stage}@{made.stage_version} of {made.source}/{made.partition}{_said(told)}"


def _said(facts: dict[str, Any], skip: str | None = None) -> str:
    known = [f"{name} {value}" for name, value in facts.items() if value is not None and name != skip]
    return f" ({', '.join(known)})" if known else ""
