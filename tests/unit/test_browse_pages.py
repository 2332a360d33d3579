"""The pages of `medloom browse`, without a socket: what they show, ask and keep, and that nobody's words act."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from makehome import Rows, make_home
from PIL import Image

from catalog.browse import asks
from catalog.browse.outline import outline, path_of
from catalog.browse.pages import CSP, Dataset, Request, Response, respond
from catalog.catalog import CatalogError, query
from catalog.decisions import read, seen_roi, seen_text
from catalog.schema import LAYERS
from infra.keys import key

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>\'; DROP TABLE images --{{ 7*7 }}</textarea>'
SAMPLE = key("sample", "CT", 0)
ADA = "r-0000000a"


class Page(HTMLParser):
    """Tags, their attributes and the visible text of a page."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(response.body.decode())
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def of(self, tag: str, name: str) -> list[str]:
        return [str(attrs[name]) for t, attrs in self.tags if t == tag and name in attrs]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("browse"), per_modality=12)


def get(home: Path, page: str = "", reviewer: str | None = None, **params: str) -> Response:
    return respond(Dataset(home), Request(page, params, reviewer))


def get_page(home: Path, number: int) -> Response:
    return respond(Dataset(home), Request("", {"page": str(number)}))


def post(home: Path, page: str, value: object, reviewer: str | None = ADA, read_only: bool = False) -> Response:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return respond(Dataset(home, read_only), Request(page, {}, reviewer, body))


def decision(home: Path, verdict: str, **more: object) -> dict:
    text = query(home, f"SELECT * FROM texts WHERE sample_id = '{SAMPLE}' AND kind = 'global'").to_pylist()[0]
    return {"sample_id": SAMPLE, "about": f"text:{text['text_id']}", "seen": seen_text(text["text"]),
            "verdict": verdict, **more}


def test_the_grid_pages_through_all_samples_in_one_order(home: Path) -> None:
    first, second = Page(get_page(home, 1)), Page(get_page(home, 2))
    shown = [re.search(r"id=(\w+)", a)[1] for p in (first, second) for a in p.of("img", "src")]
    assert len(shown) == 36 == len(set(shown)) and "36 samples, page 1 of 2" in first.text
    assert shown == [asks.nth(home, "", n) for n in range(36)] and asks.nth(home, "", 36) is None
    assert "page 2 of 2" in Page(get_page(home, 99)).text


def test_a_condition_filters_as_an_export_does(home: Path) -> None:
    assert "12 samples" in Page(get(home, where="modality = 'CT'")).text
    assert asks.page_of(home, "sample_id IN (SELECT sample_id FROM rois WHERE label = 'lesion') -- all", 1).total == 36


@pytest.mark.parametrize("where", [
    "nonsense = 1", "true) UNION (SELECT 1", "true; DROP TABLE x", "(SELECT", "a\0b", "true, true",
    "true FROM images", "true) ORDER BY (1", "sum(width) > 3",
])
def test_a_wrong_condition_is_told_in_words(home: Path, where: str) -> None:
    response = get(home, where=where)
    assert response.status == 400 and Page(response).of("p", "role").count("alert") == 1


@pytest.mark.parametrize(("where", "refused"), [
    ("1 = (SELECT count(*) FROM read_csv('/etc/passwd'))", r"read_csv\(\) is not for questions, which may use layers"),
    ("sample_id IN (SELECT content FROM read_text('/etc/passwd'))", r"read_text\(\) is not for questions"),
    ("EXISTS (FROM '/etc/passwd')", "'/etc/passwd' is no table"),
    ("EXISTS (FROM query('SELECT 1'))", r"query\(\) is not for questions"),
    ("EXISTS (FROM duckdb_settings())", r"duckdb_settings\(\) is not for questions"),
    ("EXISTS (FROM images, LATERAL (FROM glob('/etc/*')))", r"glob\(\) is not for questions"),
    ("current_setting('threads') > 0", r"current_setting\(\) is not for questions"),
    ("sleep_ms(5000)", r"sleep_ms\(\) is not for questions"), ("write_log('x') IS NULL", r"write_log\(\) is not for"),
    ("getenv('HOME') = 'x'", r"getenv\(\) is not for questions"),
    ("true) UNION ALL (FROM read_text('/etc/passwd')", r"read_text\(\) is not for questions"),
    ("true); COPY images TO '/tmp/x'; SELECT (1", "one SELECT at a time"),
])
def test_a_condition_may_ask_what_a_question_may(
    home: Path, monkeypatch: pytest.MonkeyPatch, where: str, refused: str
) -> None:
    """And is refused before DuckDB looks at what it names: on the page, in each place that takes a condition."""
    monkeypatch.setattr(asks, "query", None)  # nothing is asked
    response = get(home, where=where)
    assert response.status == 400 and re.search(refused, Page(response).text), Page(response).text
    walked = get(home, "sample", where=where, n="0")
    assert walked.status == 404 and re.search(refused, Page(walked).text), Page(walked).text


def test_a_free_question_is_fenced_limited_and_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(get(home, "table", q="SELECT sample_id, width FROM images ORDER BY sample_id;"))
    assert "36 rows" in page.text and any(a.startswith("sample?id=") for a in page.of("a", "href"))
    assert asks.table(home, "SELECT range FROM range(1000)")[1:] == ([[n] for n in range(500)], True)
    for sql in ("DROP TABLE images", "COPY images TO '/tmp/x'", "SELECT * FROM read_csv('/etc/passwd')", "SELECT 1) ("):
        assert get(home, "table", q=sql).status == 400
    monkeypatch.setattr(asks, "SECONDS", 0.2)
    slow = get(home, "table", q="SELECT count(*) FROM range(1000000000) a, range(1000000) b")
    assert slow.status == 400 and "no answer within 0.2 s" in Page(slow).text


def test_a_sample_is_shown_with_all_that_is_said(home: Path) -> None:
    page = Page(get(home, "sample", id=SAMPLE))
    for words in ("A picture of modality CT that shows a nodule.", "The lesion lies in the middle left.", "nodule",
                  "A nodule is a small round mass.", "36 pixels long", "evidence", "of the same scan", "template@1",
                  "in shards/images/"):
        assert words in page.text, words
    paths = page.of("path", "d")
    assert len(paths) == 2 and "M2 2H22V12H2Z" in paths
    assert {a for a in page.of("article", "data-about") if a.startswith("roi:")} == {
        f"roi:{key('roi', SAMPLE, name)}" for name in ("lesion", "device")}


def test_samples_are_walked_along_the_selection(home: Path) -> None:
    page = Page(respond(Dataset(home), Request("sample", {"where": "modality = 'CT'", "n": "3"})))
    assert asks.nth(home, "modality = 'CT'", 3) in page.text
    assert respond(Dataset(home), Request("sample", {"where": "modality = 'CT'", "n": "12"})).status == 404


def test_pictures_are_found_by_sample_only_and_stay_as_stored(home: Path) -> None:
    response = get(home, "image", id=SAMPLE)
    shard = query(home, f"SELECT shard FROM images WHERE sample_id = '{SAMPLE}'").to_pylist()[0]["shard"]
    rows = {r["sample_id"]: r["image"]["bytes"] for r in pq.read_table(home / shard).to_pylist()}
    assert (response.kind, response.body) == ("image/png", rows[SAMPLE])
    with Image.open(io.BytesIO(get(home, "thumb", id=SAMPLE).body)) as drawn:
        assert drawn.mode == "RGB" and max(drawn.size) <= 384
    for name in ("../../etc/passwd", shard, "", "' OR true --", "a\0"):
        assert get(home, "image", id=name).status == get(home, "thumb", id=name).status == 404
    for page in ("../decisions.py", "browse/pages.py", "pages.py", "base.html", "decide"):
        assert get(home, page).status == 404


def test_nobodys_words_become_markup(tmp_path: Path) -> None:
    def plant(rows: Rows) -> None:
        old = rows["images"][0]["sample_id"]
        for layer in LAYERS:
            for row in rows[layer]:
                if row.get("sample_id") == old:
                    row["sample_id"] = HOSTILE
                    for name in ("text", "label", "name", "position", "expert", "generator", "detail", "corpus"):
                        if name in row:
                            row[name] = HOSTILE
        rows["images"][0].update(modality=HOSTILE, view=HOSTILE, source_item=HOSTILE)

    hostile = make_home(tmp_path, plant, per_modality=2)
    for request in (
        Request("", {"where": f"modality = $${HOSTILE}$$"}), Request("", {"where": HOSTILE}),
        Request("sample", {"id": HOSTILE}), Request("sample", {"id": HOSTILE + "2"}), Request("review"),
        Request("table", {"q": f"SELECT text, sample_id FROM texts WHERE text = $${HOSTILE}$$"}), Request("card"),
        Request("table", {"q": HOSTILE}),
    ):
        response = respond(Dataset(hostile), request)
        page = Page(response)
        assert all(attrs.get("src") == "browse.js" for tag, attrs in page.tags if tag == "script"), request
        assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")], request
        assert "unsafe" not in response.csp.split("script-src")[-1].split(";")[0] and "style=" not in (
            response.body.decode() if request.page != "card" else "")
    assert HOSTILE in get(hostile, "sample", id=HOSTILE).body.decode().replace("&#34;", '"').replace(
        "&lt;", "<").replace("&gt;", ">").replace("&#39;", "'")
    assert "script-src 'self'" in CSP and "default-src 'none'" in CSP


def test_a_decision_is_kept_and_shown(tmp_path: Path) -> None:
    home = make_home(tmp_path, per_modality=2)
    assert json.loads(post(home, "decide", decision(home, "reject", note="no nodule")).body)["number"] == 1
    (kept,) = read(home)
    assert (kept.verdict, kept.reviewer, kept.note) == ("reject", ADA, "no nodule") and kept.made_at.endswith("+00:00")
    assert f"rejected by {ADA} (no nodule)" in Page(get(home, "sample", id=SAMPLE)).text
    roi = query(home, f"SELECT * FROM rois WHERE sample_id = '{SAMPLE}' AND label = 'lesion'").to_pylist()[0]
    about = {"sample_id": SAMPLE, "about": f"roi:{roi['roi_id']}", "seen": seen_roi(roi), "verdict": "correct"}
    assert post(home, "decide", {**about, "box": [1, 1, 9, 9]}, "r-0000000b").status == 200
    assert "leaves the picture" in post(home, "decide", {**about, "box": [1, 1, 999, 9]}).body.decode()
    page = Page(get(home, "review", reviewer=ADA))
    assert f"{ADA} (you)" in page.text and "No two reviewers have judged the same thing." in page.text


@pytest.mark.parametrize("change", [
    {"seen": "0" * 24}, {"about": "text:none"}, {"about": "text:' OR true --"}, {"sample_id": "none"},
    {"verdict": "delete"}, {"reviewer": "Ada"} | {"verdict": 3}, {"extra": 1}, {"text": "only for a correction"},
])
def test_a_decision_about_what_is_not_there_or_unclear_is_refused(home: Path, change: dict) -> None:
    response = post(home, "decide", decision(home, "accept") | change)
    assert response.status == 409 and json.loads(response.body)["problem"] and read(home) == []


def test_who_decides_is_said_first_and_a_read_only_page_keeps_nothing(home: Path) -> None:
    assert post(home, "decide", decision(home, "accept"), reviewer=None).status == 401
    assert post(home, "decide", decision(home, "accept"), read_only=True).status == 409
    assert post(home, "decide", b"[1]").status == post(home, "decide", b"{").status == 409
    assert read(home) == []
    shown = respond(Dataset(home, True), Request("sample", {"id": SAMPLE}))
    assert Page(shown).of("button", "data-verdict") == []


def test_a_name_is_turned_into_a_pseudonym(tmp_path: Path) -> None:
    home = make_home(tmp_path, per_modality=1)
    response = post(home, "reviewer", {"name": "Ada"}, None)
    assert re.fullmatch(r"r-[0-9a-f]{8}", response.reviewer or "") and b"Ada" not in response.body
    assert post(home, "reviewer", {"name": " "}, None).status == 409


def test_the_queue_holds_the_doubtful_first_and_not_what_was_judged(tmp_path: Path) -> None:
    def plant(rows: Rows) -> None:
        for number, (check, value, verdict) in enumerate(
            (("support", 0.5, "fail"), ("support", 0.2, "fail"), ("roi_plausible/ct", 0.4, "fail"),
             ("agreement/lung", 0.1, "fail"), ("problem/01", None, "fail"), ("support", 1.0, "pass"))
        ):
            sample = rows["images"][number]["sample_id"]
            of_text = not check.startswith(("roi_", "agree"))
            rows["checks"].append({
                "sample_id": sample, "text_id": key("text", sample, "global") if of_text else "", "check": check,
                "version": "1", "value": value, "verdict": verdict, "detail": "because",
            })

    home = make_home(tmp_path, plant, per_modality=2)
    found = asks.queue(home)
    ids = [row["sample_id"] for row in query(home, "SELECT sample_id FROM images").to_pylist()]
    assert [r["rank"] for r in found] == [0, 1, 1, 2, 3] and len(ids) == 6
    assert [r["why"] for r in found[1:3]] == ["support 0.2: because", "support 0.5: because"]
    assert found[3]["about"].startswith("sample:") and found[3]["text"] is None
    row = found[0]
    value = {"sample_id": row["sample_id"], "about": row["about"], "seen": seen_text(row["text"]), "verdict": "accept"}
    assert post(home, "decide", value).status == 200
    assert "4 to look at" in Page(get(home, "review", reviewer=ADA)).text
    assert "5 to look at" in Page(get(home, "review")).text


def test_a_check_is_told_in_words() -> None:
    assert asks.said({"detail": '{"text": "a liver", "reason": "no such region"}'}) == "“a liver”: no such region"
    assert asks.said({"detail": "{odd"}) == "{odd" and asks.said({"detail": None}) == "" and asks.said(
        {"detail": "[1]"}) == "[1]"


def test_an_outline_encloses_exactly_the_pixels_of_its_mask() -> None:
    mask = np.random.default_rng(3).random((23, 31)) > 0.6
    mask[4:12, 5:20], mask[6:9, 8:12] = True, False
    area = 0
    for loop in re.findall(r"M(\d+) (\d+)([^Z]*)Z", path_of(mask)):
        x, y = int(loop[0]), int(loop[1])
        corners = [(x, y)]
        for command, number in re.findall(r"([HV])(\d+)", loop[2]):
            x, y = (int(number), y) if command == "H" else (x, int(number))
            corners.append((x, y))
        twice = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(corners, corners[1:] + corners[:1], strict=True))
        area += twice // 2
    assert area == mask.sum() and path_of(np.zeros((3, 3), bool)) == ""
    assert path_of(np.ones((2, 3), bool)) == "M0 0H3V2H0Z"
    assert outline({"box": [1, 2, 3, 4], "mask": {"size": [2, 2], "counts": "!"}}) == "M1 2H3V4H1Z"


def test_an_id_cannot_leave_its_quotes() -> None:
    assert asks.literal("a'b") == "'a''b'"
    with pytest.raises(CatalogError):
        asks.literal("\0")
