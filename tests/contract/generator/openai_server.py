"""A server that speaks the protocol of api.openai.com over real HTTP: chat completions, legacy completions and the list of models.

It answers every prompt with the same words and checks parameters as OpenAI does, with its words; `respond` lets a test say otherwise.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from services.generator.domain import Decoding, Generation, Prompt, Turn, Work
from services.generator.engine_settings import OpenAISettings
from services.generator.openai_engine import OpenAIEngine

WORDS = ("Ada", " Lund", " built", " it", " in", " 1901")
QUESTION: Prompt = (Turn("user", "who built it?"),)
MODEL, SNAPSHOT = "gpt-4o", "gpt-4o-2024-08-06"
_MOST_STOPS = 4
_KNOWN = frozenset(
    {"model", "messages", "prompt", "temperature", "top_p", "seed", "stop", "max_tokens", "max_completion_tokens", "logprobs"}
    | {"top_logprobs", "response_format", "stream", "stream_options"}
)


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived."""

    path: str
    key: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent: JSON, or verbatim where it is bytes; or events, one by one; `then`: the end, a cut connection (cut), or silence."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    events: tuple[Any, ...] | None = None
    then: str = "end"


def failure(status: int, message: str, code: str | None = None, param: str | None = None, headers: dict[str, str] | None = None) -> Reply:
    """An error in OpenAI's form."""
    kind = code if code == "insufficient_quota" else "invalid_request_error"
    return Reply({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers or {})


def unknown_parameter(name: str) -> Reply:
    """As a model refuses a parameter that it does not have."""
    instead = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
    return failure(400, f"Unsupported parameter: '{name}' is not supported with this model.{instead}", "unsupported_parameter", name)


class OpenAIServer:
    """`respond` gets each request and its number from 0, and returns None for the usual answer; `seen` keeps all but looks at the list."""

    def __init__(self) -> None:
        self.respond: Callable[[Seen, int], Reply | None] = lambda _seen, _number: None
        self.models = Reply({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "openai"}]})
        self.keys: set[str] | None = None
        self.seen: list[Seen] = []
        self.looks = 0
        self.engines: list[OpenAIEngine] = []
        self.arrived, self.hung_up = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [each.body for each in self.seen]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reply(self, seen: Seen) -> Reply:
        """To a request that was just kept."""
        if self.keys is not None and seen.key not in self.keys:
            return failure(401, f"Incorrect API key provided: {seen.key}.", "invalid_api_key")
        if seen.path not in ("/v1/chat/completions", "/v1/completions"):
            return failure(404, f"Invalid URL (POST {seen.path})")
        return self.respond(seen, len(self.seen) - 1) or _refusal(seen.body) or answer(seen.body)


def answer(body: dict[str, Any], words: tuple[str, ...] = WORDS, finish: str = "", refusal: str | None = None, **more: Any) -> Reply:
    """The usual answer to a request, whole or as events; `more` replaces parts of it, for all events."""
    limit = body.get("max_tokens", body.get("max_completion_tokens", 16))
    finish = finish or ("length" if limit < len(words) else "stop")
    words, stops = words[:limit], body.get("stop") or ()
    text = "".join(words)
    for stop in stops:
        text, finish = (text.partition(stop)[0], "stop") if stop in text else (text, finish)
    words = tuple(word for number, word in enumerate(words) if len("".join(words[: number + 1])) <= len(text))
    bare = "prompt" in body
    usage = {"prompt_tokens": 1000, "completion_tokens": len(words), "total_tokens": 1000 + len(words)}
    head = {"id": "cmpl-1", "created": 1, "model": SNAPSHOT if body["model"] == MODEL else body["model"]} | more
    probabilities = _probabilities(body, words, bare)
    if not body.get("stream"):
        said: dict[str, Any] = {"text": text} if bare else {"message": {"role": "assistant", "content": text or None, "refusal": refusal}}
        choice = {"index": 0, "finish_reason": finish, "logprobs": probabilities(slice(None)), **said}
        kind = "text_completion" if bare else "chat.completion"
        return Reply({"object": kind, "choices": [choice], "usage": usage, **head})
    kind = "text_completion" if bare else "chat.completion.chunk"
    deltas: list[tuple[dict[str, Any], Any]] = [] if bare else [({"role": "assistant", "content": "", "refusal": None}, None)]
    deltas += [({"content": word}, probabilities(slice(number, number + 1))) for number, word in enumerate(words)]
    deltas += [] if refusal is None else [({"refusal": refusal}, None)]
    events: list[Any] = []
    for delta, chosen in [*deltas, ({}, None)]:
        said = {"text": delta.get("content", "")} if bare else {"delta": delta}
        choice = {"index": 0, "finish_reason": None if delta else finish, "logprobs": chosen, **said}
        events.append({"object": kind, "choices": [choice], **head})
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append({"object": kind, "choices": [], "usage": usage, **head})
    return Reply(events=(*events, "[DONE]"))


def _probabilities(body: dict[str, Any], words: tuple[str, ...], bare: bool) -> Callable[[slice], Any]:
    """Log-probabilities of some of the words: each 0.5, its first rival 0.25, and so on."""
    wanted = body.get("logprobs") if bare else body.get("top_logprobs") if body.get("logprobs") else None
    if wanted is None:
        return lambda _which: None
    rivals = [[(word if n == 0 else f"{word}{n}", math.log(0.5 ** (n + 1))) for n in range(wanted)] for word in words]

    def of(which: slice) -> Any:
        if bare:
            top = [dict(each) for each in rivals[which]]
            return {"tokens": words[which], "token_logprobs": [math.log(0.5)] * len(words[which]), "top_logprobs": top, "text_offset": []}
        return {
            "content": [
                {"token": word, "logprob": math.log(0.5), "bytes": list(word.encode()), "top_logprobs": _rows(top)}
                for word, top in zip(words[which], rivals[which], strict=True)
            ],
            "refusal": None,
        }

    return of


def _rows(top: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"token": text, "logprob": value, "bytes": list(text.encode())} for text, value in top]


def _refusal(body: dict[str, Any]) -> Reply | None:
    strange = sorted(body.keys() - _KNOWN)
    if strange:
        return failure(400, f"Unrecognized request argument supplied: {strange[0]}")
    if len(body.get("stop") or ()) > _MOST_STOPS:
        message = f"Invalid 'stop': array too long. Expected an array with maximum length {_MOST_STOPS}."
        return failure(400, message, "array_above_max_length", "stop")
    if "top_logprobs" in body and not body.get("logprobs"):
        return failure(400, "logprobs must be true to use top_logprobs", None, "top_logprobs")
    return None


def _handler(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.looks += 1
            key = self.headers["authorization"].removeprefix("Bearer ")
            denied = server.keys is not None and key not in server.keys
            self._send(failure(401, "Incorrect API key provided.", "invalid_api_key") if denied else server.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen = Seen(self.path, self.headers["authorization"].removeprefix("Bearer "), body)
            server.seen.append(seen)
            self._send(server.reply(seen))

        def _send(self, reply: Reply) -> None:
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            kind = "application/json" if reply.events is None else "text/event-stream"
            for name, value in ({"content-type": kind} | reply.headers).items():
                self.send_header(name, value)
            self.send_header(*(("content-length", str(len(data))) if reply.events is None else ("transfer-encoding", "chunked")))
            self.end_headers()
            for event in reply.events or ():
                line = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            if reply.then == "end":
                self.wfile.write(data if reply.events is None else b"0\r\n\r\n")
                return
            self.close_connection = True
            server.arrived.set()
            if reply.then == "silence" and self.connection.recv(1) == b"":
                server.hung_up.set()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
            pass

    return Handler


@asynccontextmanager
async def serving() -> AsyncIterator[OpenAIServer]:
    """A server while it is needed."""
    server = OpenAIServer()
    try:
        yield server
    finally:
        for engine in server.engines:
            await engine.close()
        server.close()


def engine_of(server: OpenAIServer, **values: Any) -> OpenAIEngine:
    """An engine that asks it, once each time unless it is told otherwise."""
    engine = OpenAIEngine("baseline", OpenAISettings(**({"engine": "openai", "url": server.url, "model": MODEL, "retries": 0} | values)))
    server.engines.append(engine)
    return engine


async def ask(engine: OpenAIEngine, prompt: Prompt = QUESTION, *, stream: bool = False, **decoding: Any) -> tuple[list[str], Generation]:
    """The pieces and the whole."""
    settings = Decoding(**decoding)
    work = Work(await engine.encode(prompt), settings, settings.max_tokens or 256, stream=stream)
    made = [piece async for piece in engine.generate(work)]
    assert isinstance(made[-1], Generation)
    return [piece for piece in made if isinstance(piece, str)], made[-1]


async def happened(event: threading.Event) -> bool:
    """Whether it did, within 30 s."""
    return await asyncio.to_thread(event.wait, 30)
