"""Serving a console: on loopback, or with TLS on an address that is named."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from cryptography import x509
from starlette.types import ASGIApp

from common.errors import ConfigError, LaunchError
from common.network.hosts import is_loopback, joined, plain_host
from common.polling import wait_until
from common.web.console import Address

_START_S, _STOP_S = 10.0, 5.0
_MOST_CONNECTIONS = 100


@dataclass(frozen=True)
class Place:
    """Address to listen on, with the certificate for TLS, if any."""

    host: str = "127.0.0.1"
    port: int = 8765
    certificate: Path | None = None
    key: Path | None = None
    published: bool = False
    """In a container whose port is published on the machine's loopback alone: it listens on every address of the
    container, and is found under the names of loopback."""

    @property
    def listen(self) -> str:
        """The address to listen on."""
        return "0.0.0.0" if self.published else self.host

    @property
    def address(self) -> Address:
        """How the console is found. Raises ConfigError for an address without TLS that is not this machine's own."""
        try:
            host = plain_host(self.host)
        except ValueError as error:
            raise ConfigError(f"the console's address: {error}") from error
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("a certificate and its key belong together; give both, or neither")
        if self.certificate is None:
            if not is_loopback(host):
                raise ConfigError(
                    f"the console on {host} needs TLS, so that no person in between reads the token: give a "
                    "certificate and its key, or use 127.0.0.1 and `ssh -L`"
                )
            names = {host, "127.0.0.1", "localhost", "::1"}
            return Address(tuple(sorted(joined(name, self.port) for name in names)), self.port)
        names = {host, *_names(self.certificate)}
        hosts = {joined(name, self.port) for name in names} | (names if self.port == 443 else set())
        return Address(tuple(sorted(hosts)), self.port, "https")

    @property
    def url(self) -> str:
        """What a person types into the browser."""
        return f"{self.address.scheme}://{joined(self.host, self.port)}/"


def _names(certificate: Path) -> set[str]:
    """The names and addresses that a certificate is for. Raises ConfigError."""
    try:
        names = (
            x509.load_pem_x509_certificate(certificate.read_bytes())
            .extensions.get_extension_for_class(x509.SubjectAlternativeName)
            .value
        )
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise ConfigError(
            f"{certificate} is not a certificate with names ({type(error).__name__}); give a PEM file"
        ) from error
    addresses = names.get_values_for_type(x509.IPAddress)
    return {name.lower() for name in names.get_values_for_type(x509.DNSName)} | set(map(str, addresses))


@contextmanager
def serving(app: ASGIApp, place: Place, confine: Callable[[], object] | None = None) -> Iterator[None]:
    """Serve `app` in a thread as long as this lasts. Raises ConfigError, LaunchError."""
    stop = start(app, place, confine)
    try:
        yield
    finally:
        stop()


def _tls(place: Place) -> ssl.SSLContext:
    assert place.certificate is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(place.certificate, place.key)
    except OSError as error:
        raise ConfigError(
            f"{place.certificate} and {place.key} cannot be used for TLS: {error.strerror or error}"
        ) from error
    return context


def start(app: ASGIApp, place: Place, confine: Callable[[], object] | None = None) -> Callable[[], None]:
    """Serve `app` in a thread until the returned function is called. Raises ConfigError, LaunchError.

    `confine` is called once the port is open, before anything is answered.
    """
    context = None if place.address.scheme == "http" else _tls(place)
    try:
        family = socket.AF_INET6 if ":" in place.listen else socket.AF_INET
        listener = socket.create_server((place.listen, place.port), family=family, backlog=64)
    except OSError as error:
        raise LaunchError(
            f"{joined(place.listen, place.port)} cannot be used for the console: {error.strerror}; give another port"
        ) from error
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
        ssl_context_factory=None if context is None else lambda *_: context,
    )
    if confine is not None:
        confine()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="console", daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(_STOP_S)
        with contextlib.suppress(OSError):
            listener.close()

    if not wait_until(lambda: server.started or not thread.is_alive(), _START_S) or not server.started:
        stop()
        raise LaunchError(f"the console did not start on {joined(place.host, place.port)}")
    return stop
