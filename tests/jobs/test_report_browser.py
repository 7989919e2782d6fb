"""The report in a real browser: Chromium, both themes, desktop and phone."""

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


@pytest.fixture(params=[(theme, size) for theme in ("light", "dark") for size in SIZES], ids="-".join)
def watched(request: pytest.FixtureRequest, browser: "Browser", report: Path) -> Iterator[Watched]:
    """Open the report in each theme and size."""
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
    assert page.evaluate("document.querySelectorAll('svg').length") >= 6


def test_the_theme_is_the_readers(watched: Watched, request: pytest.FixtureRequest) -> None:
    """Text and ground are far apart in both themes, and dark is dark; labels of charts follow."""
    page = watched.page
    colours = page.evaluate(
        "[document.body, document.querySelector('h1'), document.querySelector('svg text')]"
        ".map((e, i) => getComputedStyle(e)[['backgroundColor', 'color', 'fill'][i]])"
    )
    ground, ink, chart = (sum(map(int, colour[4:-1].split(","))) / 3 for colour in colours)
    assert (ground < 64) == ("dark" in request.node.name)
    assert abs(ground - ink) > 150
    assert abs(ground - chart) > 90


def test_rows_are_found_and_filtered(watched: Watched) -> None:
    """Search takes all words, in any case; status and error filter; the count says how many are shown."""
    page = watched.page

    def shown() -> int:
        count = int(page.inner_text("#shown"))
        assert page.locator("#rows tbody tr:visible").count() == count
        return count

    assert shown() == 90
    page.fill("#search", "WINDOW.hit script")
    assert shown() == 18 + 6  # every fifth row says it, and what the server said of the moderated ones
    page.fill("#search", "")
    page.select_option("#status", "failed")
    assert shown() == 11
    page.select_option("#error", "content_policy")
    assert shown() == 6
    page.fill("#search", "no such text")
    assert shown() == 0


def test_hostile_text_is_shown_as_text(watched: Watched) -> None:
    """Markup, templates and escapes of rows and answers stand in the page letter by letter."""
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
