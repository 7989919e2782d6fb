"""Write the pictures in docs/images: `python tools/screenshots.py`.

The report in light, dark and on a phone; `eval` and `compare` in a terminal. It needs Chromium and sparrow-decider. The
job is jobs/triage.yaml, whose question is edited once, and of whose least sure answers three are reviewed.
"""  # noqa: INP001  (a script)

import csv
import html
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
CHROMIUM = shutil.which("chromium")
PAGES = {"light": ("light", 1000, 2400), "dark": ("dark", 1000, 2400), "phone": ("light", 390, 2600)}
TERMINAL = "body{margin:0;background:#14171b;color:#e4e7eb}pre{font:13px/1.4 monospace;padding:16px;width:max-content}"


def run(folder: Path, *arguments: str) -> str:
    """Run batchrun in a folder; return what it prints."""
    command = [sys.executable, "-m", "batchrun", *arguments]
    environment = {**os.environ, "COLUMNS": "110"}
    done = subprocess.run(command, cwd=folder, env=environment, check=True, text=True, capture_output=True)  # noqa: S603  (ours)
    return done.stdout


def answered(folder: Path) -> None:
    """Run the job with two wordings of its question, and review three of its answers."""
    for name in ("jobs", "sample_data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".batchrun", "*.corrections.jsonl"))
    job = folder / "jobs" / "triage.yaml"
    text = job.read_text(encoding="utf-8")
    job.write_text(text.replace("What is the sentiment of this review?", "Is it good or bad?"), encoding="utf-8")
    run(folder, "jobs/triage.yaml", "--quiet")
    job.write_text(text, encoding="utf-8")
    run(folder, "jobs/triage.yaml", "--quiet", "--yes")
    run(folder, "show", "jobs/triage.yaml", "--review", "-o", "todo.csv", "-n", "3")
    todo = folder / "todo.csv"
    with todo.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[1:]:
        row["sentiment"] = "negative" if row["sentiment"] == "positive" else "positive"
    rows[0]["needs_review"] = ""
    with todo.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    run(folder, "correct", "jobs/triage.yaml", "todo.csv")
    run(folder, "jobs/triage.yaml", "--quiet")


def photograph(browser: Browser, page: Path, image: str, *, theme: str, width: int, height: int) -> None:
    """Write a picture of a page, at most `height` pixels of it."""
    context = browser.new_context(color_scheme="dark" if theme == "dark" else "light")
    opened = context.new_page()
    opened.set_viewport_size({"width": width, "height": height})
    opened.goto(page.as_uri())
    opened.wait_for_load_state("networkidle")
    opened.screenshot(path=IMAGES / f"{image}.png")
    context.close()


def terminal(browser: Browser, lines: str, image: str) -> None:
    """Write a picture of a terminal."""
    opened = browser.new_page()
    opened.set_content(f"<style>{TERMINAL}</style><pre>{html.escape(lines)}</pre>")
    opened.locator("pre").screenshot(path=IMAGES / f"{image}.png")
    opened.close()


def main() -> None:
    """Write all pictures."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        answered(folder)
        gold = ("--gold", "sentiment=gold")
        run(folder, "report", "jobs/triage.yaml", *gold, "--before")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox"])
        for image, (theme, width, height) in PAGES.items():
            page = folder / "out" / "triage.report.html"
            photograph(browser, page, f"report-{image}", theme=theme, width=width, height=height)
        for command in (("eval", *gold, "--min", "0.8"), ("compare", "--before", *gold)):
            words = (command[0], "jobs/triage.yaml", *command[1:])
            terminal(browser, f"$ batchrun {' '.join(words)}\n{run(folder, *words)}", command[0])
        browser.close()


if __name__ == "__main__":
    main()
