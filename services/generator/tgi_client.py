"""One process of TGI by HTTP (client: huggingface_hub): what is asked, what it refuses, and when it may be another one. Knows no model.

The library keeps what a stream holds until its client is closed, sends the machine's own Hugging Face token where it is given none, repeats
a request without the settings that a server names in a refusal, and shows no headers. So each request has a client of its own over
connections that are kept here, and refusals are raised before the library sees them.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any

import httpx2
from huggingface_hub import AsyncInferenceClient, TextGenerationOutput, TextGenerationStreamOutput
from huggingface_hub.errors import (
    GenerationError,
    IncompleteGenerationError,
    InferenceTimeoutError,
    OverloadedError,
    TextGenerationError,
    ValidationError,
)

from services.common.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted, TunetrialError
from services.generator.engine_settings import TgiSettings
from services.generator.replicas import Broken, NotReached, Slow, away

_TOKENS_S = 10.0
_DENIED = (401, 403)
_BUSY, _INVALID, _TOO_LARGE, _FAILED = 429, 422, 413, 424
_EVENTS: Mapping[type[TextGenerationError], int] = {
    ValidationError: _INVALID,
    OverloadedError: _BUSY,
    GenerationError: _FAILED,
    IncompleteGenerationError: 500,
}
"""Status that TGI would have given, had it not begun with 200."""
_UNSUPPORTED = (
    (re.compile(r"`top_n_tokens`"), "decoding.top_log_probabilities"),
    (re.compile(r"`stop`"), "decoding.stop"),
    (re.compile(r"grammar is not|regex from schema"), "decoding.constraint"),
)
_TOO_LONG = re.compile(r"`inputs` (tokens \+|must have less)")
_BREAKS = {"\u0085".encode(): b"\\u0085", "\u2028".encode(): b"\\u2028", "\u2029".encode(): b"\\u2029"}


class TgiClient:
    """Connections to one process."""

    def __init__(self, name: str, url: str, settings: TgiSettings) -> None:
        """`name` is that of the base, for errors. Contacts nothing. Raises ValueError when the API key is not to be had."""
        self._name, self._url = name, url
        key = settings.api_key()
        self._authorization = f"Bearer {key.get_secret_value()}" if key is not None else None
        self._timeout = httpx2.Timeout(settings.timeout_s, connect=settings.connect_timeout_s)
        # Kept for good: who answers over an old connection is the process that answered before.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=None)
        self._connections = httpx2.AsyncHTTPTransport(verify=settings.trust(), trust_env=False, limits=limits)
        self.opened = 0
        """Connections that were opened so far: with a new one, the process may be a new one."""
        self.lost = 0
        """Times that the process was away."""

    async def info(self, timeout_s: float) -> dict[str, Any]:
        """What TGI says of itself, by two requests of so many seconds at most.

        Raises Unavailable unless it is healthy, FailedPrecondition ENGINE_LACKS_MODEL when it is no TGI.
        """
        with self._explained():
            async with self._http() as http:
                await http.get(f"{self._url}/health", timeout=timeout_s)
                found = (await http.get(f"{self._url}/info", timeout=timeout_s)).json()
        if not isinstance(found, dict) or not found.get("model_id") or not isinstance(found.get("max_total_tokens"), int):
            raise FailedPrecondition("ENGINE_LACKS_MODEL", "{url} is no TGI: mend TUNETRIAL_ENGINES", url=self._url)
        return found

    async def tokens(self, text: str) -> tuple[int, ...]:
        """The tokens that TGI makes of a text, special ones added."""
        with self._explained():
            async with self._http() as http:
                found = (await http.post(f"{self._url}/tokenize", json={"inputs": text}, timeout=_TOKENS_S)).json()
        return tuple(int(token["id"]) for token in found)

    async def whole(self, text: str, parameters: Mapping[str, Any]) -> tuple[TextGenerationOutput, int]:
        """An answer in one piece, and how many tokens TGI made of the text."""
        counted = -1

        async def count(response: httpx2.Response) -> None:
            nonlocal counted
            counted = int(response.headers.get("x-prompt-tokens", -1))

        with self._explained():
            async with self._http(count) as http, _Call(f"{self._url}/generate", http, self._timeout) as call:
                generate: Any = call.text_generation
                return await generate(text, details=True, **parameters), counted

    async def stream(self, text: str, parameters: Mapping[str, Any]) -> AsyncGenerator[TextGenerationStreamOutput, None]:
        """An answer token by token; closing it closes the connection, and TGI ends its work then."""

        async def mend(response: httpx2.Response) -> None:
            response.stream = _OneLine(response.stream)

        with self._explained():
            async with self._http(mend) as http, _Call(f"{self._url}/generate_stream", http, self._timeout) as call:
                generate: Any = call.text_generation
                async for part in await generate(text, details=True, stream=True, **parameters):
                    if part.token is None:  # the library makes a value of anything
                        raise ValueError("an event without a token")
                    yield part

    async def close(self) -> None:
        """Closes the connections."""
        await self._connections.aclose()

    @contextlib.asynccontextmanager
    async def _http(self, *seen: Any) -> AsyncIterator[httpx2.AsyncClient]:
        # Not closed: its connections are everybody's.
        yield httpx2.AsyncClient(
            transport=self._connections,
            trust_env=False,
            timeout=self._timeout,
            auth=self._sign,
            event_hooks={"request": [self._watch], "response": [self._refuse, *seen]},
        )

    def _sign(self, request: httpx2.Request) -> httpx2.Request:
        request.headers.pop("authorization", None)
        if self._authorization is not None:
            request.headers["authorization"] = self._authorization
        return request

    async def _watch(self, request: httpx2.Request) -> None:
        request.extensions["trace"] = self._trace

    async def _trace(self, event: str, _info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self.opened += 1

    async def _refuse(self, response: httpx2.Response) -> None:
        if not response.is_success:
            await response.aread()
            raise _refusal(self._name, response.status_code, _said(response))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Failures as errors of the domain."""
        try:
            yield
        except (httpx2.TransportError, InferenceTimeoutError) as error:
            cause = error.__cause__ if isinstance(error, InferenceTimeoutError) else error
            if isinstance(cause, httpx2.ReadTimeout):
                raise away(self._name, "it did not answer in time", Slow) from error
            self.lost += 1
            arrived = not isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
            raise away(self._name, f"{type(cause).__name__}: {cause}", Broken if arrived else NotReached) from error
        except TextGenerationError as error:  # came as an event of a stream
            status = next((status for kind, status in _EVENTS.items() if isinstance(error, kind)), 500)
            raise _refusal(self._name, status, _short(str(error))) from error
        except (ValueError, TypeError, LookupError) as error:  # of the library, which reads what was sent
            message = "the engine of model {name} answered what TGI does not: {error}"
            raise Internal("ENGINE_ANSWER_INVALID", message, name=self._name, error=_short(f"{type(error).__name__}: {error}")) from error


class _Call(AsyncInferenceClient):
    """One request over connections that are another's; all that the library opened for it ends with it."""

    def __init__(self, url: str, http: httpx2.AsyncClient, timeout: Any) -> None:
        super().__init__(url, token="none", timeout=timeout)  # noqa: S106  any, so that none is looked for; never sent
        self._http = http

    async def _get_async_client(self) -> httpx2.AsyncClient:
        return self._http


class _OneLine(httpx2.AsyncByteStream):
    """Events whose JSON is free of characters at which Python ends a line, as the library reads lines; TGI writes them as they are."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        async for chunk in self._stream:
            data = rest + chunk
            for raw, escaped in _BREAKS.items():
                data = data.replace(raw, escaped)
            cut = next((length for length in (2, 1) if any(data.endswith(raw[:length]) for raw in _BREAKS if len(raw) > length)), 0)
            data, rest = data[: len(data) - cut], data[len(data) - cut :]
            if data:
                yield data
        if rest:
            yield rest

    async def aclose(self) -> None:
        await self._stream.aclose()


def _refusal(name: str, status: int, why: str) -> TunetrialError:
    about = {"name": name, "status": status, "why": why}
    message = "the engine of model {name} refuses the request (status {status}): {why}"
    found: TunetrialError = FailedPrecondition("ENGINE_LACKS_MODEL", message, **about)
    if status in _DENIED:
        message = "the engine of model {name} does not accept the service's credentials (status {status}): mend its API key"
        found = FailedPrecondition("ENGINE_DENIED", message, name=name, status=status)
    elif status == _BUSY:
        found = ResourceExhausted("ENGINE_BUSY", "the engine of model {name} has too much to do: {why}", **about, retry_after_s=1)
    elif status == _FAILED or status >= 500:
        found = away(name, f"status {status}: {why}")
    elif status == _TOO_LARGE or _TOO_LONG.search(why):
        message = "the prompt and the answer are longer than model {name} takes: {why}"
        found = InvalidArgument("PROMPT_TOO_LONG", message, **about, field="prompt")
    elif status == _INVALID:
        field = next((field for pattern, field in _UNSUPPORTED if pattern.search(why)), None)
        found = InvalidArgument("ENGINE_REFUSED", message, **about)
        if field is not None:
            found = FailedPrecondition(
                "DECODING_UNSUPPORTED", "the engine of model {name} cannot keep {field}: {why}", **about, field=field
            )
    return found


def _said(response: httpx2.Response) -> str:
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    return _short(str(body["error"]) if isinstance(body, dict) and "error" in body else response.text or response.reason_phrase)


def _short(text: str) -> str:
    return " ".join(text.split())[:500]
