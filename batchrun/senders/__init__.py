"""Opens the sender that carries requests to the server, and holds what is true for each of them.

A sender's module has one function, `open_sender(target, headers, proxy, certificates)`. It may assume that headers,
proxy and certificates are well formed and that `target.connect_timeout` is below `target.timeout`.
"""

import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from batchrun.errors import UserError
from batchrun.records import Reply, Request, Send, Target

KINDS = ("reqwest", "httpx")
_CONNECT_SHARE = 0.9  # of the total timeout: a failed connect must come first, or nobody knows that nothing was sent
_SHORTEST_SECRET = 8  # shorter header values would be masked out of ordinary words
_MASK = "***"
_ADDRESS = re.compile(r"https?://[\x21-\x7e]+")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")

_Opener = Callable[[Target, dict[str, str], str | None, tuple[bytes, ...]], AbstractAsyncContextManager[Send]]


@asynccontextmanager
async def open_sender(target: Target, kind: str = "reqwest") -> AsyncIterator[Send]:
    """Give the Send that asks `target`; its connections live as long as the block.

    `kind` is the library that sends: reqwest or httpx. Raises UserError where the address, a header, the key, the
    proxy or the CA file can't be used.
    """
    if kind not in KINDS:
        raise UserError(f"there is no sender {kind!r}; choose one of {', '.join(KINDS)}")
    proxy = _proxy(_address(target.url))
    within = replace(target, connect_timeout=min(target.connect_timeout, _CONNECT_SHARE * target.timeout))
    opener = cast("_Opener", import_module(f"batchrun.senders.{kind}").open_sender)
    async with opener(within, _headers(target), proxy, _certificates(target.ca_file)) as send:
        yield _masked(send, target, proxy)


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
    """Mask the secrets of this target in what comes back: libraries quote headers, servers echo them."""
    key = target.key.reveal() if target.key else ""
    secrets = [value for value in target.headers.values() if len(value) >= _SHORTEST_SECRET]
    if password := urlsplit(proxy or "").password:
        secrets += [password, unquote(password)]
    key_bytes = key.encode("latin-1")

    async def send_masked(request: Request) -> Reply:
        reply = await send(request)
        if key and key_bytes in reply.body:
            reply = replace(reply, body=reply.body.replace(key_bytes, _MASK.encode()))
        if reply.detail:
            detail = reply.detail
            for secret in (key, *secrets):
                detail = detail.replace(secret, _MASK) if secret else detail
            reply = replace(reply, detail=detail)
        return reply

    return send_masked
