"""The review sheet: for every expert the pictures that a person should look at before its regions are believed.

Which: of each expert, the `each` pictures on which it agrees worst with another (checks `agreement/…`), the `each` with
the largest anomaly (checks `…_plausible/EXPERT`, the share of rules that its regions break), and `each` at random, in
the order of a hash of expert and sample, so that the same snapshot gives the same sheet. A picture stands once, under
the first of these. The invariant: the page stands alone, as the report does; nobody's words become markup.

>>> write(home, build)
>>> (home / path(build)).exists()
True
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog import sheet
from catalog.builds import Build
from catalog.catalog import reader
from infra.storage import write_bytes

TEMPLATE = Path(__file__).with_name("review_sheet.html")
EACH = 4
"""Pictures of an expert for each reason."""
CAPTION = 240
"""Characters of a caption that the sheet shows."""

_EXPERTS = """
SELECT split_part(expert, '@', 1) AS expert, count(*) AS regions, count(DISTINCT sample_id) AS samples
FROM rois WHERE origin = 'predicted' AND role <> 'panel' GROUP BY 1 ORDER BY 1
"""
_PICTURE = "sample_id, source, modality, width, height, images.shard"
_WORST = f"""
SELECT {_PICTURE}, "check", value, detail FROM images JOIN checks USING (sample_id)
WHERE ("check" LIKE 'agreement/%' OR "check" LIKE 'volume\\_agreement/%' ESCAPE '\\') AND value < 1
  AND regexp_matches(detail, '(^|; )' || regexp_escape($1) || ' and | and ' || regexp_escape($1) || ': ')
ORDER BY value, sample_id, "check" LIMIT $2
"""
_ODDEST = f"""
SELECT {_PICTURE}, "check", value, detail FROM images JOIN checks USING (sample_id)
WHERE "check" IN ('roi_plausible/' || $1, 'volume_plausible/' || $1) AND value > 0
ORDER BY value DESC, sample_id, "check" LIMIT $2
"""
_RANDOM = f"""
SELECT {_PICTURE} FROM images SEMI JOIN (SELECT sample_id FROM rois
  WHERE origin = 'predicted' AND split_part(expert, '@', 1) = $1) found USING (sample_id)
ORDER BY md5($1 || sample_id), sample_id LIMIT $2
"""


@dataclass(frozen=True)
class Look:
    """One picture of an expert, and why it is shown."""

    reason: str
    """worst agreement, largest anomaly or random"""
    said: str
    """the figure and what the check says; "" for a random one"""
    card: sheet.Card

    @property
    def caption(self) -> str:
        """The first of its texts, cut to a line; "" where it has none."""
        text = " ".join(self.card.texts[0].text.split()) if self.card.texts else ""
        return text if len(text) <= CAPTION else text[:CAPTION].rsplit(" ", 1)[0] + " …"


@dataclass(frozen=True)
class Review:
    """What is shown of one expert."""

    expert: str
    regions: int
    samples: int
    looks: tuple[Look, ...]


def path(build: Build) -> str:
    """Where the review sheet of a build lies, relative to the home."""
    return f"reports/{build.number:06d}/review.html"


def reviews(con: Any, home: Path, each: int = EACH) -> list[Review]:
    """The sheet of the snapshot that the views of `con` show, an expert at a time in the order of their names."""
    return [
        Review(row["expert"], row["regions"], row["samples"], tuple(_looks(con, home, row["expert"], each)))
        for row in con.execute(_EXPERTS).to_arrow_table().to_pylist()
    ]


def write(home: Path, build: Build, con: Any = None) -> None:
    """Write the page; `con` as for catalog.report.write. Without predicted regions it says that there are none."""
    import jinja2

    with reader(home, build.number) if con is None else nullcontext(con) as open_con:
        shown = reviews(open_con, home)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    write_bytes(home / path(build), template.render(build=build, reviews=shown, image=sheet.data_uri).encode())


def markdown(shown: Sequence[Review]) -> str:
    """The sheet as markdown, for the UI of Prefect; at most as long as the contact sheet."""
    parts: list[str] = []
    size = left = 0
    for review in shown:
        parts.append(f"## {sheet.plain(review.expert)}: {review.regions} regions in {review.samples} samples\n")
        for look in review.looks:
            said = sheet.plain(f"{look.reason} {look.said}")
            part = f"**{said}**\n\n{sheet.markdown_card(look.card)}"
            size += len(part.encode())
            if size > sheet.MARKDOWN_BYTES:
                left += 1
            else:
                parts.append(part)
    if left:
        parts.append(f"*{left} more pictures are in the review sheet beside the report.*\n")
    return "\n".join(parts) if parts else "No expert found a region.\n"


def _looks(con: Any, home: Path, expert: str, each: int) -> list[Look]:
    seen: dict[str, tuple[str, str, Any]] = {}
    for reason, sql in (("worst agreement", _WORST), ("largest anomaly", _ODDEST), ("random", _RANDOM)):
        # as many more as are shown already, so that a picture that stands above makes room for another
        fresh: dict[str, dict[str, Any]] = {}
        for row in con.execute(sql, [expert, each + len(seen)]).to_arrow_table().to_pylist():
            if row["sample_id"] not in seen:
                fresh.setdefault(row["sample_id"], row)
        for name, row in list(fresh.items())[:each]:
            seen[name] = reason, f"{row['check']} {row['value']:.2f}: {row['detail']}" if "check" in row else "", row
    cards = sheet.cards_of(con, home, [row for _, _, row in seen.values()])
    return [Look(reason, said, card) for (reason, said, _), card in zip(seen.values(), cards, strict=True)]
