"""The report in a real browser: Chromium, both themes, desktop and phone."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import report_job

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"desktop": (1100, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of a job whose rows and answers are hostile."""
    folder = tmp_path_factory.mktemp("report")
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    with report_job.serving() as url:
        path = report_job.write_job(folder, url)
        for arguments in (["run", str(path), "--quiet"], ["report", str(path), "--gold", "label=gold"]):
            subprocess.run([sys.executable, "-m", "batchrun", *arguments], env=environment, check=False, timeout=60)
    return folder / "out.report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Start Chromium, or skip where it or playwright is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[e2e]'")
    if not Path(CHROMIUM).exists():
        pytest.skip("Chromium is missing: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """A page, what its console said, and what it asked of a network."""

    def __init__(self, browser: "Browser", report: Path, *, theme: Any, size: str) -> None:  # noqa: ANN401  (playwright's literal)
        width, height = SIZES[size]
        context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": height})
        self.page: Page = context.new_page()
        self.console: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())
        self.page.wait_for_selector("#rows tbody tr")

    def shown(self) -> int:
        """Return how many rows the table holds on all its pages."""
        found = self.page.inner_text("#shown")
        return 0 if found == "no row" else int(found.rpartition(" ")[2].replace(",", ""))

    def cells(self, name: str) -> list[str]:
        """Return a column of the table's page."""
        return self.page.locator(f'#rows td[data-name="{name}"]').all_inner_texts()


@pytest.fixture(params=[("light", "desktop"), ("dark", "phone")], ids="-".join)
def watched(request: pytest.FixtureRequest, browser: "Browser", report: Path) -> Iterator[Watched]:
    """Open the report in each theme, and in each size."""
    theme, size = request.param
    watched = Watched(browser, report, theme=theme, size=size)
    yield watched
    watched.page.context.close()


def test_the_page_is_quiet_and_fits(watched: Watched, report: Path) -> None:
    """No console message, no request but the file itself, no hostile text that ran, no scrolling sideways."""
    page = watched.page
    assert watched.console == []
    assert watched.requests == [report.as_uri()]
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("getComputedStyle(document.body).display") == "block"
    assert page.evaluate("document.querySelectorAll('.bar').length") >= 20


def test_the_theme_is_the_readers(watched: Watched, request: pytest.FixtureRequest) -> None:
    """Text and ground are far apart in both themes, and dark is dark; labels of charts follow."""
    page = watched.page
    colours = page.evaluate(
        "[document.body, document.querySelector('h1'), document.querySelector('.bar span')]"
        ".map((e, i) => getComputedStyle(e)[['backgroundColor', 'color', 'color'][i]])"
    )
    ground, ink, chart = (sum(map(int, colour[4:-1].split(","))) / 3 for colour in colours)
    assert (ground < 64) == ("dark" in request.node.name)
    assert abs(ground - ink) > 150
    assert abs(ground - chart) > 90


def test_rows_are_searched_and_filtered(watched: Watched) -> None:
    """Search takes all words, in any case; status and "differs from gold" filter; answered rows come first."""
    page = watched.page
    assert watched.shown() == 90
    assert set(watched.cells("status")) == {"ok"}
    page.click("#next")
    assert watched.cells("status")[-12:] == ["failed"] * 11 + ["skipped"]
    page.fill("#search", "WINDOW.hit script")
    assert watched.shown() == 18 + 6  # every fifth row says it, and what the server said of the moderated ones
    page.fill("#search", "")
    page.select_option("#status", "failed")
    assert watched.shown() == 11
    page.select_option("#status", "ok")
    page.check("#differs")
    assert watched.shown() == 7
    page.fill("#search", "no such text")
    assert watched.shown() == 0


def test_a_click_on_a_bar_or_a_count_filters(watched: Watched) -> None:
    """Bars of labels and numbers, cells of the confusion table and errors show their rows; a second click undoes it."""
    page = watched.page
    page.click('.bar:has-text("good")')
    assert set(watched.cells("label")) == {"good"}
    assert watched.shown() == 27
    page.click('.bar:has-text("45 to 49")')
    assert {int(score) for score in watched.cells("score")} <= set(range(45, 50))
    page.click(".chip")
    assert watched.shown() == 90
    cell = page.locator(".confusion tbody tr td:not(.right) button").first
    count = int(cell.inner_text())
    cell.click()
    assert watched.shown() == count
    page.click('button:has-text("6 rows failed")')
    assert set(watched.cells("error")) == {"content_policy"}
    assert watched.shown() == 6


def test_columns_sort(browser: "Browser", report: Path) -> None:
    """A click on a column's name sorts it, numbers as numbers; a second one turns it round, a third one undoes it."""
    watched = Watched(browser, report, theme="light", size="desktop")
    heading = '#rows th button:has-text("score")'
    watched.page.click(heading)
    scores = [int(score) for score in watched.cells("score")]
    assert scores == sorted(scores)
    watched.page.click(heading)
    scores = [int(score) for score in watched.cells("score")]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 49
    watched.page.click(heading)
    assert watched.cells("row")[0].startswith("1\n")
    watched.page.context.close()


def test_a_row_has_a_link_and_can_be_copied(watched: Watched, report: Path) -> None:
    """The link of a row shows that row alone, also in a page opened with it; copy puts its values on the clipboard."""
    page = watched.page
    page.click("#row-12 a")
    assert watched.shown() == 1
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#row-12 .copy")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert (copied["row"], copied["label"], copied["gold"]) == (12, "good", "mixed")
    page.goto("about:blank")
    page.goto(f"{report.as_uri()}#row-8")
    page.wait_for_selector("#row-8")
    assert watched.shown() == 1
    assert watched.cells("error") == ["content_policy"]


def test_hostile_text_is_shown_as_text(watched: Watched) -> None:
    """Markup, templates and escapes of rows and answers stand in the page letter by letter."""
    watched.page.select_option("#status", "ok")
    text = watched.page.inner_text("body")
    for hostile in (report_job.HOSTILE[0], report_job.HOSTILE[1], "{{ 7 * 7 }}", "\\u202egnp.exe", "\\x1b[31mred"):
        assert hostile in text
    assert "שלום עולם" in text


def test_it_prints(browser: "Browser", report: Path) -> None:
    """On paper nothing is cut off in boxes, and the filters are gone."""
    watched = Watched(browser, report, theme="dark", size="desktop")
    watched.page.emulate_media(media="print")
    assert not watched.page.is_visible("#filters")
    assert watched.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert watched.page.evaluate("getComputedStyle(document.querySelector('.text')).maxHeight") == "none"
    assert watched.page.pdf()[:4] == b"%PDF"
    watched.page.context.close()
