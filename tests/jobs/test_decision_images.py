"""Images in the state of a decision model: sent where the model takes them, refused with their place where not."""

import base64
from pathlib import Path
from typing import Any

import pytest
from job_running import Ran, run, write_job
from openrouter.decisions import MODEL, deciding
from simulator_server import running

from batchrun.errors import JobFileError

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
ALPHA, LIST = ("/api/alpha/decisions", "/api/v1"), ("/v1/decisions", "/v1/decisions")
STATE: dict[str, Any] = {"body": "{{ text }}", "photo": {"image": "{{ text }}.png"}}


def decide(folder: Path, url: str, *, mode: str = "decision", state: Any = STATE, model: Any = MODEL) -> Ran:  # noqa: ANN401  (JSON)
    for name in ("broken", "whole"):
        (folder / f"{name}.png").write_bytes(PNG + name.encode())
    columns = {"damaged": "boolean"}
    sections: dict[str, Any] = {"answer": {"mode": mode, "columns": columns}, "prompt": {"user": None, "state": state}}
    return run(write_job(folder, url, rows=["broken", "whole"], model=model, **sections))


def url_of(name: str) -> str:
    return f"data:image/png;base64,{base64.b64encode(PNG + name.encode()).decode()}"


def test_openrouter_gets_images_as_items_of_the_state(tmp_path: Path) -> None:
    """Texts stand before the images as JSON, each image after its name."""
    with deciding(ALPHA[0], inputs=("text", "image")) as server:
        ran = decide(tmp_path, server.url + ALPHA[1])
        assert ran.summary.exit_code == 0, ran.summary.reason
    assert server.books.bodies[0]["state"] == [
        '{"body": "broken"}',
        "photo:",
        {"type": "image_url", "image_url": {"url": url_of("broken")}},
    ]
    assert ran.column("damaged") == [True, False]


def test_openai_gets_images_as_parts_of_the_input(tmp_path: Path) -> None:
    """A message of the user has texts and images."""
    with deciding(LIST[0]) as server:
        ran = decide(tmp_path, server.url + LIST[1])
        assert ran.summary.exit_code == 0, ran.summary.reason
    content = server.books.bodies[1]["input"][0]["content"]
    assert content == [
        {"type": "input_text", "text": '{"body": "whole"}'},
        {"type": "input_text", "text": "photo:"},
        {"type": "input_image", "image_url": url_of("whole")},
    ]


def test_a_chat_model_gets_the_same_state(tmp_path: Path) -> None:
    """The same file on a chat model sends the images as parts of the user's message."""
    with running() as simulator:
        ran = decide(tmp_path, simulator.url, mode="schema", model="sim/good")
        assert ran.summary.exit_code == 0, ran.summary.reason
    assert set(ran.column("damaged")) <= {True, False}


def test_an_image_is_its_content_in_the_question(tmp_path: Path) -> None:
    """Touched or renamed, an image asks nothing again; another picture under the same name is another question."""
    with deciding(ALPHA[0], inputs=("text", "image")) as server:
        url = server.url + ALPHA[1]
        assert decide(tmp_path, url).summary.requests == 2
        assert decide(tmp_path, url).summary.requests == 0
        state = {"body": "{{ text }}", "photo": {"image": "whole.png"}}
        changed = decide(tmp_path, url, state=state)
    assert changed.summary.requests == 1  # the row "whole" has that picture already


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (MODEL, f"{MODEL} takes no images, only text"),
        (
            {"endpoint": "local", "name": "sparrow-decider", "api_key_env": None},
            "images can't be sent to this endpoint",
        ),
        ({"endpoint": "http://127.0.0.1:9/v1"}, "images can't be sent"),
    ],
)
def test_images_that_nobody_would_see_are_refused_with_their_place(tmp_path: Path, model: Any, words: str) -> None:  # noqa: ANN401  (JSON)
    """A model that takes text alone, and servers whose form for images is another, get no request."""
    with deciding(ALPHA[0]) as server, pytest.raises(JobFileError) as caught:
        decide(tmp_path, server.url + ALPHA[1], model=model)
    assert words in str(caught.value)
    assert str(caught.value).split(":")[1].isdigit()
    assert server.books.bodies == []


def test_a_chat_model_without_eyes_is_refused_too(tmp_path: Path) -> None:
    """What the catalogue says holds for messages of a chat model as well."""
    (tmp_path / "a.png").write_bytes(PNG)
    content = [{"text": "What is it?"}, {"image": "{{ text }}.png"}]
    prompt = {"user": None, "messages": [{"role": "user", "content": content}]}
    with deciding("/api/v1/chat/completions") as server, pytest.raises(JobFileError) as caught:
        run(write_job(tmp_path, f"{server.url}/api/v1", rows=["a"], model=MODEL, prompt=prompt))
    assert f"{MODEL} takes no images, only text" in str(caught.value)
    assert server.books.bodies == []


def test_a_field_of_state_is_a_text_or_an_image(tmp_path: Path) -> None:
    """A PDF or two kinds in one field are a mistake with its place."""
    with pytest.raises(JobFileError, match=r"a field of state is a text or \{image: …\}"):
        decide(tmp_path, "http://127.0.0.1:9/api/v1", state={"a": {"file": "x.pdf"}, "b": "{{ text }}"})
