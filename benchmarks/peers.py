"""The same job by other tools: one small program for each, as its documentation suggests. Run by bench.py.

`peers.py NAME ROWS.csv URL IN_FLIGHT OUT.jsonl`, with the Python of the peer's own virtual environment.
"""
# Each import is of a package that only that peer's environment has.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call, unused-ignore"

import asyncio
import csv
import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SYSTEM = "You label product reviews. Answer with one word, positive or negative, and a short reason."
MODEL = "openai/gpt-4o-mini"
TOKENS = 200
TIMEOUT = 120

Ask = Callable[[str], Awaitable[str]]
Peer = Callable[[Sequence[str], str, int], Coroutine[Any, Any, Sequence[str | None]]]


def messages(text: str) -> list[dict[str, str]]:
    """Return the conversation that every tool sends."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Review: {text}"}]


async def in_workers(ask: Ask, texts: Sequence[str], in_flight: int) -> list[str | None]:
    """Ask with that many workers: the best that a user of a client library writes by hand."""
    answers: list[str | None] = [None] * len(texts)
    waiting = iter(enumerate(texts))

    async def work() -> None:
        for number, text in waiting:
            answers[number] = await ask(text)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return answers


async def openai(texts: Sequence[str], url: str, in_flight: int) -> Sequence[str | None]:
    """Ask by the openai SDK, with workers written by hand."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="none", timeout=TIMEOUT) as client:

        async def ask(text: str) -> str:
            reply = await client.chat.completions.create(
                model=MODEL, messages=messages(text), temperature=0, max_tokens=TOKENS
            )
            return str(reply.choices[0].message.content)

        return await in_workers(ask, texts, in_flight)


async def litellm(texts: Sequence[str], url: str, in_flight: int) -> Sequence[str | None]:
    """Ask by LiteLLM's acompletion, with workers written by hand."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its price list is fetched on import
    import litellm as library

    async def ask(text: str) -> str:
        reply = await library.acompletion(
            model=f"openai/{MODEL}",
            api_base=url,
            api_key="none",
            messages=messages(text),
            temperature=0,
            max_tokens=TOKENS,
            timeout=TIMEOUT,
        )
        return str(reply.choices[0].message.content)

    return await in_workers(ask, texts, in_flight)


async def langchain_openai(texts: Sequence[str], url: str, in_flight: int) -> Sequence[str | None]:
    """Ask by LangChain's abatch."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, base_url=url, api_key="none", temperature=0, max_tokens=TOKENS, timeout=TIMEOUT)
    replies = await model.abatch([messages(text) for text in texts], {"max_concurrency": in_flight})
    return [str(reply.content) for reply in replies]


async def lm_deluge(texts: Sequence[str], url: str, in_flight: int) -> Sequence[str | None]:
    """Ask by lm-deluge's process_prompts_async."""
    from lm_deluge import Conversation, LLMClient
    from lm_deluge.models import register_model

    os.environ["STUB_KEY"] = "none"
    register_model("stub", MODEL, url, "STUB_KEY")
    client = LLMClient(
        "stub",
        max_requests_per_minute=100_000_000,
        max_tokens_per_minute=100_000_000_000,
        max_concurrent_requests=in_flight,
        temperature=0,
        max_new_tokens=TOKENS,
        request_timeout=TIMEOUT,
        progress="manual",
    )
    prompts = [Conversation().system(SYSTEM).user(f"Review: {text}") for text in texts]
    replies = await client.process_prompts_async(prompts, show_progress=False)
    return [reply.completion for reply in replies]


async def async_batch_llm(texts: Sequence[str], url: str, in_flight: int) -> Sequence[str | None]:
    """Ask by async-batch-llm's process_prompts over its model for OpenAI-compatible servers."""
    from async_batch_llm import ModelStrategy, OpenAICompatibleModel, process_prompts
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="none", timeout=TIMEOUT) as client:
        model = OpenAICompatibleModel(
            MODEL, client, system_instruction=SYSTEM, extra_body={"temperature": 0, "max_tokens": TOKENS}
        )
        prompts = [f"Review: {text}" for text in texts]
        batch = await process_prompts(ModelStrategy(model), prompts, concurrency=in_flight, preserve_order=True)
        return [str(one.output) if one.success else None for one in batch.results]


async def bespokelabs_curator(texts: Sequence[str], url: str, in_flight: int) -> Sequence[str | None]:
    """Ask by Bespoke Curator's LLM, in a thread: it starts a loop of its own."""
    with TemporaryDirectory() as home:  # under home it keeps its cache, that of its data sets and its telemetry's id
        os.environ |= {
            "HOME": home,
            "TELEMETRY_ENABLED": "false",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            # no progress bars
            "CURATOR_DISABLE_RICH_DISPLAY": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "TQDM_DISABLE": "1",
        }
        # LiteLLM brings along the tokenizer that would be downloaded; its import needs the variables above.
        os.environ["TIKTOKEN_CACHE_DIR"] = str(resources.files("litellm.litellm_core_utils.tokenizers"))
        from bespokelabs import curator

        model = curator.LLM(
            MODEL,
            backend="openai",
            system_prompt=SYSTEM,
            generation_params={"temperature": 0, "max_tokens": TOKENS},
            backend_params={
                "base_url": url,
                "api_key": "none",
                "request_timeout": TIMEOUT,
                "max_concurrent_requests": in_flight,
                "max_requests_per_minute": 100_000_000,
                "max_tokens_per_minute": 100_000_000_000,
            },
        )
        done = await asyncio.to_thread(model, [f"Review: {text}" for text in texts])
        return list(done.dataset["response"])


async def ondine(texts: Sequence[str], url: str, in_flight: int) -> Sequence[str | None]:
    """Ask by Ondine's pipeline, in a thread: it starts a loop of its own."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import pandas as pd
    from ondine import PipelineBuilder

    with TemporaryDirectory() as checkpoints:
        pipeline = (
            PipelineBuilder.create()
            .from_dataframe(pd.DataFrame({"text": texts}), input_columns=["text"], output_columns=["answer"])
            .with_prompt("Review: {text}", system_message=SYSTEM)
            .with_llm(
                provider="openai_compatible",
                model=f"openai/{MODEL}",
                base_url=url,
                api_key="none",
                temperature=0,
                max_tokens=TOKENS,
                extra_params={"timeout": TIMEOUT},
            )
            .with_concurrency(in_flight)
            .with_checkpoint_dir(checkpoints)
            .with_progress_mode("none")
            .build()
        )
        result = await asyncio.to_thread(pipeline.execute)
        return list(result.to_pandas()["answer"])


async def batchllm_ai(texts: Sequence[str], url: str, in_flight: int) -> Sequence[str | None]:
    """Ask by BatchLLM's process_items."""
    from batchllm import BatchConfig, BatchProcessor

    config = BatchConfig(
        model=MODEL,
        system_prompt=SYSTEM,
        prompt_template="Review: {input}",
        max_concurrent=in_flight,
        timeout=TIMEOUT,
        max_tokens=TOKENS,
        temperature=0,
        api_key="none",
        base_url=url,
    )
    results = await BatchProcessor(config).process_items(list(texts))
    return [one.output_text for one in results]


PEERS: dict[str, Peer] = {
    "openai": openai,
    "litellm": litellm,
    "langchain-openai": langchain_openai,
    "lm-deluge": lm_deluge,
    "async-batch-llm": async_batch_llm,
    "bespokelabs-curator": bespokelabs_curator,
    "ondine": ondine,
    "batchllm-ai": batchllm_ai,
}


def main() -> None:
    """Read the rows, ask, write one line of JSON for each."""
    name, rows, url, in_flight, out = sys.argv[1:]
    with Path(rows).open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    answers = asyncio.run(PEERS[name](texts, url, int(in_flight)))
    lines = [json.dumps({"answer": answer}) + "\n" for answer in answers if answer]
    if len(lines) < len(texts):
        sys.exit(f"{len(lines)} of {len(texts)} rows have an answer")
    Path(out).write_text("".join(lines))


if __name__ == "__main__":
    main()
