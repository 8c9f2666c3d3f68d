"""Hosts as people write them: what can be meant in one way is brought into form, the rest is refused."""

import re

import pytest

from common.network import hosts


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("consilium.example.org", "consilium.example.org"),
        (" Consilium.Example.org\t", "consilium.example.org"),
        ("consilium.example.org.", "consilium.example.org"),
        ("server", "server"),
        ("192.0.2.10", "192.0.2.10"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        (" ::1 ", "::1"),
        ("klinik-münchen.de", "xn--klinik-mnchen-3ob.de"),
        ("klinik-mu\u0308nchen.de", "xn--klinik-mnchen-3ob.de"),  # NFD, as macOS writes it
        ("KLINIK-MÜNCHEN.DE", "xn--klinik-mnchen-3ob.de"),
        ("xn--klinik-mnchen-3ob.de", "xn--klinik-mnchen-3ob.de"),
        ("straße.de", "xn--strae-oqa.de"),  # IDNA 2008; Python's own codec would make strasse.de of it
        ("münchen。de", "xn--mnchen-3ya.de"),
        ("\uff25\uff38ample.org", "example.org"),
    ],
)
def test_what_can_be_meant_in_one_way_is_brought_into_the_form_of_certificates(
    written: str, meant: str
) -> None:
    assert hosts.reachable_host(written) == meant


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("", "the host is empty"),
        (" \t", "the host is empty"),
        ("https://c.example", "is a URL; write the host alone"),
        ("c.example:9092", "has a port; write c.example here, and the port as `port`"),
        ("[::1]:9092", "has a port; write ::1 here"),
        ("[::1", "is not an IPv6 address"),
        ("2001:db8::zz", "is not an IPv6 address"),
        ("[c.example]", "is not an IPv6 address"),
        ("[192.0.2.1]", "brackets, which are for IPv6; write 192.0.2.1"),
        ("10.0.0.0/8", "is a network"),
        ("10.0.0.1/8", "is a network"),
        ("2001:db8::/32", "is a network"),
        ("c.example/fl", "has a path"),
        ("\\\\server\\share", "has a path"),
        ("admin@c.example", "has a user in it"),
        ("*.example.org", "is a wildcard"),
        ("a.example, b.example", "U+0020"),
        ("a.example,b.example", "is more than one host"),
        ("fl_server.example", "has an underscore"),
        ("münchen_1.de", "has an underscore"),
        ("a..example", "a part between two dots is empty"),
        (".example", "a part between two dots is empty"),
        ("-a.example", "'-a' has other characters"),
        ("a-.example", "'a-' has other characters"),
        ("c!.example", "'c!' has other characters"),
        ("x" * 64 + ".org", "a part has 64 characters, at most 63"),
        (".".join(["x" * 60] * 5), "304 characters, at most 253"),
        ("ü" * 70 + ".de", "Label too long"),
        ("xn--a.de", "xn--a stands for no letters"),
        ("192.0.2.010", "leading zero"),
        ("10.0.0.256", "is not an IPv4 address: expected four numbers"),
        ("127.1", "is not an IPv4 address"),
        ("3232235777", "is not an IPv4 address"),
        ("0x7f.1", "is not an IPv4 address"),
        ("fe80::1%eth0", "has a scope (%eth0)"),
        ("::ffff:192.0.2.1", "write 192.0.2.1"),
        ("0.0.0.0", "no address that a site can connect to"),
        ("::", "no address that a site can connect to"),
        ("224.0.0.1", "address of a group"),
        ("255.255.255.255", "address of a group"),
        ("a b.example", "U+0020, SPACE"),
        ("a\u200bb.example", "U+200B, ZERO WIDTH SPACE"),
        ("a\nb.example", "U+000A"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_with_what_to_write(written: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        hosts.reachable_host(written)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("[::]", "::"),
        (" ::1", "::1"),
        ("localhost", "127.0.0.1"),
        ("192.0.2.1", "192.0.2.1"),
    ],
)
def test_an_address_to_listen_on(written: str, meant: str) -> None:
    assert hosts.listening_address(written) == meant


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("c.example", "is a name; write the address of this machine"),
        ("*", "write 0.0.0.0"),
        ("", "the host is empty"),
        ("192.0.2.1:9092", "has a port"),
        ("192.0.2.0/24", "is a network"),
        ("fe80::1%eth0", "has a scope"),
        ("224.0.0.1", "address of a group"),
    ],
)
def test_what_is_no_address_to_listen_on(written: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        hosts.listening_address(written)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("c.example:9092", "c.example:9092"),
        (" C.Example : 9092 ", "c.example:9092"),
        ("[2001:DB8::1]:9092", "[2001:db8::1]:9092"),
        ("münchen.de:1", "xn--mnchen-3ya.de:1"),
        ("192.0.2.1:65535", "192.0.2.1:65535"),
    ],
)
def test_a_server_is_a_host_and_a_port(written: str, meant: str) -> None:
    assert hosts.server_address(written) == meant
    host, port = hosts.divided(meant)
    assert hosts.joined(host, port) == meant


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("c.example", "has no port; write HOST:PORT, for example c.example:9092"),
        ("[::1]", "has no port; write HOST:PORT, for example [::1]:9092"),
        ("::1", "an IPv6 address stands in brackets"),
        ("2001:db8::1:9092", "an IPv6 address stands in brackets"),
        ("https://c.example:9092", "is a URL; write HOST:PORT"),
        ("dns:///c.example:9092", "is a URL"),
        ("c.example:0", "'0' is not a port; expected a number from 1 to 65535"),
        ("c.example:65536", "'65536' is not a port"),
        ("c.example:+5", "is not a port"),
        ("c.example:٩", "is not a port"),
        ("c.example:", "'' is not a port"),
        (":9092", "the host is empty"),
        ("", "has no port"),
        ("c_1.example:9092", "has an underscore"),
        ("0.0.0.0:9092", "no address that a site can connect to"),
    ],
)
def test_what_is_no_server(written: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        hosts.server_address(written)
