"""The review sheet: the pictures of an expert that a person should see, on a page that stands alone."""

from __future__ import annotations

import re
from pathlib import Path

from makehome import Rows, make_home

from catalog import review_sheet, sheet
from catalog.builds import builds
from catalog.catalog import reader

HOSTILE = "<script>alert(1)</script> | ![x](http://example.org/x)"


def predicted(rows: Rows) -> None:
    """All lesions are found by `eye`, whose figures differ by sample; one has words that mean harm."""
    for n, image in enumerate(sorted(rows["images"], key=lambda row: row["sample_id"])):
        for roi in rows["rois"]:
            if roi["sample_id"] == image["sample_id"] and roi["label"] == "lesion":
                roi.update(origin="predicted", expert="eye@1")
        about = {"sample_id": image["sample_id"], "text_id": "", "version": "2", "verdict": "fail"}
        detail = f"eye and ear: Dice {n / 100:.3f}; all are kept"
        odd = f"lesion {n}: its shape {HOSTILE if n == 11 else ''}"
        rows["checks"].append({**about, "check": "agreement/lesion", "value": n / 100, "detail": detail})
        rows["checks"].append({**about, "check": "roi_plausible/eye", "value": n / 100, "detail": odd})


def ids(home: Path) -> list[str]:
    with reader(home) as con:
        return [row[0] for row in con.execute("SELECT sample_id FROM images ORDER BY 1").fetchall()]


def test_the_worst_the_oddest_and_some_at_random_each_once(tmp_path: Path) -> None:
    home = make_home(tmp_path, predicted)
    with reader(home) as con:
        (review,) = review_sheet.reviews(con, home, 3)
        assert [review] == review_sheet.reviews(con, home, 3), "the same twice"
    assert (review.expert, review.regions, review.samples) == ("eye", 12, 12)
    shown = [(look.reason, look.card.sample_id) for look in review.looks]
    names = ids(home)
    assert shown[:3] == [("worst agreement", name) for name in names[:3]]
    assert shown[3:6] == [("largest anomaly", name) for name in reversed(names[-3:])]
    assert [reason for reason, _ in shown[6:]] == ["random"] * 3
    assert len({name for _, name in shown}) == 9
    first = review.looks[0]
    assert "agreement/lesion 0.00: eye and ear" in first.said and "lesion" in [r.label for r in first.card.regions]
    assert first.caption.startswith("A picture of modality")


def test_the_page_stands_alone_and_words_are_no_markup(tmp_path: Path) -> None:
    home = make_home(tmp_path, predicted)
    (build,) = builds(home)
    review_sheet.write(home, build)
    page = (home / review_sheet.path(build)).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:image/jpeg|#|index\.html)', page)
    assert page.count("<img") >= 10 and "worst agreement" in page and "largest anomaly" in page


def test_without_predicted_regions_the_page_says_so(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    (build,) = builds(home)
    review_sheet.write(home, build)
    assert "No expert found a region" in (home / review_sheet.path(build)).read_text()
    assert review_sheet.markdown([]) == "No expert found a region.\n"


def test_as_markdown_it_is_escaped_and_bounded(tmp_path: Path, monkeypatch) -> None:
    home = make_home(tmp_path, predicted)
    with reader(home) as con:
        shown = review_sheet.reviews(con, home, 2)
    whole = review_sheet.markdown(shown)
    assert whole.startswith("## eye: 12 regions in 12 samples") and r"\<script" in whole and "![x](http" not in whole
    monkeypatch.setattr(sheet, "MARKDOWN_BYTES", len(whole) // 2)
    cut = review_sheet.markdown(shown)
    assert len(cut) < len(whole) and "more pictures are in the review sheet" in cut
