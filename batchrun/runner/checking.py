"""Looks at everything that can be known before a request: the job, key, endpoint, price, caps, and where files go."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import orjson

from batchrun.api import Endpoint, KeyInfo, KeyProblem, Prices, check_endpoint, fetch_key, prices_for
from batchrun.checkpoint import Checkpoint, check_place
from batchrun.errors import BatchrunError, did_you_mean
from batchrun.job import Environment
from batchrun.money import from_usd, show
from batchrun.prompt import templates_of
from batchrun.records import Check, Finding
from batchrun.runner.before import (
    basis_text,
    cache_text,
    cost_text,
    price_text,
    reachable,
    rows_line,
    unasked_text,
)
from batchrun.runner.budget import budget_of
from batchrun.runner.forecast import Forecast, Survey, forecast, survey
from batchrun.runner.prepare import Prepared, body_extras, braced_column
from batchrun.table import shown_name
from batchrun.terminal import aside, short

_NAMED = 12
_WIDTH = 60


class Checking:
    """Looks at one thing after the other; `show` gets each finding as soon as it is there."""

    def __init__(
        self,
        prepared: Prepared,
        environment: Environment,
        shown: str,
        show: Callable[[Finding], None] = lambda _: None,
        *,
        awaited: str | None = None,
        sample: int | None = None,
    ) -> None:
        self._prepared, self._environment, self._shown, self._show = prepared, environment, shown, show
        self._awaited, self._sample = awaited, sample
        self._findings: list[Finding] = []

    def run(self) -> Check:
        """Look at everything. Nothing is sent to the model."""
        prepared = self._prepared
        self._say("ok", "job file", f"{self._shown}, asks {prepared.endpoint.model} at {_place(prepared.endpoint)}")
        self._say("ok", "input", f"{self._awaited or _files(prepared)}, columns {_names(prepared.rows.columns)}")
        self._say(
            "ok",
            "prompt",
            f"uses {_names(prepared.renderer.columns) or 'no column'}",
        )
        self._literal_columns()
        self._say("ok", "answer", self._answer())
        self._tried("output", self._output)
        with ExitStack() as stack:
            checkpoint = self._tried("checkpoint", lambda: self._checkpoint(stack))
            self._sent()
            self._requests(checkpoint)
        kinds = [finding.kind for finding in self._findings]
        return Check(prepared.job.name, kinds.count("mistake"), kinds.count("warning"), tuple(self._findings))

    def _literal_columns(self) -> None:
        """Warn of `{name}` where `{{ name }}` was probably meant: Jinja sends single braces as they stand."""
        for path, source in templates_of(self._prepared.job):
            written = braced_column(source, self._prepared.rows.columns)
            if written is not None:
                cell = f"{{{{ {written.strip('${} ')} }}}}"
                place = ".".join(map(str, path))
                self._say("warning", "prompt", f"{place}: {written} is sent as it stands; for the cell write {cell}")

    def _say(self, kind: Literal["ok", "warning", "mistake"], what: str, text: str) -> None:
        finding = Finding(kind, what, text)
        self._findings.append(finding)
        self._show(finding)

    def _complain(self, what: str, text: str, *, is_fatal: bool) -> None:
        self._say("mistake" if is_fatal else "warning", what, text)

    def _tried(self, what: str, look: Callable[[], Checkpoint | None]) -> Checkpoint | None:
        try:
            return look()
        except BatchrunError as problem:
            self._say("mistake", what, str(problem))
            return None

    def _answer(self) -> str:
        prepared = self._prepared
        answer = prepared.job.answer
        if prepared.form.schema is None or answer is None:
            return f'text, in column "{prepared.job.output.prefix}answer"'
        how = {"schema": "as a strict JSON Schema", "object": "in JSON mode", "prompt": "by the prompt alone"}
        columns = f"columns {_names(tuple(prepared.answers))}"
        if prepared.form.questions:
            return f"{columns}, from a decision model"
        return f"{columns}, asked for {how[answer.mode]} (--schema prints it)"

    def _output(self) -> None:
        path = self._prepared.job.output_path
        if path.is_dir():
            self._say("mistake", "output", f"{path} is a folder: name a file in it")
        elif (blocked := _unwritable(path)) is not None:
            self._say("mistake", "output", f"{blocked} can't be written")
        else:
            there = "replaced by a finished run" if path.exists() else "not there yet"
            self._say("ok", "output", f"{path} ({there}), {len(self._prepared.schema):,} columns")

    def _checkpoint(self, stack: ExitStack) -> Checkpoint | None:
        path = self._prepared.job.checkpoint_path
        check_place(path)
        if (blocked := _unwritable(path)) is not None:
            self._say("mistake", "checkpoint", f"{blocked} can't be written: set checkpoint: to a path you may write")
            return None
        if not path.exists():
            self._say("ok", "checkpoint", f"{path} (not there yet)")
            return None
        checkpoint = stack.enter_context(Checkpoint.open(path, read_only=True))
        run = "no run yet"
        if (last := checkpoint.last_run()) is not None:
            run = f"run {last.id}, exit {last.exit_code}" if last.ended_at else "a run is running or was killed"
        self._say("ok", "checkpoint", f"{path} ({run})")
        return checkpoint

    def _sent(self) -> None:
        """Show what a request holds that the job file does not mention."""
        prepared = self._prepared
        if prepared.form.questions:
            return
        if prepared.max_tokens is None:
            self._say("warning", "max_tokens", "nothing bounds the answers; set model.params.max_tokens")
        else:
            source = "from model.params"
            if not {"max_tokens", "max_completion_tokens"} & prepared.job.model.params.keys():
                source = "by default; set model.params.max_tokens to change it"
            self._say("ok", "max_tokens", f"{prepared.max_tokens:,}, {source}")
        extras = body_extras(prepared.job, prepared.endpoint, prepared.form, prepared.caching)
        extras.pop("max_tokens", None)
        if extras:
            self._say("ok", "added", f"{orjson.dumps(extras).decode()} (no part of a question's identity)")

    def _requests(self, checkpoint: Checkpoint | None) -> None:
        """Show what a run would need, and whether key and caps allow it."""
        prepared = self._prepared
        try:
            with reachable(prepared.endpoint) as served:
                key = self._key(served)
                prices = prices_for(prepared.job, served, prepared.cache_dir, time.time())
                prepared.check_inputs(prices.listed)
        except BatchrunError as problem:
            self._say("mistake", "endpoint", str(problem))
            return
        try:
            found = None if self._awaited else survey(prepared, checkpoint, prices, sample=self._sample)
        except BatchrunError as problem:
            self._say("mistake", "rows", str(problem))
            return
        if found is not None:
            self._rows(found)
        self._price(prices)
        self._bounded(prices)
        if found is None:
            return
        likely = forecast(prepared, found, prices)
        if (cache := cache_text(prepared, likely)) is not None:
            self._say("ok", "prompt cache", cache)
        if found.questions and likely.cost is not None:
            self._say("ok", "cost", f"{cost_text(prepared, found, likely, prices)} ({basis_text(likely)})")
        self._allowed(found, likely, key)

    def _rows(self, found: Survey) -> None:
        self._say("ok", "rows", rows_line(found))
        for reason in found.unasked:
            self._say("warning", "rows", unasked_text(reason))

    def _key(self, endpoint: Endpoint) -> KeyInfo | None:
        """Show where the key comes from, never the key itself, and its state at OpenRouter."""
        variable = self._prepared.job.model.key_variable
        if variable is not None:
            self._say("ok", "key", f"{variable} from {self._environment.origin(variable)}")
        elif endpoint.name == "url":
            self._say("ok", "key", "none is sent")
        if not endpoint.openrouter:
            if endpoint.name == "url":
                self._server(endpoint)
            return None
        answer = fetch_key(endpoint)
        if isinstance(answer, KeyProblem):
            self._complain("key", answer.message, is_fatal=answer.refused)
            return None
        self._say("ok", "endpoint", f"answers, the key is good; {_key_text(answer)}")
        return answer

    def _server(self, endpoint: Endpoint) -> None:
        """Ask a server that is not OpenRouter for its models, which proves address and key."""
        found = check_endpoint(endpoint)
        if found.problem:
            self._complain("endpoint", found.problem, is_fatal=found.is_fatal)
            return
        self._say("ok", "endpoint", f"{endpoint.base_url} answers")
        if found.lists_model:
            self._say("ok", "model", f"{endpoint.model} is listed")
        elif found.models:  # some servers answer for any name (llama.cpp), or for one without its tag (Ollama)
            near = did_you_mean(endpoint.model, found.models) or f"; it lists {_names(found.models)}"
            self._say("warning", "model", f'the server lists no model "{endpoint.model}"{near}')

    def _price(self, prices: Prices) -> None:
        prepared = self._prepared
        if prices.problem:
            older = aside("an older list is used" if prices.names else "")
            self._say("warning", "price", prices.problem + older)
        text = price_text(prepared, prices, time.time())
        if text is not None:
            self._say("ok", "price", text)
        for name in (prepared.endpoint.model, *prepared.job.model.fallbacks):
            if prices.names and (unlisted := _unlisted(name, prices.names, prepared.endpoint.name)):
                self._say("mistake", "model", unlisted)
            elif name not in prices.likely:
                self._say(
                    "warning", "price", f'no price is known for "{name}": set model.price to see and cap the cost'
                )

    def _bounded(self, prices: Prices) -> None:
        """Check that the job's caps can be kept."""
        try:
            budget_of(self._prepared, prices, None, "")
        except BatchrunError as problem:
            self._say("mistake", "limits", str(problem))

    def _allowed(self, found: Survey, likely: Forecast, key: KeyInfo | None) -> None:
        """Hold the likely need to the job's caps and to what the key has left."""
        cost, cap = likely.cost or 0, self._prepared.job.limits.cap
        for name, usd in (("run", cap.run), ("day", cap.day)):
            if usd is not None and cost > from_usd(usd):
                self._say(
                    "warning", "limits", f"the likely cost is above the cap of ${usd} a {name}: it will stop the run"
                )
        if key is None:
            return
        if key.remaining is not None and cost > key.remaining:
            self._say("warning", "key", f"the likely cost is more than the {show(key.remaining)} that the key has left")
        free = key.free_remaining
        if self._prepared.endpoint.model.endswith(":free") and free is not None and found.questions > free:
            self._say("warning", "key", f"{found.questions:,} requests, but only {free:,} free ones are left today")


def _place(endpoint: Endpoint) -> str:
    return endpoint.base_url or f"endpoint {endpoint.name}"


def _files(prepared: Prepared) -> str:
    first, *others = prepared.rows.files
    return f"{1 + len(others):,} files" if others else shown_name(Path(first.path))


def _names(columns: tuple[str, ...]) -> str:
    text = ", ".join(short(name, _WIDTH) for name in columns[:_NAMED])
    if len(columns) > _NAMED:
        text += f" and {len(columns) - _NAMED:,} more"
    return text


def _unwritable(path: Path) -> Path | None:
    """Return the place that would have to be written for this file and can't be: the file, or the nearest folder."""
    place = next(place for place in (path, *path.parents) if place.exists())
    spots = [place] if place.is_dir() else [place, place.parent]
    return next((spot for spot in spots if not os.access(spot, os.W_OK)), None)


def _key_text(key: KeyInfo) -> str:
    parts = ["no limit" if key.limit is None else f"limit {show(key.limit)}"]
    if key.remaining is not None:
        parts.append(f"{show(key.remaining)} left")
    if key.used_today is not None:
        parts.append(f"{show(key.used_today)} used today")
    if key.free_remaining is not None:
        parts.append(f"{key.free_remaining:,} requests to free models left today")
    if key.is_free_tier:
        parts.append("a free account")
    if key.expires_at:
        parts.append(f"expires at {key.expires_at}")
    return ", ".join(parts)


def _unlisted(model: str, names: tuple[str, ...], endpoint: str) -> str | None:
    """Return the message for a model that the API does not list, with the nearest one; None for a listed one.

    A variant counts as its model (`a/b:free`); a preset (`@preset/x`) is never listed.
    """
    if model in names or model.partition(":")[0] in names or "@" in model:
        return None
    return f'{endpoint} has no model "{model}"{did_you_mean(model, names)}'
