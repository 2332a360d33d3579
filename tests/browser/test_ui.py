"""The Prefect UI in a real browser, as a person would look at a finished build.

MEDLOOM_SCREENSHOTS names a folder to save pictures of the pages to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefectserver import Server

CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--disable-default-apps", "--no-first-run", "--no-pings",
]

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser test")
if not CHROMIUM.exists():
    pytest.skip(f"no browser at {CHROMIUM}", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as library:
        running = library.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        try:
            yield running
        finally:
            running.close()


@pytest.fixture
def page(browser: Any, medloom_server: Server) -> Iterator[Any]:
    """A page that fails the test when it asks anything of another address than the two of the server."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    asked: list[str] = []
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("request", lambda request: asked.append(request.url))
    try:
        yield page
    finally:
        context.close()
    own = (medloom_server.ui, medloom_server.reports, "data:", "blob:")
    assert not (strange := [url for url in asked if not url.startswith(own)]), strange


def keep(page: Any, name: str) -> None:
    """Save a picture of the page, if somebody wants them."""
    if folder := os.environ.get("MEDLOOM_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(1000)  # transitions end
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_the_run_and_its_task_runs_are_seen(page: Any, medloom_server: Server, first_run: dict[str, Any]) -> None:
    page.goto(f"{medloom_server.ui}/runs")
    page.get_by_text(first_run["name"], exact=True).first.wait_for()
    page.get_by_text("Completed").first.wait_for()
    keep(page, "runs")
    page.goto(f"{medloom_server.ui}/runs/flow-run/{first_run['id']}")
    page.get_by_text("Completed").first.wait_for()
    keep(page, "run")
    page.get_by_text("Task Runs", exact=True).first.click()
    for name in ("check and commit", "articles/b0", "series/all"):
        page.get_by_text(name, exact=True).first.wait_for()
    keep(page, "task-runs")


def test_the_artifacts_can_be_looked_at(page: Any, medloom_server: Server, first_run: dict[str, Any]) -> None:
    shown = medloom_server.artifacts(first_run["id"])
    page.goto(f"{medloom_server.ui}/artifacts")
    for key in ("progress", "funnel", "rejects", "contact-sheet", "report"):
        page.get_by_text(key, exact=True).first.wait_for()
    keep(page, "artifacts")

    def open_artifact(key: str) -> None:
        page.goto(f"{medloom_server.ui}/artifacts/artifact/{shown[key]['id']}")

    open_artifact("funnel")
    page.get_by_text("pictures", exact=True).first.wait_for()
    keep(page, "funnel")
    open_artifact("progress")
    page.get_by_text("100").first.wait_for()
    keep(page, "progress")
    open_artifact("contact-sheet")
    page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('img[src^=\"data:image\"]')];"
        " return all.length >= 4 && all.every(i => i.complete && i.naturalWidth > 0) }"
    )
    page.get_by_text("region 1").first.wait_for()
    page.get_by_text("This is a clinical photograph. The source labels the image as sick.").first.wait_for()
    keep(page, "contact-sheet")


def test_the_report_opens_from_its_artifact(page: Any, medloom_server: Server, first_run: dict[str, Any]) -> None:
    artifact = medloom_server.artifacts(first_run["id"])["report"]
    page.goto(f"{medloom_server.ui}/artifacts/artifact/{artifact['id']}")
    link = page.get_by_role("link", name="the report of build 1")
    link.wait_for()
    keep(page, "report-link")
    page.goto(link.get_attribute("href"))
    page.get_by_text("Contact sheet").first.wait_for()
    keep(page, "report")


def test_a_run_is_started_from_a_form(page: Any, medloom_server: Server, first_run: dict[str, Any]) -> None:
    page.goto(f"{medloom_server.ui}/deployments/deployment/{medloom_server.deployment()['id']}/run")
    fields = medloom_server.deployment()["parameter_openapi_schema"]["properties"]
    for field in fields.values():
        page.get_by_text(field["description"], exact=True).wait_for()
    keep(page, "form")
