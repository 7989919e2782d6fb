"""PDFs in a prompt: known by their content, sent as files or as their text, refused with one line."""

import base64
import os
from pathlib import Path

import orjson
import pytest
from pdf_files import encrypted, pdf

from batchrun.job import Input, Job, Message, Model, Output, Part, Prompt
from batchrun.prompt import Renderer, RowProblem, content_text


def renderer(folder: Path, text: str | None = None, *, engine: str | None = "cloudflare-ai") -> Renderer:
    part = Part(file="{{ path }}\n", text=text)
    prompt = Prompt(messages=(Message("user", (Part(text="Total?"), part)),))
    job = Job(Input("pdfs.csv"), prompt, Model("openrouter", "a/b"), Output("out.parquet"), file=folder / "job.yaml")
    return Renderer(job, ["path"], namespace="openrouter", pdf_engine=engine)


def key(made: Renderer, path: str) -> bytes:
    found = made.key((path,))
    assert isinstance(found, bytes), found
    return found


def problem(made: Renderer, path: str) -> RowProblem:
    found = made.body((path,))
    assert isinstance(found, RowProblem)
    return found


def test_a_pdf_is_known_by_what_it_holds(tmp_path: Path) -> None:
    """Moved or renamed, it is the same question; changed, read by another engine or as text, it is another."""
    (tmp_path / "a.pdf").write_bytes(pdf("Total: 1"))
    (tmp_path / "b").write_bytes(pdf("Total: 1"))
    made = renderer(tmp_path)
    first = key(made, "a.pdf")
    assert key(made, str(tmp_path / "b")) == first
    assert key(renderer(tmp_path, engine="mistral-ocr"), "a.pdf") != first
    assert key(renderer(tmp_path, "extracted", engine=None), "a.pdf") != first
    (tmp_path / "a.pdf").write_bytes(pdf("Total: 2"))
    assert key(made, "a.pdf") != first


def test_a_pdf_is_sent_as_a_file_part_that_names_its_reader(tmp_path: Path) -> None:
    """The file's name stays here; the engine is explicit beside what else is sent; preview shows the path."""
    (tmp_path / "secret-name.pdf").write_bytes(data := pdf("Total: 1"))
    made = renderer(tmp_path)
    body = made.body(("secret-name.pdf",))
    assert isinstance(body, bytes)
    sent = orjson.loads(body)
    url = f"data:application/pdf;base64,{base64.b64encode(data).decode()}"
    file = {"filename": "document.pdf", "file_data": url}
    assert sent["messages"][0]["content"] == [{"type": "text", "text": "Total?"}, {"type": "file", "file": file}]
    assert sent["plugins"] == [{"id": "file-parser", "pdf": {"engine": "cloudflare-ai"}}]
    assert "pdf_engine" not in sent
    shown = made.messages(("secret-name.pdf",))
    assert isinstance(shown, list)
    assert content_text(shown[0]["content"]) == "Total?\n[file] secret-name.pdf"


@pytest.mark.parametrize(
    "url", ["https://example.org/a.pdf", f"data:application/pdf;base64,{base64.b64encode(pdf('x')).decode()}"]
)
def test_the_url_of_a_pdf_is_sent_as_it_is(tmp_path: Path, url: str) -> None:
    """URLs are the server's to fetch."""
    body = renderer(tmp_path).body((url,))
    assert isinstance(body, bytes)
    assert orjson.loads(body)["messages"][0]["content"][1]["file"]["file_data"] == url


@pytest.mark.parametrize("text", [None, "extracted"])
def test_a_file_that_can_not_be_sent_fails_its_row(tmp_path: Path, text: str | None) -> None:
    """Missing, too large, no PDF, a pipe, nothing at all: one clear line for each, and no hang."""
    (tmp_path / "page.pdf").write_text("<html>Log in to download</html>")
    with (tmp_path / "large.pdf").open("wb") as file:
        file.write(b"%PDF-1.4")
        file.truncate(32 * 2**20 + 1)
    os.mkfifo(tmp_path / "pipe")
    made = renderer(tmp_path, text)
    for path, why in [("none.pdf", "none.pdf can't be read: No such file"), ("page.pdf", "page.pdf is not a PDF"),
                      ("large.pdf", "larger than 32 MB"), (".", "can't be read"), ("pipe", "pipe is not a file"),
                      ("", "is empty"), ("data:application/pdf;base64,AAAA", "does not hold a PDF"),
                      ("data:application/pdf;base64,?", "is not base64"),
                      ("data:" + "x" * 50_000_000, "characters")]:  # fmt: skip
        found = made.key((path,))
        assert isinstance(found, RowProblem)
        assert problem(made, path) == found
        assert found.error_type == "file_error"
        assert why in found.message
        assert found.message.startswith("prompt.messages[0].content[1].file: ")


def test_the_text_of_a_pdf_can_be_sent_in_its_place(tmp_path: Path) -> None:
    """The model gets the text as any other text, and preview shows it."""
    (tmp_path / "a.pdf").write_bytes(pdf("Invoice (copy)", "Total: 1"))
    made = renderer(tmp_path, "extracted", engine=None)
    body = made.body(("a.pdf",))
    assert isinstance(body, bytes)
    assert orjson.loads(body)["messages"][0]["content"][1] == {"type": "text", "text": "Invoice (copy)\nTotal: 1"}
    assert "plugins" not in orjson.loads(body)
    shown = made.messages(("a.pdf",))
    assert isinstance(shown, list)
    assert content_text(shown[0]["content"]) == "Total?\nInvoice (copy)\nTotal: 1"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (pdf(), "x.pdf has no text (a scan?)"),
        (encrypted(pdf("Total: 1")), "x.pdf is encrypted: remove its password"),
        (b"%PDF-1.4\n" + bytes(range(256)) * 9, "x.pdf is a damaged PDF"),
        (pdf("Total: 1")[:200], "x.pdf is a damaged PDF"),
    ],
)
def test_a_pdf_whose_text_can_not_be_read_fails_its_row(
    tmp_path: Path, data: bytes, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A scan, a password, damage: one line that says what to do, and nothing on stderr."""
    (tmp_path / "x.pdf").write_bytes(data)
    found = problem(renderer(tmp_path, "extracted", engine=None), "x.pdf")
    assert found.error_type == "file_error"
    assert why in found.message
    assert capfd.readouterr() == ("", "")


def test_the_text_of_a_url_is_not_extracted(tmp_path: Path) -> None:
    """Rows must not make batchrun fetch addresses of their choice."""
    found = renderer(tmp_path, "extracted", engine=None).key(("https://example.org/a.pdf",))
    assert isinstance(found, RowProblem)
    assert found.error_type == "file_error"
    assert "download the file and write its path" in found.message


def test_text_that_is_longer_than_a_prompt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small PDF can hold endless text."""
    monkeypatch.setattr("batchrun.prompt.pdf.MAX_PROMPT_BYTES", 1_000)
    (tmp_path / "x.pdf").write_bytes(pdf(*["word " * 10] * 30))
    found = problem(renderer(tmp_path, "extracted", engine=None), "x.pdf")
    assert found.error_type == "request_too_large"
