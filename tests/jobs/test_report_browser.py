"""The report in a real browser: Chromium, both themes, desktop and phone."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import forking
import pytest
import report_job
from plain_server import plain_server

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
            forking.run(*arguments, cwd=folder, env=environment)
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


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of a decision model's job that a person reviewed, compared with its wording before."""
    folder = tmp_path_factory.mktemp("reviewed")
    lines = [f"text {number},{'xy'[number % 2]}" for number in range(60)]
    (folder / "rows.csv").write_text("\n".join(["text,gold", *lines]))

    def decide(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        number = int(str(body["state"]).split()[-1])
        # The first wording errs on every tenth row, the second one on the first two rows.
        is_right = number >= 2 if body["questions"]["label"]["instructions"] == "Which one?" else number % 10 != 5
        chosen, other = "xy" if is_right == (number % 2 == 0) else "yx"
        sure = 0.51 + number % 45 / 100
        found = {"type": "choice", "choice": chosen, "probabilities": {chosen: sure, other: 1 - sure}}
        return 200, {"model": "m", "answers": {"label": found}, "usage": {"input_tokens": 9, "output_tokens": 0}}

    def run(*arguments: str) -> None:
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
        forking.run(arguments[0], "job.yaml", *arguments[1:], env=environment, cwd=folder).check_returncode()

    with plain_server(decide) as url:
        for words in ("Which?", "Which one?"):
            job = {
                "input": "rows.csv",
                "prompt": {"user": "{{ text }}"},
                "model": {"endpoint": url, "name": "m"},
                "answer": {"mode": "decision", "columns": {"label": {"values": ["x", "y"], "description": words}}},
                "output": {"path": "out.csv", "review_below": 0.6},
            }
            (folder / "job.yaml").write_text(json.dumps(job))
            run("run", "--quiet", "--yes")
    run("show", "--review", "-o", "todo.csv", "-n", "3")
    with (folder / "todo.csv").open(newline="") as file:
        todo = list(csv.DictReader(file))
    todo[0]["needs_review"] = ""
    for row in todo[1:]:
        row["label"] = "y" if row["label"] == "x" else "x"
    with (folder / "todo.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, todo[0].keys())
        writer.writeheader()
        writer.writerows(todo)
    run("correct", "todo.csv")
    run("report", "--gold", "gold", "--before")
    return folder / "out.report.html"


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
    page.check('label:has-text("differs from gold") input')
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


def test_reviews_and_changes_are_filtered(browser: "Browser", reviewed: Path) -> None:
    """Boxes show what needs review, what was corrected and what changed; buttons what the edit fixed and broke."""
    watched = Watched(browser, reviewed, theme="dark", size="phone")
    page = watched.page
    assert watched.console == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.check('label:has-text("needs review") input')
    assert watched.shown() == 18 - 3
    assert set(watched.cells("needs_review")) == {"true"}
    page.uncheck('label:has-text("needs review") input')
    page.check('label:has-text("corrected") input')
    assert watched.cells("correction") == ["label: y", "label: x"]
    page.uncheck('label:has-text("corrected") input')
    page.fill("#search", "confirmed")
    assert watched.shown() == 1
    page.fill("#search", "")
    page.check('label:has-text("changed from before") input')
    assert watched.shown() == 8
    page.click('button:has-text("fixed rows")')
    assert watched.shown() == 6
    assert [text.split()[-1] for text in watched.cells("text")] == ["5", "15", "25", "35", "45", "55"]
    assert watched.cells("label") == ["y"] * 6
    assert watched.cells("label (before)") == ["x"] * 6
    page.click('button:has-text("broken rows")')
    assert watched.shown() == 2
    page.uncheck('label:has-text("changed from before") input')
    page.click(".chip")
    page.click('figure:has-text("Probability of label") .bar:has-text("0.9 to 0.95")')
    assert 0 < watched.shown() < 10
    text = page.inner_text("body")
    assert "6 fixed: only job is right" in text
    page.click("summary:has-text('What the probabilities are worth')")
    assert "expected calibration error" in page.inner_text("body")
    page.context.close()


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
