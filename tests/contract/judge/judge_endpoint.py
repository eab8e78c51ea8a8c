"""An endpoint that speaks the OpenAI protocol over real HTTP and replies as a test says."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunetrial.judge.v1 import judge_pb2_grpc

    Stub = judge_pb2_grpc.JudgeServiceAsyncStub
    Serve = Callable[..., AbstractAsyncContextManager[Stub]]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the endpoint sends; `body` is JSON, or verbatim where it is bytes. `hold` is waited for first."""

    body: dict[str, Any] | bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None


def chat(
    content: str | None,
    *,
    finish: str = "stop",
    refusal: str | None = None,
    positions: list[tuple[str, list[tuple[str, float]]]] | None = None,
) -> Reply:
    """A chat completion. `positions`: token by token, the token and its likeliest alternatives with probabilities."""
    log_probabilities = None
    if positions is not None:
        tokens = [
            {
                "token": token,
                "logprob": math.log(dict(top).get(token, 0.5)),
                "bytes": None,
                "top_logprobs": [{"token": each, "logprob": math.log(p), "bytes": None} for each, p in top],
            }
            for token, top in positions
        ]
        log_probabilities = {"content": tokens, "refusal": None}
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "finish_reason": finish, "message": message, "logprobs": log_probabilities}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    return Reply({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage})


def failure(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error in the protocol's form."""
    return Reply({"error": {"message": message, "type": "error", "param": None, "code": code}}, status, headers)


class Endpoint:
    """`respond` gets each request's body and number (from 0); `requests` keeps them."""

    def __init__(self) -> None:
        self.respond: Callable[[dict[str, Any], int], Reply] = lambda _body, _number: chat("4")
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.changed = threading.Condition()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with endpoint.changed:
                    number = len(endpoint.requests)
                    endpoint.requests.append(body)
                    endpoint.keys.append(self.headers["authorization"])
                    endpoint.in_flight += 1
                    endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
                    endpoint.changed.notify_all()
                try:
                    reply = endpoint.respond(body, number) if self.path == "/v1/chat/completions" else Reply(b"nothing here", 404)
                    if reply.hold is not None:
                        reply.hold.wait(30)
                finally:
                    with endpoint.changed:
                        endpoint.in_flight -= 1
                data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                try:
                    self.send_response(reply.status)
                    headers = {"content-type": "application/json"} | reply.headers | {"content-length": str(len(data))}
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # the judge hung up, as some tests want

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    async def has_in_flight(self, count: int) -> bool:
        def wait() -> bool:
            with self.changed:
                return self.changed.wait_for(lambda: self.in_flight >= count, timeout=30)

        return await asyncio.to_thread(wait)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
