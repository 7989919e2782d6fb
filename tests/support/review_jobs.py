"""Jobs for tests of what is read off a checkpoint: the sample reviews, labelled by a server that errs on purpose."""

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plain_server import completion, plain_server

SAMPLE = Path(__file__).resolve().parents[2] / "sample_data" / "reviews.csv"
Label = Callable[[int, str], str]
"""Gives the answer for a review's id and gold label; an empty text is an answer that does not fit."""

OTHER = {"positive": "negative", "negative": "positive"}


def reviews() -> list[dict[str, str]]:
    """Return the rows of the sample."""
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def wrong_on(*numbers: int) -> Label:
    """Return a labeller that is right but for these ids."""
    return lambda number, gold: OTHER.get(gold, "positive") if number in numbers else gold or "positive"


@contextmanager
def labelling(models: Mapping[str, Label]) -> Iterator[str]:
    """Serve these models; give the endpoint's URL. Each answer takes 10 tokens of prompt and 5 of completion."""
    by_text = {row["text"]: row for row in reversed(reviews())}  # the first of equal reviews

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        row = by_text[body["messages"][-1]["content"].removeprefix("Review:").strip()]
        text = models[body["model"]](int(row["id"]), row["gold"])
        said = json.dumps({"sentiment": text}) if text else "no label"
        return completion(said, prompt_tokens=10, completion_tokens=5)

    with plain_server(answer) as url:
        yield url


def write_job(folder: Path, url: str, model: str, **sections: object) -> Path:
    """Write MODEL.yaml, which labels the sample's reviews with a model; the sample is copied beside it once."""
    rows = folder / "reviews.csv"
    if not rows.exists():
        shutil.copy(SAMPLE, rows)
    job: dict[str, object] = {
        "input": {"path": "reviews.csv", "where": "text is not null"},
        "prompt": "Review: {{ text }}",
        "model": {
            "endpoint": url,
            "name": model,
            "price": {"prompt": 1, "completion": 2},
            "params": {"max_tokens": 50},
        },
        "answer": {"columns": {"sentiment": ["positive", "negative"]}, "repairs": 0},
        "output": f"out/{model}.csv",
        **sections,
    }
    path = folder / f"{model}.yaml"
    path.write_text(json.dumps(job))
    return path
