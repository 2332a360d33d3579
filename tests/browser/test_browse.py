"""`medloom browse` in a real browser, by keyboard: filter, open, toggle, reject, correct, and what is left on disk.

MEDLOOM_SCREENSHOTS names a folder to save pictures of the pages to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from makehome import Rows, make_home

from catalog.browse.pages import Dataset
from catalog.decisions import REVIEWER, read
from flows.browse import serve_pages
from infra.keys import key

CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--disable-default-apps", "--no-first-run", "--no-pings",
]
HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
SAMPLE = key("sample", "CT", 0)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser test")
if not CHROMIUM.exists():
    pytest.skip(f"no browser at {CHROMIUM}", allow_module_level=True)


def plant(rows: Rows) -> None:
    """A text that the checks doubt, and one that would act if it were markup."""
    rows["texts"][0].update(text=HOSTILE)
    rows["checks"].append({
        "sample_id": SAMPLE, "text_id": key("text", SAMPLE, "global"), "check": "support", "version": "1", "value": 0.5,
        "verdict": "fail", "detail": "no row tells of a nodule",
    })


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path, plant, per_modality=10)


@pytest.fixture
def page(home: Path) -> Iterator[Any]:
    """A page of the server; fails the test when it asks another address, or when a script or the policy complains."""
    asked: list[str] = []
    complaints: list[str] = []
    with serve_pages(Dataset(home), 0) as address, playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        context = browser.new_context(viewport={"width": 1400, "height": 900}, base_url=address)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(address)
        try:
            yield page
        finally:
            browser.close()
        # browsers ask for an icon by themselves, at the root
        strange = [url for url in asked if not url.startswith(address) and not url.endswith("/favicon.ico")]
    assert not strange, strange
    # a page that tells of a wrong condition is a 400, which the browser notes
    assert not [words for words in complaints if not words.startswith("Failed to load resource")], complaints


def keep(page: Any, name: str) -> None:
    """Save a picture of the page, if somebody wants them."""
    if folder := os.environ.get("MEDLOOM_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(1000)
        page.screenshot(path=Path(folder) / f"browse-{name}.png")


def press(page: Any, *keys: str) -> None:
    for name in keys:
        page.keyboard.press(name)


def name_reviewer(page: Any) -> None:
    page.locator("#name input").wait_for()
    page.keyboard.type("Ada")
    press(page, "Enter")


def test_a_dataset_is_filtered_opened_and_reviewed_by_keyboard(page: Any, home: Path) -> None:
    page.get_by_text("30 samples, page 1 of 2").wait_for()
    page.wait_for_function("() => [...document.querySelectorAll('.tile img')].slice(0, 6)"
                           ".every(i => i.complete && i.naturalWidth > 0)")
    keep(page, "grid")
    press(page, "?")
    page.locator("#help[open]").wait_for()
    press(page, "Escape", "/")
    page.keyboard.type("modality = 'CT'")
    press(page, "Enter")
    page.get_by_text("10 samples").first.wait_for()
    press(page, "j", "ArrowRight", "ArrowLeft")
    assert page.evaluate("document.activeElement.classList.contains('tile')")
    press(page, "Enter")
    page.locator("#overlay path").first.wait_for()
    assert page.locator("#overlay path:visible").count() == 2
    press(page, "o")
    assert page.locator("#overlay path:visible").count() == 0
    press(page, "o")
    page.get_by_label("device", exact=True).uncheck()
    assert page.locator("#overlay path:visible").count() == 1
    page.get_by_label("device", exact=True).check()
    press(page, "n")
    page.wait_for_url("**n=1*")
    page.goto(f"sample?id={SAMPLE}")
    page.get_by_text(HOSTILE).first.wait_for()
    assert "owned" not in page.title()
    keep(page, "sample")
    press(page, "j", "j", "x")
    name_reviewer(page)
    page.get_by_text("rejected by you").wait_for()
    (decision,) = read(home)
    assert (decision.verdict, decision.about) == ("reject", f"text:{key('text', SAMPLE, 'global')}")
    assert REVIEWER.fullmatch(decision.reviewer)
    assert (home / "decisions" / "00000001.json").exists()
    page.reload()
    page.get_by_text(f"rejected by {decision.reviewer}").wait_for()
    page.get_by_text(f"you are {decision.reviewer}").wait_for()


def test_a_text_and_a_region_are_corrected(page: Any, home: Path) -> None:
    page.goto("review")
    page.get_by_text("support 0.5: no row tells of a nodule").wait_for()
    keep(page, "review")
    press(page, "j", "c")
    page.locator(".edit textarea").fill("An axial CT image.")
    press(page, "Control+Enter")
    name_reviewer(page)
    page.get_by_text("corrected by you").wait_for()
    page.goto(f"sample?id={SAMPLE}")
    region = page.locator("[data-about^='roi:']").first
    region.get_by_role("button", name="correct").click()
    frame = page.locator("#overlay").bounding_box()
    page.mouse.move(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] / 2 + 100, frame["y"] + frame["height"] / 2 + 100)
    page.mouse.up()
    keep(page, "correct")
    region.get_by_role("button", name="Keep").click()
    page.get_by_text("corrected by you").first.wait_for()
    text, box = read(home)
    assert text.text == "An axial CT image." and box.label is None and box.box
    assert abs(box.box[0] - 40) <= 1 and abs(box.box[1] - 48) <= 1 and box.box[2] > box.box[0] + 3


def test_questions_lineage_and_the_card_are_shown(page: Any, home: Path) -> None:
    page.goto("table")
    press(page, "/")
    page.locator("#q").fill("SELECT sample_id, modality FROM images ORDER BY 1")
    press(page, "Control+Enter")
    page.get_by_text("30 rows").wait_for()
    keep(page, "table")
    page.get_by_role("link", name=SAMPLE).click()
    page.locator("details summary").first.click()
    page.get_by_role("button", name="show its lineage").first.click()
    page.locator("article .steps li").first.wait_for()
    page.goto("card")
    page.get_by_text("Samples by modality").first.wait_for()
    keep(page, "card")
    page.goto("./?where=nonsense")
    page.get_by_role("alert").wait_for()
