"""A real server of the S3 protocol (moto's) behind a door: through it a test sees requests go by, and shuts the store away."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import s3fs  # type: ignore[import-untyped]  # the library ships no types
from moto.server import ThreadedMotoServer

BUCKET = "tunetrial"
KEYS = {"AWS_ACCESS_KEY_ID": "an-access-key", "AWS_SECRET_ACCESS_KEY": "hunter3", "AWS_DEFAULT_REGION": "us-east-1"}


class Door:
    """Passes bytes on to a port of loopback while it is open."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._lock, self._open = threading.Lock(), True
        self._connections: list[socket.socket] = []
        self._waiting: list[tuple[bytes, Callable[[], None]]] = []
        self.requests: list[str] = []
        """First lines of requests, as far as they came with the beginning of a packet."""
        self.sent = bytearray()
        """All that was asked."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def at(self, words: str, then: Callable[[], None]) -> None:
        """Once a request whose first line holds `words` was passed on, `then` is called."""
        with self._lock:
            self._waiting.append((words.encode(), then))

    def shut(self) -> None:
        """Ends all connections, and each new one at once."""
        with self._lock:
            self._open = False
            ended, self._connections = self._connections, []
        for end in ended:
            _end(end)

    def open(self) -> None:
        with self._lock:
            self._open = True

    def close(self) -> None:
        self.shut()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                client, _ = self._listening.accept()
                with self._lock:
                    is_open = self._open
                if not is_open:
                    _end(client)
                    continue
                server = socket.create_connection(("127.0.0.1", self._to))
                with self._lock:
                    self._connections += [client, server]
                threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):  # one of them was closed
            while chunk := source.recv(2**16):
                target.sendall(chunk)
                if asks:
                    self.sent += chunk
                    self._seen(chunk.split(b"\r\n", 1)[0])
        _end(source)
        _end(target)

    def _seen(self, line: bytes) -> None:
        if not line.endswith(b" HTTP/1.1"):
            return
        with self._lock:
            self.requests.append(line.decode())
            due = [then for words, then in self._waiting if words in line]
            self._waiting = [each for each in self._waiting if each[0] not in line]
        for then in due:
            then()


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class S3:
    """A server with one bucket, whose credentials are in the environment while it lasts."""

    def __init__(self, server: ThreadedMotoServer) -> None:
        _, self._port = server.get_host_and_port()
        self.door = Door(self._port)

    @property
    def options(self) -> dict[str, Any]:
        """What a client is told beside the URL."""
        return {"endpoint_url": self.door.url}

    def files(self) -> Any:
        """The server itself, not through the door."""
        return s3fs.S3FileSystem(
            key=KEYS["AWS_ACCESS_KEY_ID"],
            secret=KEYS["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=f"http://127.0.0.1:{self._port}",
            skip_instance_cache=True,
            use_listings_cache=False,
        )

    def objects(self, prefix: str = "") -> list[str]:
        """Names of all objects under a prefix of the bucket."""
        found: list[str] = self.files().find(f"{BUCKET}/{prefix}")
        return sorted(name.removeprefix(f"{BUCKET}/{prefix}").lstrip("/") for name in found)

    @contextlib.contextmanager
    def knowing_nobody(self) -> Iterator[None]:
        """While it lasts the server checks credentials, and there are none that are right."""
        self._ask("reset-auth", b"0")
        try:
            yield
        finally:
            self._ask("reset-auth", b"inf")

    def close(self) -> None:
        self.door.close()

    def _ask(self, what: str, body: bytes) -> None:
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/moto-api/{what}", data=body, headers=headers)
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310


@contextlib.contextmanager
def s3_server() -> Iterator[S3]:
    """A server of its own, empty but for the bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in KEYS.items():
            patch.setenv(name, value)
        try:
            s3 = S3(server)
            s3._ask("reset", b"")
            s3.files().mkdir(BUCKET)
            yield s3
            s3.close()
        finally:
            server.stop()
