"""Looks at everything that can be known before a request: the job, key, endpoint, price, caps, and where files go."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import orjson

from batchrun.api import Endpoint, KeyInfo, KeyProblem, Prices, check_endpoint, fetch_key, prices_for
from batchrun.checkpoint import Checkpoint, check_place
from batchrun.errors import BatchrunError, UserError, did_you_mean
from batchrun.forecast import texts
from batchrun.forecast.survey import reachable, survey
from batchrun.job import TOKEN_BOUNDS, Environment, dotted
from batchrun.money import from_usd, show
from batchrun.prepare import Invocation, Prepared, body_extras, brace_advice, refuse_output_of_another, refuse_unbounded
from batchrun.prompt import templates_of
from batchrun.records import Check, Finding, Preview
from batchrun.table import shown_name
from batchrun.terminal import aside, short

_NAMED = 12
_WIDTH = 60

_ok, _warning, _mistake = partial(Finding, "ok"), partial(Finding, "warning"), partial(Finding, "mistake")


def check(prepared: Prepared, found: Iterable[Finding]) -> Check:
    """Return the record of a check with its findings."""
    found = tuple(found)
    kinds = [finding.kind for finding in found]
    return Check(prepared.job.name, kinds.count("mistake"), kinds.count("warning"), found)


def findings(prepared: Prepared, invocation: Invocation, *, awaited: str | None = None) -> Iterator[Finding]:
    """Look at one thing after the other, and yield each finding as soon as it is there. Nothing is sent to the model.

    `awaited` is the input that another job has yet to write: it has columns and no rows.
    """
    endpoint = prepared.endpoint
    place = endpoint.base_url or f"endpoint {endpoint.name}"
    yield _ok("job file", f"{invocation.shown}, asks {endpoint.model} at {place}")
    yield _ok("input", f"{awaited or _files(prepared)}, columns {_names(prepared.rows.columns)}")
    yield _ok("prompt", f"uses {_names(prepared.renderer.columns) or 'no column'}")
    yield from _literal_columns(prepared)
    yield _ok("answer", _answer(prepared))
    yield _output(prepared)
    with ExitStack() as stack:
        checkpoint = None
        try:
            checkpoint, found = _checkpoint(prepared, stack)
        except BatchrunError as problem:
            found = _mistake("checkpoint", str(problem))
        yield found
        try:
            refuse_output_of_another(prepared.job, invocation.shown, invocation.environment, checkpoint)
        except UserError as problem:
            yield _mistake("output", str(problem))
        yield from _sent(prepared)
        key = None
        try:
            with reachable(endpoint) as served:
                yield from _key_origin(prepared, invocation.environment)
                key, answers = _asked(served)
                yield from answers
                prices = prices_for(prepared.job, served, prepared.cache_dir, time.time())
                prepared.check_inputs(prices.listed)
        except BatchrunError as problem:
            yield _mistake("endpoint", str(problem))
            return
        preview = None
        try:
            if not awaited:
                preview = survey(prepared, checkpoint, prices, sample=invocation.options.sample)
        except BatchrunError as problem:
            yield _mistake("rows", str(problem))
            return
    yield from _need(prepared, prices, preview, key)


def _need(prepared: Prepared, prices: Prices, found: Preview | None, key: KeyInfo | None) -> Iterator[Finding]:
    """Show what a run would need, and whether key and caps allow it."""
    if found is not None:
        yield _ok("rows", texts.rows_line(found))
        yield from (_warning("rows", texts.unasked_text(reason)) for reason in found.unasked)
    yield from _price(prepared, prices)
    try:
        refuse_unbounded(prepared, prices)
    except BatchrunError as problem:
        yield _mistake("limits", str(problem))
    if found is None:
        return
    if (cache := texts.cache_text(prepared, found)) is not None:
        yield _ok("prompt cache", cache)
    if found.questions and found.cost_usd is not None:
        yield _ok("cost", f"{texts.cost_text(prepared, found, prices)} ({texts.basis_text(found)})")
    yield from _allowed(prepared, found, key)


def _literal_columns(prepared: Prepared) -> Iterator[Finding]:
    """Warn of `{name}` where `{{ name }}` was probably meant: Jinja sends single braces as they stand."""
    for path, source in templates_of(prepared.job):
        if (advice := brace_advice(source, prepared.rows.columns)) is not None:
            yield _warning("prompt", f"{dotted(path)}: {advice}")


def _answer(prepared: Prepared) -> str:
    answer = prepared.job.answer
    if prepared.form.schema is None or answer is None:
        return f'text, in column "{prepared.job.output.prefix}answer"'
    how = {"schema": "as a strict JSON Schema", "object": "in JSON mode", "prompt": "by the prompt alone"}
    columns = f"columns {_names(tuple(prepared.answers))}"
    if prepared.form.questions:
        return f"{columns}, from a decision model"
    return f"{columns}, asked for {how[answer.mode]} (--schema prints it)"


def _output(prepared: Prepared) -> Finding:
    path = prepared.job.output_path
    if path.is_dir():
        return _mistake("output", f"{path} is a folder: name a file in it")
    if (blocked := _unwritable(path)) is not None:
        return _mistake("output", f"{blocked} can't be written")
    there = "replaced by a finished run" if path.exists() else "not there yet"
    return _ok("output", f"{path} ({there}), {len(prepared.schema):,} columns")


def _checkpoint(prepared: Prepared, stack: ExitStack) -> tuple[Checkpoint | None, Finding]:
    path = prepared.job.checkpoint_path
    check_place(path)
    if (blocked := _unwritable(path)) is not None:
        advice = "set checkpoint: to a path you may write"
        return None, _mistake("checkpoint", f"{blocked} can't be written: {advice}")
    if not path.exists():
        return None, _ok("checkpoint", f"{path} (not there yet)")
    checkpoint = stack.enter_context(Checkpoint.open(path, read_only=True))
    run = "no run yet"
    if (last := checkpoint.last_run()) is not None:
        run = f"run {last.id}, exit {last.exit_code}" if last.ended_at else "a run is running or was killed"
    return checkpoint, _ok("checkpoint", f"{path} ({run})")


def _sent(prepared: Prepared) -> Iterator[Finding]:
    """Show what a request holds that the job file does not mention."""
    if prepared.form.questions:
        return
    if prepared.max_tokens is None:
        yield _warning("max_tokens", "nothing bounds the answers; set model.params.max_tokens")
    else:
        source = "from model.params"
        if not set(TOKEN_BOUNDS) & prepared.job.model.params.keys():
            source = "by default; set model.params.max_tokens to change it"
        yield _ok("max_tokens", f"{prepared.max_tokens:,}, {source}")
    extras = body_extras(prepared.job, prepared.endpoint, prepared.form, prepared.caching)
    extras.pop("max_tokens", None)
    if extras:
        yield _ok("added", f"{orjson.dumps(extras).decode()} (no part of a question's identity)")


def _key_origin(prepared: Prepared, environment: Environment) -> Iterator[Finding]:
    """Show where the key comes from, never the key itself."""
    variable = prepared.job.model.key_variable
    if variable is not None:
        yield _ok("key", f"{variable} from {environment.origin(variable)}")
    elif prepared.endpoint.name == "url":
        yield _ok("key", "none is sent")


def _asked(endpoint: Endpoint) -> tuple[KeyInfo | None, list[Finding]]:
    """Ask OpenRouter for the key's state, any other server for its models, which proves address and key."""
    if not endpoint.openrouter:
        return None, list(_server(endpoint)) if endpoint.name == "url" else []
    answer = fetch_key(endpoint)
    if isinstance(answer, KeyProblem):
        kind = _mistake if answer.refused else _warning
        return None, [kind("key", answer.message)]
    return answer, [_ok("endpoint", f"answers, the key is good; {_key_text(answer)}")]


def _server(endpoint: Endpoint) -> Iterator[Finding]:
    found = check_endpoint(endpoint)
    if found.problem:
        kind = _mistake if found.is_fatal else _warning
        yield kind("endpoint", found.problem)
        return
    yield _ok("endpoint", f"{endpoint.base_url} answers")
    if found.lists_model:
        yield _ok("model", f"{endpoint.model} is listed")
    elif found.models:  # some servers answer for any name (llama.cpp), or for one without its tag (Ollama)
        near = did_you_mean(endpoint.model, found.models) or f"; it lists {_names(found.models)}"
        yield _warning("model", f'the server lists no model "{endpoint.model}"{near}')


def _price(prepared: Prepared, prices: Prices) -> Iterator[Finding]:
    if prices.problem:
        older = aside("an older list is used" if prices.names else "")
        yield _warning("price", prices.problem + older)
    if (text := texts.price_text(prepared, prices)) is not None:
        yield _ok("price", text)
    for name in (prepared.endpoint.model, *prepared.job.model.fallbacks):
        if prices.names and (unlisted := _unlisted(name, prices.names, prepared.endpoint.name)):
            yield _mistake("model", unlisted)
        elif name not in prices.likely:
            yield _warning("price", f'no price is known for "{name}": set model.price to see and cap the cost')


def _allowed(prepared: Prepared, found: Preview, key: KeyInfo | None) -> Iterator[Finding]:
    """Hold the likely need to the job's caps and to what the key has left."""
    cost, cap = found.cost_usd or 0, prepared.job.limits.cap
    for name, usd in (("run", cap.run), ("day", cap.day)):
        if usd is not None and cost > usd:
            yield _warning("limits", f"the likely cost is above the cap of ${usd} a {name}: it will stop the run")
    if key is None:
        return
    if key.remaining is not None and from_usd(cost) > key.remaining:
        yield _warning("key", f"the likely cost is more than the {show(key.remaining)} that the key has left")
    free = key.free_remaining
    if prepared.endpoint.model.endswith(":free") and free is not None and found.questions > free:
        yield _warning("key", f"{found.questions:,} requests, but only {free:,} free ones are left today")


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
    if place != path and not place.is_dir():
        return place
    # Both an output and SQLite's log are made next to the file, so that its folder must be writable, too.
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
