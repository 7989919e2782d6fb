"""What a newcomer reads first is true: the README, the example jobs, the sample data."""

import json
import re
from pathlib import Path

import jsonschema_rs
import polars as pl
import pytest
from ruamel.yaml import YAML

from batchrun.job import json_schema, load

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLES = ROOT / "sample_data"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_example_jobs_are_valid(path: Path) -> None:
    """Every job in jobs/ loads, names the schema for editors and fits it, and reads an input that is there."""
    text = path.read_text(encoding="utf-8")
    job = load(text, path, {}).job
    assert text.startswith("# yaml-language-server: $schema=../docs/reference/job.schema.json\n")
    data = YAML(typ="safe", pure=True).load(text)
    jsonschema_rs.validate(json_schema(), json.loads(json.dumps(data, default=str)))
    assert all(job.resolve(pattern).is_file() for pattern in job.input.patterns)


def test_job_files_in_the_readme_are_valid() -> None:
    """The README's job file loads as it stands; its other fragments load as parts of it."""
    whole, *parts = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    job = load(whole, ROOT / "x.yaml", {}).job
    assert job.answer is not None
    for part in parts:
        key = part.split(":")[0]
        replaced = re.sub(rf"^{key}:\n(?:  .*\n)+", part, whole, flags=re.MULTILINE)
        assert replaced != whole
        load(replaced, ROOT / "x.yaml", {})


def test_reviews_are_as_described() -> None:
    """The sample reviews are 200, balanced, untidy, and labelled wherever there is a text."""
    reviews = pl.read_csv(SAMPLES / "reviews.csv")
    assert reviews.height == 200
    assert dict(reviews["gold"].value_counts().iter_rows()) == {"positive": 98, "negative": 98, None: 4}
    assert reviews.filter(pl.col("text").is_null() != pl.col("gold").is_null()).is_empty()
    assert reviews.height - reviews.drop("id").filter(pl.col("text").is_not_null()).unique().height == 10
    for untidy in ("\n", '"', ",", "😡", "ł", "壊"):
        assert reviews["text"].str.contains(untidy, literal=True).any(), untidy


def test_facts_are_as_described() -> None:
    """The sample facts are 60 different sentences with typed gold columns that are sometimes null."""
    facts = pl.read_parquet(SAMPLES / "facts.parquet")
    assert facts.height == facts["sentence"].n_unique() == 60
    assert facts.schema["year"] == pl.Int64
    assert 0 < facts["year"].null_count() < 60
