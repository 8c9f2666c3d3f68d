"""A small HTTP proxy on loopback that knows CONNECT alone, for tests."""

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping

ESTABLISHED = "200 Connection established"


class ConnectProxy:
    """Connects to the places that it knows, by the name that it is asked for, and notes what it was asked."""

    def __init__(
        self,
        places: Mapping[str, int],
        *,
        credentials: str | None = None,
        answer: str = ESTABLISHED,
        host: str = "127.0.0.1",
    ) -> None:
        """`places`: ports of `host` by HOST:PORT as asked for. `answer`: its status when it would connect."""
        self.asked: list[str] = []
        self._places, self._answer, self._host = places, answer, host
        self._credentials = None if credentials is None else base64.b64encode(credentials.encode()).decode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # stopped
            while True:
                line, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(line,), daemon=True).start()

    def _connect(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += line.recv(1) or b"\r\n\r\n"
            first, *headers = head.decode("latin-1").split("\r\n")
            method, _, rest = first.partition(" ")
            place = rest.partition(" ")[0]
            self.asked.append(place)
            given = [
                header.partition(": ")[2] for header in headers if header.lower().startswith("proxy-auth")
            ]
            status = self._answer
            if method != "CONNECT":
                status = "405 Method Not Allowed"
            elif self._credentials is not None and given != [f"Basic {self._credentials}"]:
                status = "407 Proxy Authentication Required"
            elif place not in self._places:
                status = "403 Forbidden"
            line.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())
            if status != ESTABLISHED:
                return
            with socket.create_connection((self._host, self._places[place])) as far:
                back = threading.Thread(target=_copy, args=(far, line), daemon=True)
                back.start()
                _copy(line, far)
                back.join(10)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def connect_proxy(places: Mapping[str, int], **rest: str | None) -> Iterator[ConnectProxy]:
    proxy = ConnectProxy(places, **rest)  # type: ignore[arg-type]
    try:
        yield proxy
    finally:
        proxy.stop()
