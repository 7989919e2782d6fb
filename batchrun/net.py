"""What is true of every address: its parsing, loopback, headers, the proxy, the CA file, each checked here alone.

`call` is for single pages (a key's state, a list of models, a batch); the questions themselves go through senders/.
"""

import functools
import importlib
import ipaddress
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import certifi

from batchrun.errors import UserError, did_you_mean
from batchrun.records import Fault, Reply
from batchrun.terminal import short

ENDPOINTS = ("openrouter", "local", "simulator")
"""Endpoints that are named; any other is a URL."""

_Client_co = TypeVar("_Client_co", covariant=True)
_PATH_OF_CHAT = "/chat/completions"
_OTHER_PATHS = ("/completions", "/responses", "/messages", "/generate", ":generateContent", "/embeddings")
_VERSION = re.compile(r"/v\d")
_URL_TEXT = re.compile(r"https?://[\x21-\x5b\x5d-\x7e]+", re.IGNORECASE)  # visible ASCII without the backslash
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")
_NOTHING_SENT = "client error (Connect)"
_NO_NEWS = re.compile(r"^failed to lookup address information: | \(os error \d+\)$")
_TLS = ("invalid peer certificate", "received fatal alert", "received corrupt message", "received unexpected",
        "peer is incompatible", "peer misbehaved", "peer doesn't support", "no certificates presented")  # fmt: skip

PROXY_LOGIN = "the proxy wants a user name and a password: write them into its address (HTTP_PROXY, HTTPS_PROXY)"
_NO_TLS = "the server does not speak TLS at this address"
_PLAIN_WORDS = {
    "InvalidContentType": _NO_TLS,
    "WRONG_VERSION_NUMBER": _NO_TLS,
    # `openssl req -x509` alone makes such a certificate; no ca_file helps, since rustls takes none for a server.
    "CaUsedAsEndEntity": "the server's certificate is marked as an authority's: make one with openssl's "
    "-addext basicConstraints=critical,CA:FALSE",
    "proxy authorization required": PROXY_LOGIN,
    "407 Proxy Authentication": PROXY_LOGIN,
    "tunnel error: unsuccessful": "the proxy (HTTPS_PROXY) does not connect to this server",
}
"""What the libraries of the senders say of a mistake that is easily made, and the plain words for it."""


def parse_endpoint(url: str, *, allow_plain_http: bool = False) -> str:
    """Return an API's base URL, without a slash or `/chat/completions` at its end.

    Raises UserError with one line that never repeats the URL, since a variable or a mistake may have put a key there.
    """
    if not url.lower().startswith(("http://", "https://")):
        near = did_you_mean(url, ENDPOINTS)
        raise UserError(f"model.endpoint must be openrouter, local, simulator or a URL with https://{near}")
    try:
        parts = urlsplit(url)
        is_valid = bool(parts.hostname) and parts.port != 0 and bool(_URL_TEXT.fullmatch(url))
    except ValueError:
        is_valid = False
    if not is_valid:
        raise UserError("model.endpoint is not a valid URL")
    if parts.username is not None or parts.password is not None:
        raise UserError(
            "model.endpoint contains a user name or password: put the key into model.api_key_env's variable"
        )
    if parts.query or parts.fragment:
        raise UserError("model.endpoint has a ? or #: write the API's base URL, such as https://host/v1")
    if parts.scheme == "http" and not is_loopback(url) and not allow_plain_http:
        raise UserError(
            "model.endpoint sends rows and key unencrypted: write https://, or set model.allow_plain_http: true"
        )
    base = url.rstrip("/").removesuffix(_PATH_OF_CHAT)
    if path := next((path for path in _OTHER_PATHS if base.endswith(path)), None):
        raise UserError(
            f"model.endpoint ends with {path}: write the API's base URL, such as https://host/v1; batchrun adds "
            f"{_PATH_OF_CHAT} to it"
        )
    return base


def path_advice(base: str) -> str:
    """Return what to do where an API's base URL has no `/chat/completions`, or the server no such model."""
    advice = f"batchrun asked {base}{_PATH_OF_CHAT}: correct model.endpoint"
    if not _VERSION.search(urlsplit(base).path):
        advice += f" (most have a version, as {base}/v1)"
    return f"{advice} or model.name"


def is_loopback(url: str) -> bool:
    """Check whether a URL names this machine. Such traffic goes through no proxy."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def header_problem(name: str, value: str) -> str | None:
    """Return in one line why no request can carry this header, without its value; None if one can."""
    if not _HEADER_NAME.fullmatch(name):
        return f'invalid HTTP header name "{short(name, 60)}"'
    if not _HEADER_VALUE.fullmatch(value):
        return f'the value of the header "{name}" must be printable ASCII in one line'
    return None


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for a URL, None for a direct connection.

    NO_PROXY may hold host names and networks (10.0.0.0/8), as curl and Go read it; loopback needs no entry. Raises
    UserError for a proxy that is not http or https.
    """
    parts = urlsplit(url)
    # A company's proxy can't reach the server of this machine; curl and browsers leave it out, too.
    if is_loopback(url) or proxy_bypass(parts.netloc) or _in_excluded_network(parts.hostname or ""):
        return None
    proxies = getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if urlsplit(proxy).scheme not in {"http", "https"}:
        raise UserError("the environment names a proxy that is not http or https; set NO_PROXY for this endpoint")
    return proxy


def _in_excluded_network(host: str) -> bool:
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


def read_certificates(file: Path) -> tuple[bytes, ...]:
    """Return the certificates of a PEM file, at least one. Raises UserError."""
    try:
        certificates = tuple(_CERTIFICATE.findall(file.read_bytes()))
        for certificate in certificates:
            ssl.PEM_cert_to_DER_cert(certificate.decode("ascii"))
    except FileNotFoundError:
        raise UserError(f"model.ca_file: no such file {file}") from None
    except OSError as error:
        raise UserError(f"model.ca_file: {file} can't be read ({error.strerror})") from error
    except ValueError:
        certificates = ()
    if not certificates:
        raise UserError(f"model.ca_file: {file} holds no certificate in PEM form")
    return certificates


_FAULTS = {
    Fault.DNS: "no such host ({})",
    Fault.CONNECT: "nothing answers ({})",
    Fault.TLS: "no trusted TLS connection ({})",
    Fault.TIMEOUT: "no complete reply in time",
    Fault.RESET: "the connection broke before a complete reply ({})",
    Fault.PROTOCOL: "the reply is not HTTP ({})",
    Fault.TOO_LARGE: "{}",
}


def plain_words(reply: Reply) -> str:
    """Return in plain words why there is no success: "nothing answers (connection refused)", "404 Not Found"."""
    if reply.fault is not None:
        return _FAULTS[reply.fault].format(reply.detail)
    try:
        return f"{reply.status} {HTTPStatus(reply.status).phrase}"
    except ValueError:
        return str(reply.status)


@functools.cache
def load() -> None:
    """Load the HTTP library in a thread that never ends: where the one that loaded it has ended, its next use crashes.

    Threads come and go in a program that calls batchrun from a web server's workers, and in the batch lane.
    """
    if threading.current_thread() is threading.main_thread():
        _import()
        return
    loaded = threading.Event()

    def work() -> None:
        _import()
        loaded.set()
        threading.Event().wait()

    threading.Thread(target=work, name="batchrun-http", daemon=True).start()
    loaded.wait()


def _import() -> None:
    with suppress(ImportError):  # who uses it reports that
        importlib.import_module("pyreqwest.client")


def call(
    method: str,
    url: str,
    headers: Mapping[str, str],
    certificates: tuple[bytes, ...],
    *,
    seconds: float,
    max_bytes: int,
    body: bytes | None = None,
    into: BinaryIO | None = None,
) -> Reply:
    """Make one request within `seconds` in all; a redirect is not followed, a reply above `max_bytes` is given up.

    Of the reply's headers only `retry-after` is kept; the body of a success goes `into` a file where there is one.
    Raises UserError for a proxy that can't be used.
    """
    load()
    from pyreqwest.client import SyncClientBuilder  # noqa: PLC0415  (a no-op run and --help save its 20 ms)
    from pyreqwest.exceptions import PyreqwestError  # noqa: PLC0415

    limit = timedelta(seconds=seconds)

    def begin() -> SyncClientBuilder:
        # A redirect would carry the key to another host; proxies are set below, from the environment.
        return SyncClientBuilder().timeout(limit).connect_timeout(limit * 0.9).follow_redirects(False).no_proxy()

    content, size = bytearray(), 0
    try:
        with open_client(begin, certificates, proxy_for(url)) as client:
            request = client.request(method, url).headers(dict(headers))
            if body is not None:
                request = request.body_bytes(body)
            with request.build_streamed() as reply:
                kept = {}
                if (wait := reply.headers.get("retry-after")) is not None:
                    kept["retry-after"] = wait
                while (chunk := reply.body_reader.read_chunk()) is not None:
                    size += len(chunk)
                    if size > max_bytes:
                        detail = f"the reply has more than {max_bytes >> 20} MB"
                        return Reply(reply.status, fault=Fault.TOO_LARGE, detail=detail)
                    if into is not None and reply.status == HTTPStatus.OK:
                        into.write(chunk)
                    else:
                        content += chunk
                return Reply(reply.status, kept, bytes(content))
    except PyreqwestError as error:
        fault, sent, detail = fault_of(error)
        return Reply(fault=fault, sent=sent, detail=detail)


class _Builder(Protocol[_Client_co]):
    """What pyreqwest's two builders of clients have in common."""

    def proxy(self, proxy: Any) -> Self: ...  # noqa: ANN401  (a ProxyBuilder: the import costs 20 ms)
    def add_root_certificate_pem(self, cert: bytes) -> Self: ...
    def build(self) -> _Client_co: ...


def open_client(
    begin: Callable[[], _Builder[_Client_co]], certificates: tuple[bytes, ...], proxy: str | None
) -> _Client_co:
    """Return the client of a builder that `begin` returns, with a proxy and certificates besides the system's.

    No client opens where there are no certificates at all, as in a slim container: those of certifi are taken then.
    """
    from pyreqwest.exceptions import BuilderError  # noqa: PLC0415
    from pyreqwest.proxy import ProxyBuilder  # noqa: PLC0415

    builder = begin()
    if proxy is not None:
        builder = builder.proxy(ProxyBuilder.all(proxy))
    for certificate in certificates:
        builder = builder.add_root_certificate_pem(certificate)
    try:
        return builder.build()
    except BuilderError:
        if certificates:
            raise
    return open_client(begin, tuple(_CERTIFICATE.findall(Path(certifi.where()).read_bytes())), proxy)


def fault_of(error: Any) -> tuple[Fault, bool, str]:  # noqa: ANN401  (a PyreqwestError: the import costs 20 ms)
    """Return a pyreqwest error's fault, whether anything may have been sent, and what a person needs to know of it.

    The causes decide, since the exception's class is ConnectError for a reset after sending, too. The first cause only
    holds the address; the last one is the operating system's, such as "Connection refused (os error 111)".
    """
    from pyreqwest.exceptions import DetailedPyreqwestError, NetworkError, RequestTimeoutError  # noqa: PLC0415

    causes: list[str] = []
    if isinstance(error, DetailedPyreqwestError):
        causes = [cause["message"] for cause in error.details["causes"] or ()][1:]
    last = causes[-1] if causes else error.message
    words = _NO_NEWS.sub("", last)
    words = words[:1].lower() + words[1:]
    if _NOTHING_SENT in causes:
        if "dns error" in causes:
            return Fault.DNS, False, words
        is_tls = any(cause.startswith(_TLS) for cause in causes)
        return (Fault.TLS if is_tls else Fault.CONNECT), False, in_plain_words(words)
    if isinstance(error, RequestTimeoutError):
        return Fault.TIMEOUT, True, words
    return (Fault.RESET if isinstance(error, NetworkError) else Fault.PROTOCOL), True, words


def in_plain_words(words: str) -> str:
    """Return a library's words, or plain ones for a mistake that is easily made."""
    return next((plain for mark, plain in _PLAIN_WORDS.items() if mark in words), words)
