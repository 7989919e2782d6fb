"""Opens the sender that carries requests to the server, and holds what is true for each of them.

A sender's module has one function, `open_sender(target, headers, proxy, certificates)`. It may assume that headers,
proxy and certificates are well formed and that `target.connect_timeout` is below `target.timeout`. That of ray.py takes
more: the sender that its actors use, and the options of the engine.
"""

import html
import ipaddress
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import cast
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from batchrun.errors import UserError
from batchrun.job import RayOptions
from batchrun.records import Reply, Request, Send, Target
from batchrun.senders.ray_actor import NO_EVENTS, Events, allow_open_files

__all__ = ["KINDS", "Events", "check_installed", "open_sender"]

KINDS = ("reqwest", "httptools")
_CONNECT_SHARE = 0.9  # of the total timeout: a failed connect must come first, or nobody knows that nothing was sent
_SHORTEST_SECRET = 8  # shorter ones ("EMPTY", "x") are no secrets, and would be masked out of ordinary words
_PUBLIC_HEADERS = {"user-agent", "http-referer", "referer", "x-title", "x-openrouter-cache"}
_ERROR = b'"error"'
_MASK = b"***"
_SUCCESS = 200
_KEPT_HEADER = "x-generation-id"  # the one header whose text is kept beside an answer
_ADDRESS = re.compile(r"https?://[\x21-\x7e]+")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")

_Opener = Callable[[Target, dict[str, str], str | None, tuple[bytes, ...]], AbstractAsyncContextManager[Send]]


@asynccontextmanager
async def open_sender(
    target: Target, kind: str | None = None, *, ray: RayOptions | None = None, events: Events = NO_EVENTS
) -> AsyncIterator[Send]:
    """Give the Send that asks `target`; its connections live as long as the block.

    `kind` is the library that sends: reqwest, httptools, or (None) the one that suits the address: TLS is better left
    to reqwest's thread, plain HTTP costs half where no thread is asked. With `ray` it sends in actors. Raises
    UserError where the address, a header, the key, the proxy or the CA file can't be used or Ray is not installed,
    SenderError where no actor comes up.
    """
    address = _address(target.url)
    if kind is None:
        kind = "reqwest" if address.scheme == "https" else "httptools"
    if kind not in KINDS:
        raise UserError(f"there is no sender {kind!r}; choose one of {', '.join(KINDS)}")
    proxy = _proxy(address)
    within = replace(target, connect_timeout=min(target.connect_timeout, _CONNECT_SHARE * target.timeout))
    if ray is not None:
        check_installed(ray)
        on_ray = import_module("batchrun.senders.ray").open_sender
        opener = cast("_Opener", partial(on_ray, kind=kind, options=ray, events=events))
    else:
        allow_open_files(target.concurrency)
        opener = cast("_Opener", import_module(f"batchrun.senders.{kind}").open_sender)
    async with opener(within, _headers(target), proxy, _certificates(target.ca_file)) as send:
        yield _masked(send, target, proxy)


def check_installed(ray: RayOptions | None) -> None:
    """Raise UserError where the engine needs Ray and it is not installed. Ray is not imported for that."""
    if ray is not None and find_spec("ray") is None:
        raise UserError("engine: ray needs Ray, which is not installed here: pip install 'batchrun[ray]'")


def _address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_valid = bool(parts.hostname) and parts.port != 0 and bool(_ADDRESS.fullmatch(url))
    except ValueError as error:
        raise UserError(f"model.endpoint: {url!r} is no address ({error})") from error
    if not is_valid:
        raise UserError(f"model.endpoint: {url!r} is no http or https address in plain ASCII")
    if parts.username or parts.password:
        raise UserError(
            "model.endpoint holds a user or a password: name the key's variable in model.api_key_env instead"
        )
    return parts


def _headers(target: Target) -> dict[str, str]:
    headers = {name.lower(): value for name, value in target.headers.items()}
    headers["content-type"] = "application/json"
    if target.key is not None:
        headers["authorization"] = f"Bearer {target.key.reveal()}"
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise UserError(f"model.headers: {name!r} is no name of a header")
        if not _HEADER_VALUE.fullmatch(value):
            what = "the API key" if name == "authorization" else f"model.headers: the value of {name}"
            raise UserError(f"{what} holds a character that no header can carry (a line end, or not ASCII)")
    return headers


def _proxy(address: SplitResult) -> str | None:
    """Give the proxy that the environment names for this address, so that it means the same to all senders."""
    host = address.hostname or ""
    if _is_loopback(host) or proxy_bypass(address.netloc) or _is_excluded(host):
        return None
    proxies = getproxies_environment()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in {"http", "https"}:
        raise UserError("the environment names a proxy that is not http or https; set NO_PROXY for this endpoint")
    return proxy


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_excluded(host: str) -> bool:
    """Tell whether NO_PROXY holds a network that this address is in, as curl and Go understand it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in getproxies_environment().get("no", "").split(","):
        try:
            if address in ipaddress.ip_network(entry.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False


def _certificates(file: str | None) -> tuple[bytes, ...]:
    if file is None:
        return ()
    try:
        found = tuple(_CERTIFICATE.findall(Path(file).read_bytes()))
        for certificate in found:
            ssl.PEM_cert_to_DER_cert(certificate.decode("ascii"))
    except OSError as error:
        raise UserError(f"model.ca_file: {file} can't be read ({error.strerror})") from error
    except ValueError:
        found = ()
    if not found:
        raise UserError(f"model.ca_file: {file} holds no certificate in PEM form")
    return found


def _masked(send: Send, target: Target, proxy: str | None) -> Send:
    """Mask the secrets of this target in what comes back: libraries quote headers, servers echo them.

    A header's value may be an ordinary word, so an answer is searched for the key alone; whatever may be an error, for
    all of them.
    """
    key = _spellings([target.key.reveal()] if target.key else [])
    unseen = [value for name, value in target.headers.items() if name.lower() not in _PUBLIC_HEADERS]
    words = [word for value in unseen for word in value.split()]
    if password := urlsplit(proxy or "").password:
        words += [password, unquote(password)]
    others = _spellings(words)
    every = key + others

    async def send_masked(request: Request) -> Reply:
        reply = await send(request)
        body = _without(reply.body, key)
        if others and (reply.status != _SUCCESS or _ERROR in body):
            body = _without(body, others)
        if body is not reply.body:
            reply = reply._replace(body=body)
        if reply.detail:
            reply = reply._replace(detail=_without(reply.detail.encode("utf-8", "replace"), every).decode())
        if _KEPT_HEADER in reply.headers:
            kept = _without(reply.headers[_KEPT_HEADER].encode("utf-8", "replace"), every).decode()
            reply = reply._replace(headers={**reply.headers, _KEPT_HEADER: kept})
        return reply

    return send_masked


def _spellings(secrets: list[str]) -> list[bytes]:
    """Give secrets as they may stand in a reply: plain, in JSON (also in JSON within JSON), in HTML, in a URL."""
    spelled = []
    for secret in secrets:
        if len(secret) < _SHORTEST_SECRET:
            continue
        once = json.dumps(secret)[1:-1]
        forms = (secret, once, json.dumps(once)[1:-1], once.replace("/", "\\/"), html.escape(secret), quote(secret, ""))
        spelled += [form.encode() for form in dict.fromkeys(forms)]
    return spelled


def _without(text: bytes, secrets: list[bytes]) -> bytes:
    """Give the text with the secrets masked; the same object where it holds none."""
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, _MASK)
    return text
