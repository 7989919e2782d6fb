"""Whole jobs over PDFs: a folder becomes typed columns, a wrong file is one row's error, memory stays bounded."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, command, job
from job_running import run, write_job
from pdf_files import encrypted, invoice, pages, pdf, read_parts
from plain_server import completion, plain_server
from simulator_server import running

from batchrun.errors import ExitCode, JobFileError

__all__ = ["command", "job"]  # fixtures

COLUMNS = {"number": "integer", "total": "number"}
FILE = {"file": "pdfs/{{ text }}"}
TEXT = FILE | {"text": "extracted"}


def prompt(part: dict[str, str]) -> dict[str, Any]:
    return {"user": None, "messages": [{"role": "user", "content": [{"text": "Number and total?"}, part]}]}


def folder_of_invoices(folder: Path, number: int) -> list[str]:
    """Write that many invoices and return their names."""
    (folder / "pdfs").mkdir()
    names = [f"{one}.pdf" for one in range(1_000, 1_000 + number)]
    for name in names:
        (folder / "pdfs" / name).write_bytes(invoice(int(name.removesuffix(".pdf"))))
    return names


@contextmanager
def reading() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve a model that decodes the PDFs it is sent and answers with what stands in them."""
    asked: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append(body)
        lines = dict(line.split(": ") for line in read_parts(body).splitlines() if ": " in line)
        return completion(json.dumps({"number": int(lines["Number"]), "total": float(lines["Total"])}))

    with plain_server(answer) as url:
        yield url, asked


@pytest.mark.parametrize("part", [FILE, TEXT])
def test_a_folder_of_pdfs_becomes_typed_columns(tmp_path: Path, part: dict[str, str]) -> None:
    """200 files, three of them wrong: 197 typed rows, three rows with their reason, and the same again asks nothing."""
    names = folder_of_invoices(tmp_path, 200)
    (tmp_path / "pdfs" / names[7]).write_text("<html>Log in</html>")
    (tmp_path / "pdfs" / names[50]).unlink()
    with (tmp_path / "pdfs" / names[150]).open("ab") as file:
        file.truncate(32 * 2**20 + 1)
    with reading() as (url, asked):
        path = write_job(tmp_path, url, rows=names, prompt=prompt(part), answer={"columns": COLUMNS})
        ran = run(path)
        assert (ran.summary.ok, ran.summary.failed, len(asked)) == (197, 3, 197)
        wrong = {7: "is not a PDF", 50: "No such file", 150: "larger than 32 MB"}
        for row, numbers in enumerate(zip(ran.column("number"), ran.column("total"), strict=True)):
            assert numbers == ((None, None) if row in wrong else (1_000 + row, (1_000 + row) / 100))
        for row, why in wrong.items():
            assert ran.column("error_type")[row] == "file_error"
            assert why in ran.column("error_message")[row]
        again = run(path)
        assert (again.summary.asked, len(asked)) == (0, 197)


def test_what_can_not_be_read_as_text_fails_its_row(tmp_path: Path) -> None:
    """A scan and a password fail their rows when their turn comes; the third file is answered."""
    names = folder_of_invoices(tmp_path, 3)
    (tmp_path / "pdfs" / names[0]).write_bytes(pdf())
    (tmp_path / "pdfs" / names[1]).write_bytes(encrypted(invoice(1_001)))
    with reading() as (url, asked):
        path = write_job(tmp_path, url, rows=names, prompt=prompt(TEXT), answer={"columns": COLUMNS})
        ran = run(path)
        assert ran.column("error_type") == ["file_error", "file_error", None]
        assert "engine: mistral-ocr" in ran.column("error_message")[0]
        assert "remove its password" in ran.column("error_message")[1]
        assert ran.column("total") == [None, None, 10.02]
        (tmp_path / "pdfs" / names[0]).write_bytes(invoice(7))
        assert run(path).column("total") == [0.07, None, 10.02]
    assert len(asked) == 2


def test_a_moved_folder_asks_nothing_again(tmp_path: Path) -> None:
    """A file is known by its bytes: other names and another folder are the same questions."""
    names = folder_of_invoices(tmp_path, 3)
    with reading() as (url, asked):
        run(write_job(tmp_path, url, rows=names, prompt=prompt(FILE), answer={"columns": COLUMNS}))
        (tmp_path / "pdfs").rename(tmp_path / "archive")
        part = {"file": "archive/{{ text }}"}
        ran = run(write_job(tmp_path, url, rows=names, prompt=prompt(part), answer={"columns": COLUMNS}))
    assert (ran.summary.asked, len(asked)) == (0, 3)
    assert ran.column("number") == [1_000, 1_001, 1_002]


def test_urls_go_to_the_server_as_they_are(tmp_path: Path) -> None:
    """A URL is sent, never fetched; its text can't be extracted, which is the row's error."""
    urls = [f"https://example.org/{number}.pdf" for number in range(3)]
    asked = []

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append(body["messages"][0]["content"][1])
        return completion('{"number": 1, "total": 2}')

    with plain_server(answer) as url:
        part = {"file": "{{ text }}"}
        run(write_job(tmp_path, url, rows=urls, prompt=prompt(part), answer={"columns": COLUMNS}))
        part = {"file": "{{ text }}", "text": "extracted"}
        ran = run(write_job(tmp_path, url, rows=urls, prompt=prompt(part), answer={"columns": COLUMNS}))
    assert sorted(one["file"]["file_data"] for one in asked) == urls
    assert ran.column("error_type") == ["file_error"] * 3
    assert "download the file" in ran.column("error_message")[0]


@pytest.mark.parametrize("kind", ["file", "image"])
def test_few_large_files_are_in_flight_at_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests may be in flight, the bytes of their bodies are bounded."""
    monkeypatch.setattr("batchrun.runner.limits.BYTES_IN_FLIGHT", 500_000)
    begin = b"%PDF-1.4\n" if kind == "file" else b"\x89PNG\r\n\x1a\n"
    names = [f"{number}.bin" for number in range(12)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(begin + bytes([number]) * 150_000)
    with running(latency=0.02) as server:
        path = write_job(tmp_path, server.url, rows=names, prompt=prompt({kind: "{{ text }}"}))
        ran = run(path)
        assert ran.summary.ok == 12
        assert server.counters.peak <= 2


def test_the_engine_is_named_to_openrouter_and_costs_are_capped(command: Command, job: Path) -> None:
    """Preview shows the plugin that is sent; a cap needs the most that a request can cost."""
    (job.parent / "x.pdf").write_bytes(invoice(1))
    (job.parent / "rows.csv").write_text("file\nx.pdf\n")
    write = [
        "input: rows.csv",
        'prompt: {messages: [{role: user, content: [{text: Total?}, {file: "{{ file }}"}]}]}',
        "model: {endpoint: simulator, name: openai/gpt-4o-mini}",
        "output: out.csv",
    ]
    job.write_text("\n".join(write))
    out = command("preview", "job.yaml").out
    assert "    Total?\n    [file] x.pdf\n" in out
    assert '{"id":"file-parser","pdf":{"engine":"cloudflare-ai"}}' in out
    assert "no upper bound (a PDF in prompt.messages)" in out
    job.write_text("\n".join([*write, "limits: {max_cost_usd: 1}"]))
    ended = command("job.yaml")
    assert ended.code == ExitCode.USER
    assert "is not bounded (a PDF in prompt.messages): set model.max_request_usd" in ended.err
    write[2] = "model: {endpoint: simulator, name: openai/gpt-4o-mini, max_request_usd: 0.01}"
    job.write_text("\n".join([*write, "limits: {max_cost_usd: 1}"]))
    assert command("job.yaml").code == 0
    shown = command("show", "job.yaml").out
    assert "x.pdf" in shown


def test_the_pages_of_the_paid_engine_count_in_caps_and_in_preview(command: Command, job: Path) -> None:
    """Each page is reserved at its price beside the most that the model can cost, and preview adds it up."""
    (job.parent / "pdfs").mkdir()
    (job.parent / "pdfs" / "0.pdf").write_bytes(invoice(0))
    (job.parent / "pdfs" / "1.pdf").write_bytes(pages(10))
    (job.parent / "rows.csv").write_text("file\n0.pdf\n1.pdf\n")
    part = '{file: "pdfs/{{ file }}", engine: mistral-ocr}'
    job.write_text(
        f"input: rows.csv\nprompt: {{messages: [{{role: user, content: [{part}]}}]}}\noutput: out.csv\n"
        "model: {endpoint: simulator, name: openai/gpt-4o-mini, max_request_usd: 0.001}\n"
        "limits: {max_cost_usd: 0.02}\n"
    )
    out = command("preview", "job.yaml").out
    assert "$2 per 1,000 pages that mistral-ocr reads" in out
    assert "likely $0.022" in out  # 11 pages; the answers cost less than a tenth of a cent
    assert "at most $0.024" in out
    assert "likely $0.022" not in command("preview", "job.yaml", "--sample", "1").out  # one of the two files
    assert command("job.yaml").code == ExitCode.STOPPED_BY_LIMIT
    assert "row: 2 (pending)" in command("show", "job.yaml", "--row", "2").out
    job.write_text(job.read_text().replace("max_cost_usd: 0.02", "max_cost_usd: 0.03"))
    assert command("job.yaml").code == 0


def test_a_cap_needs_the_counter_of_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pypdf nobody knows how many pages are to be paid: that is a mistake, not a cap that does not hold."""
    monkeypatch.setattr("batchrun.prepare.mistakes.find_spec", lambda _: None)
    names = folder_of_invoices(tmp_path, 1)
    part = FILE | {"engine": "mistral-ocr"}
    endpoint = {"endpoint": "simulator", "name": "openai/gpt-4o-mini", "max_request_usd": 1, "api_key_env": None}
    path = write_job(tmp_path, "", rows=names, prompt=prompt(part), model=endpoint, limits={"max_cost_usd": 5})
    with pytest.raises(JobFileError, match="max_cost_usd needs pypdf, which counts the pages for mistral-ocr"):
        run(path)


@pytest.mark.parametrize(
    ("part", "sections", "message"),
    [
        ({"file": "a", "image": "b"}, {}, "a part is one of {text: …}, {image: …}, {file: …}"),
        ({"file": "a", "text": "all"}, {}, "a part is one of"),
        ({"text": "a", "engine": "native"}, {}, "engine is for a file that is sent as it is"),
        ({"file": "a", "text": "extracted", "engine": "native"}, {}, "engine is for a file that is sent as it is"),
        ({"file": "{{ text }}", "engine": "native"}, {}, "engine works only with openrouter and simulator"),
        ({"file": "{{ text }}"}, {"engine": "batch"}, "a batch takes no files: add text: extracted, or send live"),
        (
            {"file": "{{ text }}"},
            {"model": {"params": {"plugins": [{"id": "file-parser"}]}}},
            "replace the plugin file-parser by engine, next to file in the prompt",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_mistakes(
    part: dict[str, str], sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Each is found before anything is asked, with its place in the job file."""
    path = write_job(tmp_path, "http://127.0.0.1:9/v1", prompt=prompt(part), **sections)
    with pytest.raises(JobFileError, match=r"job.yaml:1:\d+: ") as raised:
        run(path)
    assert message in str(raised.value)


def test_a_missing_extra_is_a_mistake_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pypdf a job that needs it names the command that installs it."""
    monkeypatch.setattr("batchrun.prepare.mistakes.find_spec", lambda _: None)
    names = folder_of_invoices(tmp_path, 1)
    path = write_job(tmp_path, "http://127.0.0.1:9/v1", rows=names, prompt=prompt(TEXT))
    with pytest.raises(JobFileError, match=r"text: extracted needs pypdf: pip install 'batchrun-llm\[pdf\]'"):
        run(path)
