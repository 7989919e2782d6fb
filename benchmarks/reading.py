"""What it takes to read answers off a checkpoint: report, eval, compare. `python benchmarks/reading.py 100000 1000000`.

Writes a table: CPU seconds, the peak of memory, the size of the page and, where Chromium is there, how long it takes
a browser from opening the page to its first paint and to the table with all rows.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from job import Timed, text_of, timed
from playwright.sync_api import sync_playwright

LABELS = ("positive", "negative", "mixed", "unclear")
BUILD = "--build"
CHROMIUM = shutil.which("chromium")
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def write_job(folder: Path, rows: int) -> None:
    """Write a job with gold for each row, and answer it: every seventh answer is another label."""
    from answered import build  # noqa: PLC0415  (see main: this process must stay small)

    with (folder / "rows.csv").open("w") as file:
        file.write("id,text,gold\n")
        for start in range(0, rows, 10_000):
            numbers = range(start, min(rows, start + 10_000))
            file.writelines(f'{row},"{text_of(row)[:150]}",{LABELS[row % 3]}\n' for row in numbers)
    job = {
        "input": "rows.csv",
        "prompt": "{{ text }}",
        "model": {"endpoint": "http://127.0.0.1:9/v1", "name": "m"},
        "answer": {"columns": {"label": list(LABELS), "score": "integer"}},
        "output": "out.csv",
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    build(path, rows, lambda row: json.dumps({"label": LABELS[(row - 1 + (row % 7 == 0)) % 3], "score": row % 100}))


def command(folder: Path, *arguments: str) -> Timed:
    """Run a command on the job; exits where it fails."""
    done = timed(["env", "-C", str(folder), sys.executable, "-m", "batchrun", *arguments])
    if done.exit_code:
        sys.exit(done.stderr)
    return done


def painted(page: Path) -> tuple[float, float]:
    """Return the seconds from opening a page in Chromium to its first paint, and to the first rows of its table."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox"])
        opened = browser.new_page()
        opened.goto(page.as_uri(), wait_until="commit")
        opened.wait_for_selector("#rows tbody tr")
        table, paint = opened.evaluate("performance.now()"), opened.evaluate(PAINT)
        browser.close()
    return paint / 1_000, table / 1_000


def main() -> None:
    """Measure each number of rows that is named."""
    print("| rows | command | CPU s | peak MB | page MB | first paint s | table s |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for rows in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            # A child's peak of memory begins with what its parent holds, so that this process must stay small.
            timed([sys.executable, __file__, BUILD, name, str(rows)])
            for arguments in (("report", "job.yaml"), ("eval", "job.yaml"), ("compare", "job.yaml", "job.yaml")):
                done = command(folder, *arguments, "--gold", "label=gold")
                cells = [f"{rows:,}", arguments[0], f"{done.cpu:.1f}", f"{done.rss:.0f}"]
                if arguments[0] == "report":
                    page = folder / "out.report.html"
                    cells.append(f"{page.stat().st_size / 1e6:.1f}")
                    cells += [f"{seconds:.2f}" for seconds in painted(page)] if CHROMIUM else []
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == BUILD:
        write_job(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
