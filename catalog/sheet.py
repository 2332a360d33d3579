"""The contact sheet: some samples of each source with their regions drawn and their texts, to be looked at.

Which samples: of every source, the `per_source` that tell most. Its modalities take turns (in alphabetical order,
unknown last), and within a modality the sample with the most distinct region labels comes first, then the most texts,
then the smallest sample_id. So each modality of a source is shown while there is room, and the same snapshot gives the
same sheet. Where a modality of a source has more than POOL samples, the choice is among the POOL smallest ids, which
are hashes and so favour nobody. Only the row groups that hold the chosen samples are read.

>>> with reader(home) as con:
...     markdown(cards(con, home))
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from catalog.drawing import Pixels, draw_regions
from infra import mirror

Rows = Sequence[Mapping[str, Any]]

SIDE = 384
"""Longer side of a thumbnail, pixels, at most."""
MARKDOWN_BYTES = 1_500_000
"""Size of the sheet as markdown, at most; cards that do not fit are counted at its end."""
POOL = 1000
"""Samples of each modality of a source that are compared with each other, so that a large dataset is not sorted."""

_CHOICE = f"""
WITH pool AS MATERIALIZED (
  SELECT unnest(ids) AS sample_id FROM (SELECT min(sample_id, {POOL}) AS ids FROM images GROUP BY source, modality)
), told AS (
  SELECT sample_id, source, modality, width, height, shard, coalesce(r.labels, 0) AS labels,
    coalesce(t.texts, 0) AS texts FROM images SEMI JOIN pool USING (sample_id)
  LEFT JOIN (SELECT sample_id, count(DISTINCT label) AS labels FROM rois SEMI JOIN pool USING (sample_id) GROUP BY 1) r
    USING (sample_id)
  LEFT JOIN (SELECT sample_id, count(*) AS texts FROM texts SEMI JOIN pool USING (sample_id) GROUP BY 1) t
    USING (sample_id)
), turns AS (
  SELECT *, row_number() OVER (PARTITION BY source, modality ORDER BY labels DESC, texts DESC, sample_id) AS turn
  FROM told
)
SELECT sample_id, source, modality, width, height, shard FROM turns
QUALIFY row_number() OVER (PARTITION BY source ORDER BY turn, modality NULLS LAST) <= ?
ORDER BY source, turn, modality NULLS LAST
"""
_ROIS = "SELECT * FROM rois WHERE sample_id IN (SELECT unnest(?)) ORDER BY area_fraction DESC, roi_id"
_TEXTS = """
SELECT * FROM texts WHERE sample_id IN (SELECT unnest(?))
ORDER BY list_position(['global', 'original_caption', 'report', 'region', 'relation'], kind) NULLS LAST, kind,
  generator = 'source', text_id
"""


@dataclass(frozen=True)
class Region:
    """A region as the sheet names it."""

    number: int | None
    """what stands beside it in the picture; None: it does not fit the image (a refused build) and is not drawn"""
    label: str
    position: str


@dataclass(frozen=True)
class Text:
    """A text of a sample; `origin` is its generator."""

    kind: str
    text: str
    origin: str


@dataclass(frozen=True)
class Card:
    """One sample on the sheet; width and height are those of the stored image, in pixels."""

    sample_id: str
    source: str
    modality: str | None
    width: int
    height: int
    png: bytes
    """thumbnail of at most SIDE pixels a side, regions drawn"""
    texts: tuple[Text, ...]
    regions: tuple[Region, ...]


def cards(con: Any, home: Path, per_source: int = 2) -> list[Card]:
    """The cards of the snapshot that the views of `con` show, by the rule above; image bytes come from `home`."""
    return cards_of(con, home, con.execute(_CHOICE, [per_source]).to_arrow_table().to_pylist())


def cards_of(con: Any, home: Path, chosen: Rows) -> list[Card]:
    """Cards of chosen samples, in their order: rows with sample_id, source, modality, width, height and shard."""
    encoded = _images(home, chosen)
    ids = [row["sample_id"] for row in chosen]
    rois, texts = _by_sample(con, _ROIS, ids), _by_sample(con, _TEXTS, ids)
    return [
        _card(row, encoded[name], rois.get(name, ()), texts.get(name, ()))
        for name, row in zip(ids, chosen, strict=True)
    ]


def markdown(sheet: Sequence[Card]) -> str:
    """The cards as markdown for a page that shows data: addresses; what the texts say cannot become markup."""
    parts: list[str] = []
    size = 0
    for card in sheet:
        part = markdown_card(card)
        if size + len(part.encode()) > MARKDOWN_BYTES:
            parts.append(f"*{len(sheet) - len(parts)} more samples are in the report.*\n")
            break
        parts.append(part)
        size += len(part.encode())
    return "\n".join(parts) if parts else "There is no sample to show.\n"


def data_uri(card: Card) -> str:
    """The thumbnail as a JPEG in a data: address; photographs are much smaller so."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(card.png)) as image:
        image.save(small, "JPEG", quality=80, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode("ascii")


def _images(home: Path, chosen: Rows) -> dict[str, bytes]:
    """sample_id -> encoded image, from the row groups that hold one of the chosen."""
    found: dict[str, bytes] = {}
    for shard in sorted({row["shard"] for row in chosen}):
        wanted = {row["sample_id"] for row in chosen if row["shard"] == shard}
        with pq.ParquetFile(mirror.opened(home / shard)) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["sample_id"])["sample_id"].to_pylist()
                if wanted.isdisjoint(ids):
                    continue
                images = file.read_row_group(group, columns=["image"])["image"]
                found |= {name: images[at]["bytes"].as_py() for at, name in enumerate(ids) if name in wanted}
    return found


def _by_sample(con: Any, sql: str, ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in con.execute(sql, [ids]).to_arrow_table().to_pylist():
        found.setdefault(row["sample_id"], []).append(row)
    return found


def _card(row: Mapping[str, Any], encoded: bytes, rois: Rows, texts: Rows) -> Card:
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    drawn = [roi for roi in rois if _fits(roi, pixels)]
    left = [roi for roi in rois if not _fits(roi, pixels)]
    return Card(
        row["sample_id"], row["source"], row["modality"], row["width"], row["height"], _thumbnail(pixels, drawn),
        tuple(Text(text["kind"], text["text"], text["generator"]) for text in texts),
        tuple(Region(number, roi["label"], roi["position"]) for number, roi in enumerate(drawn, 1))
        + tuple(Region(None, roi["label"], roi["position"]) for roi in left),
    )


def _fits(roi: Mapping[str, Any], pixels: Pixels) -> bool:
    """Whether a region lies in the image; in a refused build it may not."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = roi["box"]
    inside = 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    return inside and (roi["mask"] is None or list(roi["mask"]["size"]) == [height, width])


def _thumbnail(pixels: Pixels, rois: Rows) -> bytes:
    """PNG of at most SIDE pixels a side; a small image is enlarged by a whole number, for its numbers to be legible."""
    drawn = draw_regions(pixels, rois, zoom=max(1, SIDE // max(pixels.shape[:2])))
    drawn.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    png = io.BytesIO()
    drawn.save(png, "PNG")
    return png.getvalue()


def markdown_card(card: Card) -> str:
    """One card as markdown."""
    lines = [
        f"### {plain(card.source)} · {plain(card.modality or 'modality unknown')}", "",
        f"![{plain(card.sample_id)}]({data_uri(card)})", "",
        f"{card.width} × {card.height} pixels, sample {plain(card.sample_id)}", "",
    ]
    lines += [f"- {_number(r)}: **{plain(r.label)}**, {plain(r.position)}" for r in card.regions]
    lines += [f"- {plain(t.kind)} ({plain(t.origin)}): {plain(t.text)}" for t in card.texts]
    return "\n".join(lines) + "\n"


def _number(region: Region) -> str:
    return f"region {region.number}" if region.number else "a region that does not fit the image"


_PUNCTUATION = re.compile(r"[!-+\--/:-@\[-`{-~]")


def plain(text: str) -> str:
    """Text on one line whose punctuation is escaped, so that no markdown or HTML acts upon it."""
    return _PUNCTUATION.sub(r"\\\g<0>", " ".join(text.split()))
