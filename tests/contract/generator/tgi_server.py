"""A server that answers as Text Generation Inference 3.3.7 does, its traps included; texts and log-probabilities are those of a real model.

Left out: grammars are checked and not obeyed, and log-probabilities are never those after temperature.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from generator_parts import CONTEXT, until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from services.generator.domain import Decoding, Encoded, Generation, Work
from services.generator.transformers_engine import TransformersEngine

_STATUS = {"validation": 422, "generation": 424, "overloaded": 429, "incomplete_generation": 500, "incomplete_generation_stream": 500}
_PAYLOAD_LIMIT = 2_000_000


class Refused(Exception):
    """An error of TGI: its type and its text."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.body = {"error": text, "error_type": kind}


@dataclass
class Start:
    """How the process is started. `adapters`: LORA_ADAPTERS by name, as the model behind knows them; None: listed, changes nothing."""

    adapters: Mapping[str, str | None] = field(default_factory=dict)
    prefill_logprobs: bool = True
    api_key: str | None = None
    model_id: str = "/models/tiny"
    max_concurrent_requests: int = 128
    max_top_n_tokens: int = 5
    top_tokens: bool = True
    max_total_tokens: int = CONTEXT
    grammar: bool = True
    truncates: bool = False
    """Takes the last half of every prompt: what a proxy or another version might do."""
    adds: str = ""
    """Written into the text of every token."""


class TgiServer:
    """One process: can be stopped, and started anew on the same port."""

    def __init__(self, engine: TransformersEngine, start: Start) -> None:
        self._engine, self.start = engine, start
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.received: list[tuple[str, dict[str, Any]]] = []
        """Path and body of every request to generate, in order."""
        self.headers: list[dict[str, str]] = []
        self.peers: set[tuple[str, int]] = set()
        """Connections, by their other ends."""
        self.running = 0
        self.left = 0
        """Requests whose caller went before the end."""
        self.gate = asyncio.Event()
        """Closed, it holds a stream after its first token, and a whole answer before its end."""
        self.gate.set()
        self.fails: list[tuple[str, int]] = []
        """Kinds of errors for the next requests, each after so many tokens."""
        self.healthy = True
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def generations(self) -> list[dict[str, Any]]:
        """The parameters of every request to generate that is no proof, in order."""
        bodies = [body for path, body in self.received if path.startswith("/generate")]
        return [body["parameters"] for body in bodies if not body["parameters"].get("decoder_input_details")]

    async def open(self, start: Start | None = None) -> None:
        self.start = start or self.start
        routes = [
            Route("/health", self._health),
            Route("/info", self._info),
            Route("/v1/models", self._models),
            *(
                Route(path, self._guarded(answer), methods=["POST"])
                for path, answer in (("/generate", self._generate), ("/generate_stream", self._stream), ("/tokenize", self._tokenize))
            ),
        ]
        config = uvicorn.Config(Starlette(routes=routes), port=self.port, lifespan="off", log_level="error", timeout_keep_alive=3600)
        server = self._server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # they are the tests'
        self._task = asyncio.create_task(server._serve())
        await until(lambda: server.started)

    async def stop(self) -> None:
        """Ends at once, as a killed process does."""
        if self._server is None or self._task is None:
            return
        connections = self._server.server_state.connections
        self._server.should_exit = self._server.force_exit = True
        while not self._task.done() or connections:  # some come while it ends
            for connection in list(connections):
                connection.transport.abort()  # type: ignore[union-attr]
            await asyncio.sleep(0.005)
        await self._task
        self._server = None

    async def restart(self, start: Start) -> None:
        await self.stop()
        await self.open(start)

    # What it answers.

    def _guarded(self, answer: Any) -> Any:
        async def guarded(request: Request) -> Response:
            self.peers.add(tuple(request.client or ("", 0)))
            self.headers.append(dict(request.headers))
            expected = f"Bearer {self.start.api_key}".lower()
            if self.start.api_key is not None and request.headers.get("authorization", "").lower() != expected:
                return Response(status_code=401)
            content = await request.body()
            if len(content) > _PAYLOAD_LIMIT:
                return Response("length limit exceeded", status_code=413)
            body = json.loads(content)
            self.received.append((request.url.path, body))
            found: Response = await answer(request, body)
            return found

        return guarded

    async def _health(self, request: Request) -> Response:
        self.peers.add(tuple(request.client or ("", 0)))
        return Response() if self.healthy else JSONResponse({"error": "unhealthy", "error_type": "healthcheck"}, 503)

    async def _info(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "model_id": self.start.model_id,
                "model_sha": None,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": self.start.max_concurrent_requests,
                "max_best_of": 2,
                "max_stop_sequences": 4,
                "max_input_tokens": self.start.max_total_tokens - 1,
                "max_total_tokens": self.start.max_total_tokens,
                "validation_workers": 2,
                "max_client_batch_size": 4,
                "router": "text-generation-router",
                "version": "3.3.7",
                "sha": None,
                "docker_label": None,
            }
        )

    async def _models(self, _request: Request) -> Response:
        model = self.start.model_id
        return JSONResponse({"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": model}]})

    async def _tokenize(self, _request: Request, body: dict[str, Any]) -> Response:
        ids = self._ids(body["inputs"])
        return JSONResponse([{"id": token, "text": self._spell(token), "start": 0, "stop": 0} for token in ids])

    async def _generate(self, request: Request, body: dict[str, Any]) -> Response:
        answer = asyncio.create_task(self._whole(body))
        leaving = asyncio.create_task(_left(request))
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            self.left += 1
            answer.cancel()
            await asyncio.wait((answer,))
            return Response()
        leaving.cancel()
        try:
            text, details, prompt_tokens = answer.result()
        except Refused as refused:
            return JSONResponse(refused.body, _STATUS[refused.kind])
        asked = body.get("parameters") or {}
        full = (body["inputs"] if asked.get("return_full_text") else "") + text
        found = {"generated_text": full, "details": details} if asked.get("details") else {"generated_text": full}
        headers = {"x-compute-type": "gpu+optimized", "x-prompt-tokens": str(prompt_tokens)}
        return JSONResponse(found, headers=headers | {"x-generated-tokens": str(details["generated_tokens"])})

    async def _whole(self, body: dict[str, Any]) -> tuple[str, dict[str, Any], int]:
        with self._permit():
            return await self._answer(body, stream=False)

    async def _stream(self, _request: Request, body: dict[str, Any]) -> Response:
        return StreamingResponse(self._events(body), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        ended = False
        fails = self.fails[0] if self.fails else None
        try:
            with self._permit():
                text, details, prompt_tokens = await self._answer(body, stream=True)
                tokens = details["tokens"]
                for place, token in enumerate(tokens):
                    if fails is not None and fails[1] == place:
                        raise Refused(fails[0], f"Request failed during generation: {fails[0]}")
                    last = place == len(tokens) - 1
                    event = {"index": place + 1, "token": token, "generated_text": text if last else None, "details": None}
                    if last:
                        known = ("finish_reason", "generated_tokens", "seed")
                        event["details"] = {**{name: details[name] for name in known}, "input_length": prompt_tokens}
                    if "top_tokens" in details:
                        event["top_tokens"] = details["top_tokens"][place]
                    yield ":\n\n" * (place == 0) + f"data:{json.dumps(event, ensure_ascii=False)}\n\n"
                    await self.gate.wait()
                    await asyncio.sleep(0)
            ended = True
        except Refused as refused:
            ended = True
            yield f"data:{json.dumps(refused.body)}\n\n"
        finally:
            self.left += not ended

    async def _answer(self, body: dict[str, Any], *, stream: bool) -> tuple[str, dict[str, Any], int]:
        fails = self.fails.pop(0) if self.fails else None
        if fails is not None and (fails[1] == 0 or not stream):
            raise Refused(fails[0], f"Request failed during generation: {fails[0]}")
        # Without any parameters it samples; with some, even none of them set, it does not.
        asked: dict[str, Any] = body.get("parameters", {"do_sample": True})
        self._validate(asked, stream=stream)
        ids = self._ids(body["inputs"])
        if self.start.truncates:
            ids = ids[len(ids) // 2 :]
        most = asked.get("max_new_tokens") or 100
        if len(ids) + most > self.start.max_total_tokens:
            raise _invalid(
                f"`inputs` tokens + `max_new_tokens` must be <= {self.start.max_total_tokens}. Given: {len(ids)} `inputs` tokens and "
                f"{most} `max_new_tokens`"
            )
        # An adapter that is not known is the base.
        adapter = self.start.adapters.get(asked.get("adapter_id") or "")
        details = await self._details(asked, ids, most, adapter)
        if not stream:
            await self.gate.wait()
        return self._text([token["id"] for token in details["tokens"]]), details, len(ids)

    @contextlib.contextmanager
    def _permit(self) -> Iterator[None]:
        if self.running >= self.start.max_concurrent_requests:
            raise Refused("overloaded", "Model is overloaded")
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    async def _details(self, asked: dict[str, Any], ids: list[int], most: int, adapter: str | None) -> dict[str, Any]:
        samples = asked.get("do_sample") or any(asked.get(name) for name in ("temperature", "top_k", "top_p"))
        seed = None
        if samples:
            seed = asked["seed"] if asked.get("seed") is not None else secrets.randbits(63)
        top = asked.get("top_n_tokens") or 0
        temperature = asked.get("temperature") or 1.0 if samples else None
        decoding = Decoding(most, temperature, asked.get("top_p"), asked.get("top_k"), seed, top_log_probabilities=top)
        # The text has begun with the special token when it is one that our own prompt has; given as tokens, nothing is added.
        whole = None
        async for piece in self._engine.generate(Work(Encoded("", tuple(ids)), decoding, most, adapter)):
            whole = piece
        assert isinstance(whole, Generation)
        tokens, output, reason = [], "", "length"
        for count, token in enumerate(whole.tokens, 1):
            tokens.append(token)
            output += token.text
            if count >= most:
                break
            if token.id == self._library.eos_token_id:
                reason = "eos_token"
                break
            if any(re.search(f"{re.escape(stop)}$", output) for stop in asked.get("stop") or ()):
                reason = "stop_sequence"
                break
        details: dict[str, Any] = {
            "finish_reason": reason,
            "generated_tokens": len(tokens),
            "seed": seed,
            "prefill": await self._prefill(ids, adapter) if asked.get("decoder_input_details") else [],
            "tokens": [self._token(token.id, token.text, token.log_probability) for token in tokens],
        }
        if top and self.start.top_tokens:
            details["top_tokens"] = [[self._token(one.id, one.text, one.log_probability) for one in token.top] for token in tokens]
        return details

    async def _prefill(self, ids: list[int], adapter: str | None) -> list[dict[str, Any]]:
        if not self.start.prefill_logprobs:
            return []
        batch = self._engine._shelf.batch
        (found,) = await self._engine._on_model_thread(batch.score, [(adapter, tuple(ids[:1]), tuple(ids[1:]))])
        return [{"id": token, "text": self._spell(token), "logprob": value} for token, value in zip(ids, (None, *found), strict=True)]

    def _validate(self, asked: dict[str, Any], *, stream: bool) -> None:
        temperature, top_k, top_p, stops = asked.get("temperature"), asked.get("top_k"), asked.get("top_p"), asked.get("stop") or ()
        most_top, grammar = self.start.max_top_n_tokens, asked.get("grammar")
        if stream and asked.get("decoder_input_details"):
            raise _invalid("`decoder_input_details` == true is not supported when streaming tokens")
        if temperature is not None and temperature <= 0:
            raise _invalid("`temperature` must be strictly positive")
        if top_p is not None and not 0 < top_p < 1:
            raise _invalid("`top_p` must be > 0.0 and < 1.0")
        if top_k is not None and top_k <= 0:
            raise _invalid("`top_k` must be strictly positive")
        if len(stops) > 4:
            raise _invalid(f"`stop` supports up to 4 stop sequences. Given: {len(stops)}")
        if (asked.get("top_n_tokens") or 0) > most_top:
            raise _invalid(f"`top_n_tokens` must be >= 0 and <= {most_top}. Given: {asked['top_n_tokens']}")
        if grammar is not None and not self.start.grammar:
            raise _invalid("grammar is not supported")
        if grammar is not None and grammar["type"] == "json":
            schema = json.loads(grammar["value"]) if isinstance(grammar["value"], str) else grammar["value"]
            if "properties" not in schema:
                raise _invalid("grammar is not valid: Grammar must have a 'properties' field")

    @property
    def _library(self) -> Any:
        return self._engine._tokenizer.library

    def _ids(self, text: str) -> list[int]:
        return list(self._library(text)["input_ids"])

    def _spell(self, token: int) -> str:
        return str(self._library.decode([token]))

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._library.decode(list(ids), skip_special_tokens=True))

    def _token(self, token: int, text: str, log_probability: float) -> dict[str, Any]:
        special = token in self._library.all_special_ids
        return {"id": token, "text": text + self.start.adds, "logprob": log_probability, "special": special}


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _invalid(text: str) -> Refused:
    return Refused("validation", f"Input validation error: {text}")


@contextlib.asynccontextmanager
async def serving(engine: TransformersEngine, *starts: Start) -> AsyncIterator[tuple[TgiServer, ...]]:
    """Servers over one model, one for each start."""
    servers = tuple(TgiServer(engine, start) for start in starts)
    for server in servers:
        await server.open()
    try:
        yield servers
    finally:
        for server in servers:
            await server.stop()
