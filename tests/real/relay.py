"""A relay before a server, through which a test knows what is asked of it, and at what moment. Knows no protocol but lines of requests."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


class Relay:
    """Passes bytes on, and calls `then` once the `nth` request whose first line holds `words` was passed on."""

    def __init__(self, port: int) -> None:
        self._port, self._listening = port, socket.create_server(("127.0.0.1", 0))
        self._waiting: list[tuple[bytes, int, Callable[[], None]]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def at(self, words: str, nth: int, then: Callable[[], None]) -> None:
        """Sets such a moment; it comes once."""
        with self._lock:
            self._waiting.append((words.encode(), nth, then))

    def close(self) -> None:
        """Listens no more; connections that are open end with the server's."""
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._port))
        except OSError:  # the server is away: so is this connection
            client.close()
            return
        threading.Thread(target=self._pass, args=(server, client, None), daemon=True).start()
        self._pass(client, server, self._seen)

    def _pass(self, source: socket.socket, target: socket.socket, seen: Callable[[bytes], None] | None) -> None:
        with contextlib.suppress(OSError):  # one of them was closed
            while chunk := source.recv(2**16):
                target.sendall(chunk)
                if seen is not None:
                    seen(chunk)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _seen(self, chunk: bytes) -> None:
        line = chunk.split(b"\r\n", 1)[0]
        if b" HTTP/1.1" not in line:
            return
        with self._lock:
            now = [words in line for words, _, _ in self._waiting]
            left = [(words, nth - here, then) for (words, nth, then), here in zip(self._waiting, now, strict=True)]
            self._waiting = [each for each in left if each[1] > 0]
            due = [then for _, nth, then in left if nth == 0]
        for then in due:
            then()


@contextlib.contextmanager
def relay(port: int) -> Iterator[Relay]:
    """A relay to this port of loopback."""
    relay = Relay(port)
    try:
        yield relay
    finally:
        relay.close()
