"""Proxies: which words of the environment count, what loopback is spared, and what a setting may say."""

import os
import re

import httpx
import pytest

from common.network import proxies

ENVIRONMENT = {
    "PATH": "/bin",
    "HTTPS_PROXY": "http://user:secret@web.example:3128",
    "http_proxy": "http://web.example:3128",
    "All_Proxy": "socks5://web.example:1080",
    "no_proxy": ".example.org, 127.0.0.1",
    "GRPC_ADDRESS_HTTP_PROXY": "web.example:3128",
}


def test_proxies_are_named_in_any_spelling_and_without_their_password() -> None:
    assert proxies.named(ENVIRONMENT) == {
        "All_Proxy": "web.example:1080",
        "GRPC_ADDRESS_HTTP_PROXY": "web.example:3128",
        "HTTPS_PROXY": "web.example:3128",
        "http_proxy": "web.example:3128",
    }


def test_an_empty_variable_names_no_proxy() -> None:
    assert proxies.named({"https_proxy": " ", "HTTP_PROXY": "", "no_proxy": "x"}) == {}


def test_an_environment_without_proxies_keeps_everything_else() -> None:
    assert proxies.without(ENVIRONMENT) == {"PATH": "/bin"}


def test_loopback_is_added_to_what_goes_through_no_proxy_in_both_spellings() -> None:
    spared = proxies.sparing_loopback(ENVIRONMENT)
    assert spared["no_proxy"] == spared["NO_PROXY"] == ".example.org,127.0.0.1,localhost,::1"
    assert spared["HTTPS_PROXY"] == ENVIRONMENT["HTTPS_PROXY"]
    assert "PATH" not in spared


def test_the_list_that_grpc_prefers_spares_loopback_as_well() -> None:
    spared = proxies.sparing_loopback({"https_proxy": "http://p:1", "no_grpc_proxy": "a.example"})
    assert spared["no_grpc_proxy"] == "a.example,localhost,127.0.0.1,::1"


def test_without_a_proxy_nothing_is_said_of_any() -> None:
    assert proxies.sparing_loopback({"PATH": "/bin"}) == {}


def test_a_library_that_flower_uses_would_go_to_a_proxy_on_loopback_and_goes_directly_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """httpx, which Flower's programs use among themselves, fails on a SOCKS proxy before any call."""
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ImportError, match="socks"):
        httpx.Client()
    with proxies.of_this_process(None), httpx.Client() as client:
        assert not client._mounts


@pytest.mark.parametrize(
    ("written", "meant", "place", "credentials"),
    [
        ("http://p.example:3128", "http://p.example:3128", ("p.example", 3128), None),
        (" HTTP://P.Example:3128/ ", "http://p.example:3128", ("p.example", 3128), None),
        ("p.example:3128", "http://p.example:3128", ("p.example", 3128), None),
        ("http://[::1]:80", "http://[::1]:80", ("::1", 80), None),
        ("http://u:p%40w@p:1", "http://u:p%40w@p:1", ("p", 1), "u:p@w"),
    ],
)
def test_a_proxy_is_a_host_and_a_port_perhaps_with_a_user(
    written: str, meant: str, place: tuple[str, int], credentials: str | None
) -> None:
    assert proxies.proxy_url(written) == meant
    assert (proxies.place(meant), proxies.credentials(meant)) == (place, credentials)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("https://p:3128", "by https:// cannot be used, only one by http://"),
        ("socks5://u:secret@p:1080", "by socks5:// cannot be used"),
        ("http://p", "is not HOST:PORT"),
        ("http://p:0", "is not HOST:PORT"),
        ("http://u:secret@p:99999", "is not HOST:PORT"),
        ("http://p:3128/secret", "is not HOST:PORT"),
        ("http://u:secret", "is not HOST:PORT"),
        ("http://u:secret@", "is not HOST:PORT"),
        ("http://u:secret@x@p:1", "@ as %40"),
        ("http://u:secret /@p:1", "a blank as %20"),
        ("none", "is not HOST:PORT"),
        ("", "is not HOST:PORT"),
    ],
)
def test_what_is_no_proxy_is_refused_without_repeating_a_password(written: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        proxies.proxy_url(written)
    assert "secret" not in str(caught.value)


def test_the_environment_of_this_process_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://web.example:1")
    monkeypatch.setenv("grpc_proxy", "http://web.example:2")
    before = dict(os.environ)
    with proxies.of_this_process("http://p:3"):
        within = {name: value for name, value in os.environ.items() if "proxy" in name.lower()}
        assert within == {"grpc_proxy": "http://p:3", "no_grpc_proxy": "127.0.0.1,::1"}
    assert dict(os.environ) == before
