"""Host names and addresses as people write them, in the one form that certificates and connections take.

What can be meant in one way only is brought into that form: blanks around it, brackets around an IPv6 address,
capital letters, a dot at the end, an umlaut domain (RFC 5891). Everything else is refused with what to write
instead, before a certificate or a start-up kit is made of it.
"""

import ipaddress
import re
import unicodedata

import idna

EVERY_IPV4, EVERY_IPV6 = "0.0.0.0", "::"
"""To listen on every address of this machine."""

_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_DOTTED = re.compile(r"[0-9]+(\.[0-9]+){3}", re.ASCII)
_LONGEST_LABEL, _LONGEST_NAME = 63, 253
_SHOWN = 80


def reachable_host(text: str) -> str:
    """A name or an address by which a site finds the server. Raises ValueError."""
    host = plain_host(text)
    address = _address(host)
    if address is None:
        return host
    if address.is_unspecified:
        raise ValueError(
            f"{host} is no address that a site can connect to; it stands for every address to listen on"
        )
    if address.is_multicast or host == "255.255.255.255":
        raise ValueError(f"{host} is an address of a group, not of one machine; write the server's own")
    return host


def listening_address(text: str) -> str:
    """An address of this machine to listen on, or 0.0.0.0 or :: for every one. Raises ValueError."""
    if text.strip() == "*":
        raise ValueError(f"'*' is not an address; write {EVERY_IPV4} for every address of this machine")
    host = plain_host(text)
    if host == "localhost":
        return "127.0.0.1"
    if (address := _address(host)) is None:
        raise ValueError(
            f"{_show(text)} is a name; write the address of this machine to listen on, or {EVERY_IPV4} for every one"
        )
    if address.is_multicast or host == "255.255.255.255":
        raise ValueError(
            f"{host} is an address of a group, not of one machine; write {EVERY_IPV4} for every address"
        )
    return host


def is_loopback(host: str) -> bool:
    """True for a name or an address by which every machine means itself."""
    address = _address(host)
    return host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback)


def server_address(text: str) -> str:
    """A host and a port in one, `HOST:PORT`, with an IPv6 address in brackets. Raises ValueError."""
    host, port = divided(text)
    return joined(reachable_host(host), port)


def joined(host: str, port: int) -> str:
    """`HOST:PORT`; an IPv6 address is put into brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def divided(text: str) -> tuple[str, int]:
    """Host, without brackets, and port of `HOST:PORT`. The host is not checked. Raises ValueError."""
    stripped = text.strip()
    _require_no_url(stripped, "HOST:PORT, for example consilium.example.org:9092")
    host, colon, port = stripped.rpartition(":")
    if stripped.count(":") > 1 and "[" not in stripped:
        raise ValueError(
            f"{_show(text)} is not HOST:PORT; an IPv6 address stands in brackets: [2001:db8::1]:9092"
        )
    if not colon or stripped.endswith("]"):
        raise ValueError(
            f"{_show(text)} has no port; write HOST:PORT, for example {(stripped or 'HOST')[:_SHOWN]}:9092"
        )
    host = host.strip()
    if host.startswith("[") and host.endswith("]"):
        host = plain_host(host)
    return host, port_number(port)


def port_number(text: str) -> int:
    """A TCP port, 1 to 65535. Raises ValueError."""
    number = int(text) if _PORT.fullmatch(text.strip()) else 0
    if not 1 <= number <= 65535:
        raise ValueError(f"{_show(text)} is not a port; expected a number from 1 to 65535")
    return number


def plain_host(text: str) -> str:
    """A DNS name in lower-case ASCII, or an IP address without brackets. Raises ValueError."""
    stripped = text.strip()
    if not stripped:
        raise ValueError("the host is empty; write a DNS name or an IP address")
    _require_no_url(stripped, "the host alone, for example consilium.example.org")
    _require_printable(stripped)
    inside = stripped[1:-1] if stripped.startswith("[") and stripped.endswith("]") else stripped
    if (address := _address(inside)) is not None:
        if inside is not stripped and address.version == 4:
            raise ValueError(f"{_show(text)} has brackets, which are for IPv6; write {address}")
        return _plain_address(text, address)
    _require_a_single_host(stripped)
    if _DOTTED.fullmatch(stripped) or _NUMBER.fullmatch(stripped.lower().rstrip(".").rpartition(".")[2]):
        why = (
            "numbers with a leading zero are read as octal by some programs"
            if re.search(r"(^|\.)0[0-9]", stripped)
            else ("expected four numbers from 0 to 255")
        )
        raise ValueError(f"{_show(text)} is not an IPv4 address: {why}")
    return _dns_name(stripped)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _plain_address(text: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError(
                f"{_show(text)} has a scope (%{address.scope_id}), which means something on one machine only; "
                "write an address without one"
            )
        if address.ipv4_mapped is not None:
            raise ValueError(f"{_show(text)} is an IPv4 address in IPv6 form; write {address.ipv4_mapped}")
    return str(address)


def _require_no_url(text: str, instead: str) -> None:
    if "://" in text:
        raise ValueError(f"{_show(text)} is a URL; write {instead}")


def _require_printable(text: str) -> None:
    for character in text:
        if unicodedata.category(character)[0] in "CZ":
            name = unicodedata.name(character, "a control character")
            raise ValueError(
                f"{_show(text)} has a character in it that no host has: U+{ord(character):04X}, {name}"
            )


def _require_a_single_host(text: str) -> None:
    """Raises ValueError for what is more than a host, or less."""
    host, _, port = text.rpartition(":")
    has_port = _PORT.fullmatch(port) is not None and (host.endswith("]") or text.count(":") == 1)
    reasons = (
        ("/" in text and _is_network(text), "is a network; write the server's own address, without the /"),
        ("/" in text or "\\" in text, "has a path; write the host alone"),
        ("@" in text, "has a user in it; write the host alone"),
        ("*" in text, "is a wildcard; write each name by which sites connect"),
        ("," in text or ";" in text, "is more than one host; write a list: [a.example.org, b.example.org]"),
        (has_port, f"has a port; write {host.strip('[]') or 'the host'} here, and the port as `port`"),
        (any(mark in text for mark in ":[]"), "is not an IPv6 address"),
        (
            "_" in text,
            "has an underscore, which certificates do not take; ask for another name in the DNS, or write the address",
        ),
    )
    why = next((why for is_so, why in reasons if is_so), None)
    if why is not None:
        raise ValueError(f"{_show(text)} {why}")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _dns_name(text: str) -> str:
    """The name as the DNS has it: lower case, every label ASCII."""
    name = unicodedata.normalize("NFC", text)
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise ValueError(f"{_show(text)} is not a DNS name: {error}") from error
    name = name.lower().removesuffix(".")
    faults = [fault for label in name.split(".") if (fault := _fault(label))]
    if len(name) > _LONGEST_NAME:
        faults.append(f"it has {len(name)} characters, at most {_LONGEST_NAME} are allowed")
    if faults:
        raise ValueError(f"{_show(text)} is not a DNS name: {faults[0]}")
    return name


def _fault(label: str) -> str | None:
    """What is wrong with one part of a DNS name."""
    if not label:
        return "a part between two dots is empty"
    if len(label) > _LONGEST_LABEL:
        return f"a part has {len(label)} characters, at most {_LONGEST_LABEL} are allowed"
    if not _LABEL.fullmatch(label):
        return f"{_show(label)} has other characters than letters, digits, and hyphens between them"
    if label.startswith("xn--"):
        try:
            idna.decode(label)
        except (idna.IDNAError, UnicodeError) as error:
            return f"{label} stands for no letters ({error})"
    return None


def _show(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
