"""Runs a command in a network of its own, and notes every packet that wants to leave it.

    unshare --net python alone.py REPORT.json COMMAND...

Beside loopback there is one line, to which everything that is not this machine is routed, name
servers included. Nobody is at its other end but this script, which writes down who was called. With
no route at all, a call would fail unseen. IPv6 has no route here, so a name is asked for over IPv4.
"""

import contextlib
import fcntl
import ipaddress
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

# linux/if_tun.h, linux/sockios.h, linux/if.h, linux/route.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFFLAGS, SIOCADDRT = 0x8916, 0x891C, 0x8914, 0x890B
IFF_UP, IFF_RUNNING, RTF_UP, RTF_GATEWAY = 0x1, 0x40, 0x1, 0x2
HERE, THERE, LINE = "192.0.2.2", "192.0.2.1", "line0"


def address(text: str) -> bytes:
    """struct sockaddr_in without a port."""
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))


def set_up() -> int:
    """Bring loopback and the line up; returns the line's other end."""
    line = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(line, TUNSETIFF, struct.pack("16sH22x", LINE.encode(), IFF_TUN | IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFADDR, struct.pack("16s16s8x", LINE.encode(), address(HERE)))
        fcntl.ioctl(control, SIOCSIFNETMASK, struct.pack("16s16s8x", LINE.encode(), address("255.255.255.0")))
        for name in ("lo", LINE):
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), IFF_UP | IFF_RUNNING))
        anywhere, flags = address("0.0.0.0"), RTF_UP | RTF_GATEWAY
        route = struct.pack("=Q16s16s16sH6x", 0, anywhere, address(THERE), anywhere, flags)
        fcntl.ioctl(control, SIOCADDRT, route + bytes(120 - len(route)))
    return line


def destination(packet: bytes) -> str | None:
    """Whom a packet is for; None for the kernel's own talk to neighbours."""
    if packet[0] >> 4 == 4:
        return str(ipaddress.ip_address(packet[16:20]))
    target = ipaddress.ip_address(packet[24:40])
    return None if target.is_multicast or target.is_link_local else str(target)


def main() -> int:
    report, command = Path(sys.argv[1]), sys.argv[2:]
    line, called, has_ended = set_up(), list[str](), threading.Event()

    def listen() -> None:
        # What was sent before the command ended lies ready to be read when it has ended.
        while select.select([line], [], [], 0 if has_ended.is_set() else 0.1)[0] or not has_ended.is_set():
            with contextlib.suppress(BlockingIOError):
                if (target := destination(os.read(line, 65536))) is not None:
                    called.append(target)

    os.set_blocking(line, False)
    watch = threading.Thread(target=listen)
    watch.start()
    code = subprocess.call(command)
    has_ended.set()
    watch.join()
    report.write_text(json.dumps({"code": code, "called": called}))
    return code


if __name__ == "__main__":
    sys.exit(main())
