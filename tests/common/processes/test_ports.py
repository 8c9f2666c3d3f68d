"""Ports: free, taken, claimed, and listened on at the address that was asked for."""

import contextlib
import socket

import pytest

from common.processes import ports


def own_address() -> str:
    """An address of this machine that is not loopback's, or a test is skipped. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("203.0.113.77", 9))  # UDP: this chooses a route and sends nothing
        return str(probe.getsockname()[0])
    pytest.skip("this machine has no address but loopback's")


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def listener(host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.bind((host, 0))
    made.listen()
    return made


def test_a_port_is_taken_while_something_listens_and_free_after_it() -> None:
    with listener("127.0.0.1") as listening:
        port = listening.getsockname()[1]
        assert ports.obstacle(port) == f"port {port} is taken by another process"
        assert ports.accepts_connections(port)
    assert ports.obstacle(port) is None
    assert not ports.accepts_connections(port)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::", "::1", "own"])
def test_who_listens_on_an_address_is_found_at_that_address(host: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    host = own_address() if host == "own" else host
    with listener(host) as listening:
        port = listening.getsockname()[1]
        assert ports.accepts_connections(port, host)
        assert ports.obstacle(port, host) == f"port {port} is taken by another process"
    assert not ports.accepts_connections(port, host)
    assert ports.obstacle(port, host) is None


def test_who_listens_on_one_address_is_not_looked_for_on_loopback() -> None:
    """Version 0.1.0 asked 127.0.0.1, so a server on any other address was never ready."""
    with listener("127.0.0.2") as listening:
        port = listening.getsockname()[1]
        assert not ports.accepts_connections(port)
        assert ports.accepts_connections(port, "127.0.0.2")


def test_an_address_of_another_machine_is_not_a_taken_port() -> None:
    (port,) = ports.free_ports(1)
    assert ports.obstacle(port, "203.0.113.77") == (
        "203.0.113.77 is not an address of this machine (`ip address` lists them)"
    )


def test_a_machine_without_ipv6_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object, **__: object) -> socket.socket:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", without)
    assert ports.obstacle(9092, "::1") == "::1 is an IPv6 address, and this machine has no IPv6"


def test_a_port_of_the_system_is_not_a_taken_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", forbidden)
    assert "port 443 may not be listened on by this user" in str(ports.obstacle(443))


@pytest.mark.parametrize("port", [0, -1, 65536, 99999])
def test_a_number_that_is_no_port_is_said_to_be_none(port: int) -> None:
    assert ports.obstacle(port) == f"{port} is not a port; expected a number from 1 to 65535"


def test_free_ports_differ() -> None:
    found = ports.free_ports(50)
    assert len(set(found)) == 50
    assert not any(ports.obstacle(port) for port in found[:5])


def test_of_two_launchers_that_start_together_one_has_the_port() -> None:
    (port,) = ports.free_ports(1)
    first = ports.claim_port(port)
    assert first is not None
    with first:
        assert ports.claim_port(port) is None
        assert ports.obstacle(port) is None  # it is for the server to listen on
    second = ports.claim_port(port)
    assert second is not None
    second.close()
