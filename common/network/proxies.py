"""HTTP proxies: what the environment names, what is kept from it, and the one that a gateway uses on purpose.

gRPC reads `grpc_proxy`, `https_proxy` and `http_proxy`, in lower case only, and `no_grpc_proxy` or else `no_proxy`
(RFC 9110, 9.3.6 for CONNECT). Flower's programs also speak HTTP among themselves on loopback, with a library that
reads `all_proxy` and upper case as well. So what the environment does to a federation would depend on the spelling,
and even loopback would go to the proxy. Flower's programs therefore get an environment without any of them. A gateway
goes through a proxy if its settings say so.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from common.network.hosts import divided, joined, reachable_host

LOOPBACK = ("localhost", "127.0.0.1", "::1")

_SPARED = ("no_proxy", "NO_PROXY")
_ADDRESS_PROXIES = ("GRPC_ADDRESS_HTTP_PROXY", "GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES")
_ENDING = "_proxy"
_USER = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%-]+", re.ASCII)  # RFC 3986, userinfo
_WAYS = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")


def proxy_url(text: str) -> str:
    """A proxy as gRPC takes it: `http://[USER:PASSWORD@]HOST:PORT`. Raises ValueError.

    No message repeats a user or a password.
    """
    stripped = text.strip()
    example = "write http://HOST:PORT, for example http://proxy.example.org:3128"
    scheme, mark, rest = stripped.rpartition("://")
    if mark and scheme.lower() != "http":
        raise ValueError(
            f"a proxy by {scheme}:// cannot be used, only one by http://, which passes TLS on; {example}"
        )
    user, at, place = rest.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise ValueError(
            "the proxy's user or password has characters that are written as %XX: @ as %40, / as %2F, a blank as %20"
        )
    try:
        host, port = divided(place.removesuffix("/"))
        host = reachable_host(host)
    except ValueError as error:
        raise ValueError(f"the proxy is not HOST:PORT with a port from 1 to 65535; {example}") from error
    return f"http://{user}{at}{joined(host, port)}"


def shown(url: str) -> str:
    """A proxy for a message: `HOST:PORT`, without user and password, whatever `url` looks like."""
    return url.rpartition("://")[2].rpartition("@")[2].partition("/")[0]


def place(url: str) -> tuple[str, int]:
    """Host and port of a checked proxy."""
    parts = urlsplit(url)
    assert parts.hostname is not None, "proxy_url checked it"
    assert parts.port is not None, "proxy_url checked it"
    return parts.hostname, parts.port


def credentials(url: str) -> str | None:
    """`USER:PASSWORD` of a checked proxy, decoded; None without."""
    user, at, _ = url.removeprefix("http://").rpartition("@")
    return unquote(user) if at else None


def named(environ: Mapping[str, str]) -> dict[str, str]:
    """Proxies that the environment names, in any spelling, without user and password."""
    return {
        name: shown(value.strip())
        for name, value in sorted(environ.items())
        if value.strip() and (name.lower() in _WAYS or name == _ADDRESS_PROXIES[0])
    }


def without(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without any word about proxies."""
    return {
        name: value
        for name, value in environ.items()
        if not name.lower().endswith(_ENDING) and name not in _ADDRESS_PROXIES
    }


def sparing_loopback(environ: Mapping[str, str]) -> dict[str, str]:
    """Every word about proxies in the environment, with loopback added to what goes through none."""
    about = {name: value for name, value in environ.items() if name.lower().endswith(_ENDING)}
    if not about:
        return {}
    for name in (*_SPARED, *(["no_grpc_proxy"] if "no_grpc_proxy" in about else [])):
        given = about.get(name) or about.get("no_proxy") or about.get("NO_PROXY") or ""
        entries = [entry.strip() for entry in given.split(",") if entry.strip()]
        about[name] = ",".join([*entries, *(host for host in LOOPBACK if host not in entries)])
    return about


def only(proxy: str | None) -> dict[str, str]:
    """What the environment has to say for gRPC to use `proxy`, and nothing of loopback's by it."""
    if proxy is None:
        return {}
    spared = ",".join(host for host in LOOPBACK if host != "localhost")  # a name is for the proxy to resolve
    return {"grpc_proxy": proxy, "no_grpc_proxy": spared}


@contextmanager
def of_this_process(proxy: str | None) -> Iterator[None]:
    """gRPC channels that are opened within go through `proxy`, or through none, whatever the environment says."""
    former = dict(os.environ)
    for name in former.keys() - without(former).keys():
        del os.environ[name]
    os.environ.update(only(proxy))
    try:
        yield
    finally:
        for name in only(proxy):
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in former.items() if name not in without(former)})
