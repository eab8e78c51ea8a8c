"""A base model and its adapters on vLLM, in one process or several (client: openai). Knows no wire and no proof.

Prompts go as tokens, made here by the base's own tokenizer: what is counted and what is proven is what the model sees. vLLM's own list of
models is the truth about which adapters a replica has. A name that a replica does not have is refused by vLLM, never answered by the base.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import openai
import structlog

from services.common.errors import FailedPrecondition, TunetrialError
from services.generator.adapter_config import check_plain_lora
from services.generator.adapter_share import AdapterShare
from services.generator.domain import Base, Canary, ConstraintKind, Encoded, Generation, Prompt, Replica, Speaker, Work
from services.generator.engine_settings import VllmSettings
from services.generator.model_files import base_sha256
from services.generator.openai_errors import explained, said
from services.generator.replicas import Remote, Remotes, away
from services.generator.text_thread import TextThread
from services.generator.vllm_answer import Answer

_log = structlog.get_logger()

_STARTED = re.compile(rb"^process_start_time_seconds (\S+)", re.MULTILINE)
_CONSTRAINTS = {ConstraintKind.JSON_SCHEMA: "json", ConstraintKind.REGEX: "regex", ConstraintKind.CHOICE: "choice"}
_COMPLETIONS = "/completions"
"""Asked by `post`: the client's `completions.create` looks at each token of the prompt, and makes a typed object of each piece, which
together took half of the processor time of an answer (benchmarks/RESULTS.md)."""
_LOAD_S = 300.0
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
"""vLLM closes connections that lay idle for 5 s; one that closes while a request is on its way would lose it."""


class VllmEngine:
    """One base, on replicas that all serve the same adapters."""

    def __init__(self, name: str, settings: VllmSettings) -> None:
        """Contacts nothing. Raises ValueError when an API key is not to be had."""
        self._name, self._settings = name, settings
        self._served = settings.model or name
        key = settings.api_key()
        self._remotes = Remotes(
            name,
            {
                url.rstrip("/"): openai.AsyncOpenAI(
                    base_url=f"{url.rstrip('/')}/v1",
                    api_key=key.get_secret_value() if key is not None else "none",
                    timeout=openai.Timeout(settings.timeout_s, connect=settings.connect_timeout_s),
                    max_retries=0,  # a request that fails goes to another replica
                    http_client=openai.DefaultAsyncHttpxClient(verify=settings.trust(), limits=_LIMITS),
                )
                for url in settings.urls
            },
        )
        self._share = AdapterShare(settings.adapter_folder, settings.adapter_folder_on_engine)
        self._paths: dict[str, str] = {}
        """Adapters and where they were loaded from; another path under the same name is another adapter."""
        self._salts: dict[str, str] = {}
        """Adapters and the hash of their files: vLLM knows prefixes by the adapter's name and path alone."""
        self._text = TextThread(name, settings.source)
        self._spell: Callable[[int], str] = str
        self._weights_sha256 = ""
        """What `source` holds; that vLLM serves the same shows in the proof of each adapter."""
        self._base: Base | None = None

    @property
    def base(self) -> Base:
        """The base model. Raises Unavailable ENGINE_UNAVAILABLE until a replica was seen."""
        if self._base is None:
            raise away(self._name, "it was not there yet")
        return self._base

    @property
    def capacity(self) -> int:
        """Requests at once, over all replicas."""
        return self._settings.concurrency

    def epoch(self, replica: str) -> int:
        """Never changes: another process has another identity, and lacks the adapters that were loaded into this one, as vLLM says."""
        return 0

    async def prepare(self) -> None:
        """Reads the tokenizer and looks for the replicas, which may come later. Raises ValueError when there is no tokenizer."""
        tokenizer, folder = await self._text.open()
        self._spell = tokenizer.speller()
        self._weights_sha256 = await asyncio.to_thread(base_sha256, folder)
        try:
            await self.replicas()
        except TunetrialError as error:
            _log.warning("an engine is away for now", model=self._name, message=error.message)

    async def replicas(self) -> tuple[Replica, ...]:
        """What can be reached now, by address and start of the process."""
        return await self._remotes.look(self._look)

    async def _look(self, remote: Remote[openai.AsyncOpenAI]) -> Replica:
        with explained(self._name):
            models = (await remote.client.models.list(timeout=remote.look_s)).data
            metrics = await remote.client.get(f"{remote.url}/metrics", cast_to=httpx2.Response, options={"timeout": remote.look_s})
        own: dict[str, Any] = {model.id: model.model_extra or {} for model in models}
        if self._served not in own or own[self._served].get("parent"):
            message = "{url} serves {served}, and not model {name}: mend TUNETRIAL_ENGINES or start vLLM with --served-model-name"
            served = ", ".join(own)
            raise FailedPrecondition("ENGINE_LACKS_MODEL", message, url=remote.url, served=served, name=self._served)
        if self._base is None:
            context = int(own[self._served].get("max_model_len") or 0)
            self._base = Base(self._name, self._settings.source, self._weights_sha256, context, datetime.now(UTC), "vllm")
        started = _STARTED.search(metrics.content)
        if started is None:
            message = "vLLM at {url} does not say when it was started (/metrics, process_start_time_seconds): a new process would go unseen"
            raise FailedPrecondition("ENGINE_UNSUPPORTED", message, url=remote.url)
        adapters = {name: model.get("root") for name, model in own.items() if model.get("parent") == self._served}
        ours = frozenset(name for name, root in adapters.items() if root == self._paths.get(name))
        return Replica(f"{remote.url} {started[1].decode()}", ours)

    async def encode(self, prompt: Prompt) -> Encoded:
        """Tokens of a prompt."""
        return await self._text.run(lambda tokenizer: tokenizer.encode(prompt))

    async def generate(self, work: Work) -> AsyncGenerator[Speaker | str | Generation, None]:
        """Pieces of text if wanted, then the whole; a replica that cannot be reached is left for another one, until text has come."""
        started, decoding = time.perf_counter(), work.decoding
        seed = None
        if not decoding.greedy:
            seed = secrets.randbits(63) if decoding.seed is None else decoding.seed
        request = self._request(work, seed)

        def begin(remote: Remote[openai.AsyncOpenAI]) -> tuple[Answer, AsyncGenerator[str, None]]:
            answer = Answer(self._name, self._spell, wanted=decoding.top_log_probabilities)
            return answer, self._ask(remote, request, answer, stream=work.stream)

        async with contextlib.aclosing(self._remotes.ask(work.among, begin)) as parts:
            async for part in parts:
                yield part if isinstance(part, Speaker | str) else part.generation(work, (time.perf_counter() - started) * 1e3, seed)

    async def _ask(
        self, remote: Remote[openai.AsyncOpenAI], request: dict[str, Any], answer: Answer, *, stream: bool
    ) -> AsyncGenerator[str, None]:
        with explained(self._name):
            if not stream:
                answer.take(await _complete(remote, request), request["model"])
            else:
                body = request | {"stream": True, "stream_options": {"include_usage": True}}
                chunks = await remote.client.post(_COMPLETIONS, body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[Any])
                async with chunks:
                    async for chunk in chunks:
                        if piece := answer.take(chunk, request["model"]):
                            yield piece
        answer.check_ended()

    def _request(self, work: Work, seed: int | None) -> dict[str, Any]:
        decoding = work.decoding
        request = self._of(work.adapter) | {
            "prompt": work.encoded.tokens,
            "max_tokens": work.max_tokens,
            # All of sampling is said: vLLM takes what is not from the base's generation_config.json.
            "temperature": decoding.temperature or 0.0,
            "top_p": decoding.top_p if decoding.top_p is not None else 1.0,
            "top_k": decoding.top_k or 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed,
            "stop": decoding.stop or None,
            "logprobs": decoding.top_log_probabilities,
        }
        if decoding.constraint is not None:
            values = decoding.constraint.values
            several = decoding.constraint.kind is ConstraintKind.CHOICE
            request["structured_outputs"] = {_CONSTRAINTS[decoding.constraint.kind]: values if several else values[0]}
        return request

    def _of(self, adapter: str | None) -> dict[str, Any]:
        """What every request to a model has."""
        salt = {"cache_salt": self._salts[adapter]} if adapter in self._salts else {}
        return {"model": adapter or self._served, "return_tokens_as_token_ids": True, **salt}

    async def load_adapter(self, adapter: str, folder: Path, among: frozenset[str] = frozenset()) -> None:
        """Puts an adapter into every replica or into none; with `among` into those of these identities."""
        await asyncio.to_thread(check_plain_lora, folder, "vLLM")
        path, digest = await asyncio.to_thread(self._share.bring, folder)
        self._paths[adapter], self._salts[adapter] = path, digest
        chosen = [remote for remote in self._remotes.all if not among or remote.identity in among]
        done = await asyncio.gather(*(self._load(remote, adapter, path) for remote in chosen), return_exceptions=True)
        for remote, one in zip(chosen, done, strict=True):
            if one is None:
                remote.loaded(adapter)
        failures = [one for one in done if isinstance(one, BaseException)]
        if failures:
            await self._unload([remote for remote, one in zip(chosen, done, strict=True) if one is None], adapter)
            raise failures[0]

    async def _load(self, remote: Remote[openai.AsyncOpenAI], adapter: str, path: str) -> None:
        # Not by vLLM's `load_inplace`: with it, 0.32 reads the files again at every step.
        await self._unload([remote], adapter)
        body = {"lora_name": adapter, "lora_path": path}
        with explained(self._name):
            try:
                await remote.client.post("/load_lora_adapter", body=body, cast_to=httpx2.Response, options={"timeout": _LOAD_S})
            except (openai.BadRequestError, openai.InternalServerError) as error:
                message = "vLLM at {url} refuses adapter {adapter}: {why}"
                raise FailedPrecondition("ADAPTER_REFUSED", message, url=remote.url, adapter=adapter, why=said(error)) from error
            except openai.NotFoundError as error:
                message = (
                    "vLLM at {url} takes no adapters ({why}): start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, "
                    "and let it see {path}"
                )
                raise FailedPrecondition("ADAPTER_REFUSED", message, url=remote.url, path=path, why=said(error)) from error

    async def unload_adapter(self, adapter: str) -> None:
        """Takes an adapter out of every replica that can be reached; one that is away comes back without it."""
        await self._unload([remote for remote in self._remotes.all if remote.identity], adapter)

    async def _unload(self, remotes: Sequence[Remote[openai.AsyncOpenAI]], adapter: str) -> None:
        async def one(remote: Remote[openai.AsyncOpenAI]) -> None:
            try:
                await remote.client.post("/unload_lora_adapter", body={"lora_name": adapter}, cast_to=httpx2.Response)
            except openai.NotFoundError:
                pass  # it is not in
            except openai.APIError as error:
                _log.warning("an adapter could not be taken out", adapter=adapter, url=remote.url, error=said(error))

        await asyncio.gather(*(one(remote) for remote in remotes))

    async def score(self, rows: Sequence[tuple[str | None, Canary]], replica: str) -> tuple[tuple[float, ...], ...]:
        """Log-probabilities of the completions' tokens; all are asked for at once, so that vLLM mixes the rows in its batches.

        Each token is a request of its own that may take that token only and says how probable it was before it was forced. (vLLM's
        `prompt_logprobs` would do it in one request, but with adapters in the batch it fails and takes the engine with it.)
        """
        remote = self._remotes.named(replica)
        encoded = await self._text.run(lambda tokenizer: [tokenizer.encode_canary(canary) for _, canary in rows])
        return tuple(
            await asyncio.gather(
                *(self._score(remote, adapter, *texts) for (adapter, _), texts in zip(rows, encoded, strict=True)),
            )
        )

    async def _score(
        self, remote: Remote[openai.AsyncOpenAI], adapter: str | None, prompt: tuple[int, ...], completion: tuple[int, ...]
    ) -> tuple[float, ...]:
        model = self._of(adapter) | {"max_tokens": 1, "temperature": 0.0, "logprobs": 0}

        async def one(place: int) -> float:
            token = completion[place]
            with explained(self._name):
                scored = await _complete(remote, model | {"prompt": (*prompt, *completion[:place]), "allowed_token_ids": [token]})
            found = scored["choices"][0].get("logprobs") or {}
            if scored["model"] != model["model"] or found.get("tokens") != [f"token_id:{token}"] or not found.get("token_logprobs"):
                message = "vLLM at {url} gives no log-probability of a token that is asked for: adapters cannot be proven there"
                raise FailedPrecondition("ENGINE_CANNOT_SCORE", message, url=remote.url)
            value = found["token_logprobs"][0]
            return math.nan if value is None else float(value)

        return tuple(await asyncio.gather(*(one(place) for place in range(len(completion)))))

    async def close(self) -> None:
        """Closes the connections."""
        self._text.close()
        for remote in self._remotes.all:
            await remote.client.close()


async def _complete(remote: Remote[openai.AsyncOpenAI], request: dict[str, Any]) -> Any:
    return await remote.client.post(_COMPLETIONS, body=request, cast_to=object)
