"""Local images: known by their content, sent as data, refused with one line."""

import base64
import os
from pathlib import Path

import orjson
import pytest

from batchrun.job import Input, Job, Message, Model, Output, Part, Prompt
from batchrun.prompt import Renderer, RowProblem

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20


def image_renderer(folder: Path) -> Renderer:
    prompt = Prompt(messages=(Message("user", (Part(text="What?"), Part(image="{{ path }}\n"))),))
    job = Job(Input("images.csv"), prompt, Model("openrouter", "a/b"), Output("out.parquet"), file=folder / "job.yaml")
    return Renderer(job, ["path"], namespace="openrouter")


def key(made: Renderer, path: str) -> bytes:
    found = made.key((path,))
    assert isinstance(found, bytes), found
    return found


def test_a_local_image_is_known_by_what_it_holds(tmp_path: Path) -> None:
    """Moved or renamed, it is the same question; changed, it is another."""
    made = image_renderer(tmp_path)
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.jpg").write_bytes(PNG)
    first = key(made, "a.png")
    assert key(made, str(tmp_path / "b.jpg")) == first
    (tmp_path / "a.png").write_bytes(PNG + b"1")
    assert key(made, "a.png") != first


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF1234WEBPVP8 ", "image/webp"),
    ],
)
def test_a_local_image_is_sent_as_a_data_url(tmp_path: Path, data: bytes, media_type: str) -> None:
    """Its type is seen by its content, not by its name; preview shows the path."""
    (tmp_path / "x").write_bytes(data)
    made = image_renderer(tmp_path)
    body = made.body(("x",))
    assert isinstance(body, bytes)
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    assert orjson.loads(body)["messages"][0]["content"][1] == {"type": "image_url", "image_url": {"url": url}}
    shown = made.messages(("x",))
    assert isinstance(shown, list)
    assert shown[0]["content"][1]["image_url"]["url"] == "x"


@pytest.mark.parametrize("url", ["https://example.org/a.png", "HTTP://example.org/a", "data:image/png;base64,AAAA"])
def test_an_image_url_is_sent_as_it_is(tmp_path: Path, url: str) -> None:
    """URLs are the server's to fetch."""
    body = image_renderer(tmp_path).body((url,))
    assert isinstance(body, bytes)
    assert orjson.loads(body)["messages"][0]["content"][1]["image_url"]["url"] == url


def test_an_image_that_can_not_be_sent_fails_its_row(tmp_path: Path) -> None:
    """Missing, too large, no image, a pipe, nothing at all: one clear line for each, and no hang."""
    (tmp_path / "text.png").write_text("no image")
    with (tmp_path / "large.png").open("wb") as file:
        file.write(PNG)
        file.truncate(20 * 2**20 + 1)
    os.mkfifo(tmp_path / "pipe")
    made = image_renderer(tmp_path)
    for path, why in [("none.png", "none.png can't be read: No such file"), ("text.png", "text.png is not a PNG"),
                      ("large.png", "larger than 20 MB"), (".", "can't be read"), ("pipe", "pipe is not a file"),
                      ("a\0b", "can't be read"), ("", "is empty"),
                      ("data:" + "x" * 30_000_000, "characters")]:  # fmt: skip
        found = made.key((path,))
        assert isinstance(found, RowProblem)
        assert made.body((path,)) == found
        assert found.error_type == "image_error"
        assert why in found.message
        assert found.message.startswith("prompt.messages[0].content[1].image: ")
    null = made.key((None,))
    assert isinstance(null, RowProblem)
    assert null.error_type == "template_error"
