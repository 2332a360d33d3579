"""Pages of a dataset: from a home and a request to a response, without a socket.

The invariant: whatever a source, a model or a visitor wrote reaches a page as text, never as markup; a picture is found
by its sample through the catalog, never by a path; the only thing ever written is a decision.

>>> respond(Dataset(home), Request("sample", {"id": sample_id})).status
200
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pydantic import ValidationError

from catalog import datacard, decisions, sheet
from catalog.browse import asks
from catalog.browse.outline import outline
from catalog.catalog import CatalogError, reader
from catalog.lineage import lineage
from catalog.selection import Selection
from infra.errors import ConfigError, MedloomError

ROOM = Path(__file__).parent
ASSETS = {"browse.css": "text/css; charset=utf-8", "browse.js": "text/javascript; charset=utf-8"}
CSP = ("default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
       "form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
CARD_CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
"""Of the data card, which stands alone and runs nothing."""
TYPES = {"png": "image/png", "jpg": "image/jpeg", "gif": "image/gif", "webp": "image/webp"}
BODY_BYTES = 100_000
QUEUED = 40
"""Things of the review queue shown at once."""
THUMBNAILS = 600
"""Thumbnails kept in memory, of about 30 kB each."""
EXAMPLES = (
    "modality = 'CT'", "source = 'name' AND width >= 512",
    "sample_id IN (SELECT sample_id FROM rois WHERE label LIKE '%lung%')",
    "sample_id IN (SELECT sample_id FROM checks WHERE \"check\" = 'support' AND value < 1)",
)


@dataclass(frozen=True)
class Dataset:
    """What is looked at."""

    home: Path
    read_only: bool = False


@dataclass(frozen=True)
class Request:
    """A request whose sender was checked: the name of a page, its parameters, who reviews, and a posted body."""

    page: str
    params: Mapping[str, str] = field(default_factory=dict)
    reviewer: str | None = None
    body: bytes | None = None


@dataclass(frozen=True)
class Response:
    """What goes back. `reviewer` is the pseudonym that the browser is asked to remember."""

    status: int
    kind: str
    body: bytes
    csp: str = CSP
    reviewer: str | None = None
    keep: bool = False
    """may be kept by the browser while it runs"""


@dataclass(frozen=True)
class Visit:
    """A request with the snapshot that answers it."""

    data: Dataset
    request: Request
    at: int

    def param(self, name: str, default: str = "") -> str:
        return self.request.params.get(name, default)

    def number(self, name: str, default: int) -> int:
        """A parameter as a whole number; the default where it is none."""
        given = self.param(name)
        return int(given) if given.isascii() and given.isdecimal() and len(given) < 12 else default

    def page(self, template: str, status: int = HTTPStatus.OK, **facts: Any) -> Response:
        """A page made from a template, with what every page shows."""
        shown = {
            "snapshot": self.at, "home": self.data.home.resolve().name, "reviewer": self.request.reviewer,
            "read_only": self.data.read_only, "here": self.request.page, "problem": None, **facts,
        }
        return Response(status, "text/html; charset=utf-8", _templates().get_template(template).render(shown).encode())


def respond(data: Dataset, request: Request) -> Response:
    """The response to a request; a problem that a person can mend is a page that says so."""
    if request.page in ASSETS and request.body is None:
        return Response(HTTPStatus.OK, ASSETS[request.page], (ROOM / request.page).read_bytes())
    pages = POSTS if request.body is not None else PAGES
    if request.page not in pages:
        return Response(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"There is no such page.")
    visit = Visit(data, request, 0)
    try:
        visit = replace(visit, at=Selection(data.home).snapshot)
        return pages[request.page](visit)
    except MedloomError as error:
        if request.body is not None:
            return _json({"problem": str(error)}, HTTPStatus.CONFLICT)
        if request.page in ("image", "thumb"):
            return Response(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", str(error).encode())
        return visit.page("problem.html", HTTPStatus.NOT_FOUND, problem=str(error))


def _grid(visit: Visit) -> Response:
    where, problem = visit.param("where"), None
    page = asks.Page((), 0, 1)
    try:
        page = asks.page_of(visit.data.home, where, visit.number("page", 1), visit.at)
    except CatalogError as error:
        problem = str(error)
    status = HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK
    return visit.page("grid.html", status, where=where, found=page, problem=problem, examples=EXAMPLES)


def _table(visit: Visit) -> Response:
    sql, problem = visit.param("q"), None
    columns: list[str] = []
    rows: list[list[Any]] = []
    more = False
    if sql.strip():
        try:
            columns, rows, more = asks.table(visit.data.home, sql, visit.at)
        except CatalogError as error:
            problem = str(error)
    status = HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK
    return visit.page("table.html", status, sql=sql, columns=columns, rows=rows, more=more, problem=problem)


def _sample(visit: Visit) -> Response:
    home, where, name = visit.data.home, visit.param("where"), visit.param("id")
    place = visit.number("n", 0) if "n" in visit.request.params else None
    if place is not None and not name:
        found = asks.nth(home, where, place, visit.at)
        if found is None:
            raise CatalogError(f"the selection has no sample number {place + 1}")
        name = found
    whole = asks.whole(home, name, visit.at)
    labels = {label: n for n, label in enumerate(sorted({r["label"] for r in whole.rois}))}
    experts = sorted({r["expert"] for r in whole.rois})
    fitting = [r for r in whole.rois if r["box"][2] <= whole.image["width"] and r["box"][3] <= whole.image["height"]]
    return visit.page(
        "sample.html", whole=whole, image=whole.image, labels=labels, experts=experts, where=where, place=place,
        paths={r["roi_id"]: outline(r) for r in fitting},
        decided=_decided(visit, lambda d: d.sample_id == name), steps=lineage(home, name, visit.at),
        seen_text=decisions.seen_text, seen_roi=decisions.seen_roi,
    )


def _lineage(visit: Visit) -> Response:
    """The lineage of one text or region, fetched when it is asked for."""
    steps = lineage(visit.data.home, visit.param("id"), visit.at)
    return _json([{"depth": s.depth, "what": s.what, "id": s.id, "said": s.said, "by": s.made_by} for s in steps])


def _review(visit: Visit) -> Response:
    home = visit.data.home
    made = decisions.read(home)
    mine = {(d.sample_id, d.about, d.seen) for d in made if d.reviewer == visit.request.reviewer}
    of_samples = {d.sample_id for d in made if d.reviewer == visit.request.reviewer and d.kind == "roi"}
    waiting = [
        row for row in asks.queue(home, visit.at)
        if (row["sample_id"], row["about"], decisions.seen_text(row["text"] or "")) not in mine
        and not (row["about"].startswith("sample:") and row["sample_id"] in of_samples)
    ]
    return visit.page(
        "review.html", waiting=waiting[:QUEUED], total=len(waiting), agreed=decisions.agreement(made),
        seen_text=decisions.seen_text, decisions=len(made),
    )


def _card(visit: Visit) -> Response:
    with reader(visit.data.home, visit.at) as con:
        body = datacard.page(visit.data.home, datacard.build_of(visit.data.home, visit.at), con)
    return Response(HTTPStatus.OK, "text/html; charset=utf-8", body.encode(), CARD_CSP)


def _image(visit: Visit) -> Response:
    """The stored picture, byte for byte."""
    named = f"sample_id = {asks.literal(visit.param('id'))}"
    for row in Selection(visit.data.home, named, visit.at).rows():
        return Response(HTTPStatus.OK, TYPES[row.suffix], bytes(row.image["image"]["bytes"]), keep=True)
    raise CatalogError("no sample of that id is in this snapshot")


def _thumb(visit: Visit) -> Response:
    return Response(HTTPStatus.OK, "image/png", _drawn(visit.data.home, visit.at, visit.param("id")), keep=True)


@lru_cache(maxsize=THUMBNAILS)
def _drawn(home: Path, at: int, name: str) -> bytes:
    """A thumbnail with the sample's regions drawn."""
    sql = f"SELECT sample_id, source, modality, width, height, shard FROM images WHERE sample_id = {asks.literal(name)}"
    chosen = asks.ask(home, sql, at)
    if not chosen:
        raise CatalogError("no sample of that id is in this snapshot")
    with reader(home, at) as con:
        return sheet.cards_of(con, home, chosen)[0].png


def _decide(visit: Visit) -> Response:
    """Keep a decision about what the visitor saw, if it still stands in the snapshot."""
    if visit.data.read_only:
        raise ConfigError("this dataset is shown read-only; start `medloom browse` without --read-only")
    if visit.request.reviewer is None:
        return _json({"problem": "say who reviews first"}, HTTPStatus.UNAUTHORIZED)
    told = _told(visit.request.body)
    try:
        decision = decisions.Decision.model_validate(told | {
            "reviewer": visit.request.reviewer,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        })
    except ValidationError as error:
        raise ConfigError("; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())) from None
    layer, seen = ("texts", None) if decision.kind == "text" else ("rois", None)
    column = "text_id" if decision.kind == "text" else "roi_id"
    rows = asks.ask(visit.data.home, f"SELECT * FROM {layer} WHERE sample_id = {asks.literal(decision.sample_id)} "
                                     f"AND {column} = {asks.literal(decision.id)}", visit.at)
    if rows:
        seen = decisions.seen_text(rows[0]["text"]) if decision.kind == "text" else decisions.seen_roi(rows[0])
    if seen != decision.seen:
        raise CatalogError("it has changed since this page was loaded; load the page again")
    if decision.box is not None:
        _check_box(visit, decision)
    return _json({"number": decisions.decide(visit.data.home, decision), "verdict": decision.verdict})


def _check_box(visit: Visit, decision: decisions.Decision) -> None:
    """A corrected box lies in the picture."""
    sql = f"SELECT width, height FROM images WHERE sample_id = {asks.literal(decision.sample_id)}"
    size = asks.ask(visit.data.home, sql, visit.at)[0]
    if decision.box and (decision.box[2] > size["width"] or decision.box[3] > size["height"]):
        raise ConfigError(f"the box leaves the picture of {size['width']} x {size['height']} pixels")


def _reviewer(visit: Visit) -> Response:
    """Turn a typed name into the pseudonym that the browser remembers; the name is kept nowhere."""
    if visit.data.read_only:
        raise ConfigError("this dataset is shown read-only; start `medloom browse` without --read-only")
    name = _told(visit.request.body).get("name")
    who = decisions.reviewer(visit.data.home, name if isinstance(name, str) else "")
    return replace(_json({"reviewer": who}), reviewer=who)


def _told(body: bytes | None) -> dict[str, Any]:
    try:
        told = json.loads(body or b"")
    except ValueError:
        raise ConfigError("the request is no JSON") from None
    if not isinstance(told, dict):
        raise ConfigError("the request is no JSON object")
    return told


def _decided(visit: Visit, wanted: Callable[[decisions.Decision], bool]) -> dict[str, list[decisions.Decision]]:
    """What was decided, by what it is about."""
    found: dict[str, list[decisions.Decision]] = {}
    for decision in decisions.latest(d for d in decisions.read(visit.data.home) if wanted(d)):
        found.setdefault(decision.about, []).append(decision)
    return found


def _json(value: Any, status: int = HTTPStatus.OK) -> Response:
    return Response(status, "application/json", json.dumps(value, ensure_ascii=False).encode())


@lru_cache(maxsize=1)
def _templates() -> Any:
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOM), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"shown": shown, "said": asks.said, "link": link}
    made.tests["match_claim"] = lambda check: check.startswith("claim/")
    made.globals["hue"] = lambda n: f"hsl({round((50 + n * 222.5) % 360)} 90% 60%)"
    return made


def link(to: str, /, **params: Any) -> str:
    """A relative address of a page; parameters that are None or empty are left out."""
    told = {name: value for name, value in params.items() if value not in (None, "")}
    return to + (f"?{urlencode(told)}" if told else "")


def shown(value: Any) -> str:
    """A cell in words: at most 300 characters, a dash for what is unknown."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= 300 else text[:300] + " …"


PAGES: Mapping[str, Callable[[Visit], Response]] = {
    "": _grid, "sample": _sample, "table": _table, "review": _review, "card": _card, "image": _image,
    "thumb": _thumb, "lineage": _lineage,
}
POSTS: Mapping[str, Callable[[Visit], Response]] = {"decide": _decide, "reviewer": _reviewer}
