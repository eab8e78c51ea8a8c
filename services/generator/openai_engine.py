"""A model of a provider, by the OpenAI protocol, and models that the provider fine-tuned from it (client: openai).

Knows no wire and no tokenizer.

What a model takes is learned from its answers, never from its name: a refusal of `max_tokens` turns it into `max_completion_tokens`, and
seeds, counts of tokens in streams, and a temperature or nucleus of 1 (which is what the protocol says without them) are left out once they
were refused, for as long as the process lives. All other settings are kept or refused. A provider that takes a setting and does nothing
with it cannot be told from one that keeps it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import openai
import structlog

from services.common.errors import FailedPrecondition, InvalidArgument, TunetrialError, Unavailable
from services.generator.domain import Base, Canary, ConstraintKind, Encoded, Generation, Prompt, Replica, Work
from services.generator.engine_settings import OpenAISettings
from services.generator.openai_answer import ProviderAnswer, same_model
from services.generator.openai_errors import SPENT_QUOTA, blamed, explained, said, unsupported

_log = structlog.get_logger()

_LOOK_S = 10.0
_KEPT_S = 15.0
"""The provider counts as there for so long after it answered: health checks do not ask it each time."""
_NO_KEY = "none"
_BUSY = 429
# Integers above 2**53 do not survive every gateway, and some providers take 32 bits.
_SEED_BITS = 31
_DISPENSABLE = frozenset({"seed", "stream_options"})
_DISPENSABLE_IF_ONE = frozenset({"temperature", "top_p"})
_SERVER, _NOT_MADE = 500, 501
_NO_TEXT_ROUTE = (404, 405, _NOT_MADE)


class OpenAIEngine:
    """One model of one provider."""

    def __init__(self, name: str, settings: OpenAISettings) -> None:
        """Contacts nothing. Raises ValueError when an API key or a CA is not to be had."""
        self._name, self._settings = name, settings
        self._client = openai.AsyncOpenAI(
            base_url=settings.url,
            api_key=_key(settings),
            timeout=openai.Timeout(settings.timeout_s, connect=settings.connect_timeout_s),
            max_retries=settings.retries,
            http_client=openai.DefaultAsyncHttpxClient(
                verify=settings.trust(), event_hooks={"response": [_do_not_repeat_when_quota_is_spent]}
            ),
        )
        self._base = Base(name, f"{settings.url.rstrip('/')}/{settings.model}", "", settings.context_tokens, datetime.now(UTC), "openai")
        self._limit = "max_tokens"
        self._left_out: set[str] = set()
        self._seen = -_KEPT_S
        self._tuned: dict[str, str] = {}
        """Names of fine-tuned models at the provider, by those of their adapters."""
        self._snapshots: dict[str | None, str] = {}

    @property
    def base(self) -> Base:
        """The base model, as the settings say: there is nothing to load."""
        return self._base

    @property
    def capacity(self) -> int:
        """Requests at once."""
        return self._settings.concurrency

    def epoch(self, replica: str) -> int:
        """Never changes: each answer names the model that gave it."""
        return 0

    async def prepare(self) -> None:
        """Looks for the provider, which may come later."""
        try:
            await self.replicas()
        except TunetrialError as error:
            _log.warning("an engine is away for now", model=self._name, message=error.message)

    async def replicas(self) -> tuple[Replica, ...]:
        """The provider, if it is there: it answered within the last 15 s, or its list of models can be had, which costs nothing.

        A provider that has no such list, keeps it from this key (as OpenAI does for restricted ones) or says that it is asked too often is
        there, since it answers. A list without the model proves nothing (gateways list what they deploy under other names): it is logged.
        Raises Unavailable ENGINE_UNAVAILABLE, FailedPrecondition ENGINE_DENIED when the key is not accepted.
        """
        if time.monotonic() - self._seen >= _KEPT_S:
            with explained(self._name):
                await self._look()
            self._seen = time.monotonic()
        return (Replica(self._settings.url, frozenset(self._tuned)),)

    async def _look(self) -> None:
        key = self._client.api_key
        try:
            models = await self._client.with_options(max_retries=0).models.list(timeout=_LOOK_S)
        except openai.AuthenticationError:
            if not await self._has_another_key(key):
                raise
            await self._look()
        except openai.APIStatusError as error:
            if error.status_code >= _SERVER and error.status_code != _NOT_MADE:
                raise
        except json.JSONDecodeError:
            pass  # a page for people: it has no such list
        else:
            names = [getattr(model, "id", "") for model in getattr(models, "data", None) or ()]
            if names and self._settings.model not in names and self._seen < 0:
                _log.warning("the provider does not list a model", model=self._settings.model, url=self._settings.url)

    async def encode(self, prompt: Prompt) -> Encoded:
        """The prompt as it is: only the provider knows its tokens."""
        if not prompt:
            raise InvalidArgument("PROMPT_EMPTY", "the prompt has no text", field="prompt")
        return Encoded(prompt, (), counted=False)

    async def generate(self, work: Work) -> AsyncGenerator[str | Generation, None]:
        """Pieces of text if wanted, then the whole.

        Tried again, by the client, as the settings say; not once text has come, and not when the provider says that there is no money left.
        The seed of the whole is unset where the model takes none. Also raises FailedPrecondition ANSWER_REFUSED, ENGINE_DENIED,
        ENGINE_QUOTA_SPENT, ENGINE_LACKS_MODEL, TEXT_UNSUPPORTED; Internal MODEL_DIFFERS.
        """
        started = time.perf_counter()
        self._check(work)
        answer = ProviderAnswer(self._name, self._settings, work, self._tuned[work.adapter] if work.adapter is not None else "")
        try:
            with explained(self._name):
                reply, seed = await self._ask(work)
                if work.stream and isinstance(reply, openai.AsyncStream):
                    async with reply:
                        async for chunk in reply:
                            if piece := answer.take(chunk):
                                yield piece
                else:
                    answer.take(reply)
            answer.check()
        except Unavailable:
            self._seen = -_KEPT_S
            raise
        self._seen = time.monotonic()
        before = self._snapshots.get(work.adapter, "")
        if before != answer.model:
            tell = _log.warning if before else _log.info
            tell("the provider answers with another snapshot", model=work.adapter or self._name, snapshot=answer.model, before=before)
            self._snapshots[work.adapter] = answer.model
        yield answer.generation((time.perf_counter() - started) * 1e3, seed)

    def _check(self, work: Work) -> None:
        """Refuses what the protocol cannot say, before anything is paid for."""
        decoding = work.decoding
        if decoding.top_k is not None:
            raise unsupported(self._name, "top_k", "the provider's protocol has no such parameter")
        constraint = decoding.constraint
        if constraint is None:
            return
        if constraint.kind is not ConstraintKind.JSON_SCHEMA:
            raise unsupported(self._name, "response_format", f"the provider's protocol knows JSON schemas and not {constraint.kind.value}")
        if isinstance(work.encoded.prompt, str):
            raise unsupported(self._name, "response_format", "the provider's protocol constrains answers to conversations only")

    async def _ask(self, work: Work) -> tuple[Any, int | None]:
        """The provider's reply, or the stream of it, and the seed that was sent. Asked again without what the model does not take."""
        decoding, seed = work.decoding, None
        if not decoding.greedy:
            seed = secrets.randbits(_SEED_BITS) if decoding.seed is None else decoding.seed
        bare = isinstance(work.encoded.prompt, str)
        create: Any = self._client.completions.create if bare else self._client.chat.completions.create
        while True:
            request, key = self._request(work, seed), self._client.api_key
            try:
                return await create(**request), request.get("seed")
            except openai.AuthenticationError:
                if not await self._has_another_key(key):
                    raise
            except openai.APIStatusError as error:
                if bare and _is_for_conversations(error):
                    message = "model {name} takes conversations only: send prompt.conversation and not prompt.text ({why})"
                    raise FailedPrecondition("TEXT_UNSUPPORTED", message, name=self._name, why=said(error), field="prompt.text") from error
                if not self._learn(error, request):
                    raise

    def _request(self, work: Work, seed: int | None) -> dict[str, Any]:
        decoding, prompt = work.decoding, work.encoded.prompt
        wanted = decoding.top_log_probabilities
        model = self._settings.model if work.adapter is None else self._tuned[work.adapter]
        request: dict[str, Any] = {"model": model, "temperature": decoding.temperature or 0.0}
        if isinstance(prompt, str):
            request |= {"prompt": prompt, "max_tokens": work.max_tokens}
            if wanted is not None:
                request["logprobs"] = wanted
        else:
            request |= {"messages": [{"role": turn.role, "content": turn.content} for turn in prompt], self._limit: work.max_tokens}
            if wanted is not None:
                request |= {"logprobs": True, "top_logprobs": wanted}
        # Sampling is asked for in full: some servers have defaults of their own for each model.
        if decoding.top_p is not None or not decoding.greedy:
            request["top_p"] = 1.0 if decoding.top_p is None else decoding.top_p
        if seed is not None:
            request["seed"] = seed
        if decoding.stop:
            request["stop"] = list(decoding.stop)
        if decoding.constraint is not None:
            schema = {"name": "answer", "schema": json.loads(decoding.constraint.values[0]), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if work.stream:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        return {name: value for name, value in request.items() if name not in self._left_out or not _is_dispensable(name, value)}

    def _learn(self, error: openai.APIStatusError, request: dict[str, Any]) -> bool:
        """Whether to ask again, since something can be left out or said otherwise. Raises FailedPrecondition DECODING_UNSUPPORTED."""
        settings = request.keys() - {"model", "messages", "prompt", "stream"}
        named, unknown = blamed(error, settings)
        if unknown and "max_tokens" in named[:1] and "messages" in request:
            self._limit = "max_completion_tokens"
            return True
        if unknown or "stream_options" in named:
            spare = next((name for name in named if _is_dispensable(name, request[name])), None)
            if spare is not None:
                self._left_out.add(spare)
                _log.info("a model does without a parameter", model=self._name, parameter=spare, why=said(error))
                return True
        if unknown and "max_completion_tokens" in named:
            self._limit = "max_tokens"  # not that either: nothing was learned
        if named:
            raise unsupported(self._name, named[0], said(error)) from error
        return False

    async def _has_another_key(self, refused: str) -> bool:
        """Whether there is an API key by now that is not the one refused: key files are written anew when keys change."""
        if self._client.api_key == refused:
            try:
                self._client.api_key = await asyncio.to_thread(_key, self._settings)
            except ValueError as error:
                _log.warning("an API key cannot be read", model=self._name, why=str(error))
        return self._client.api_key != refused

    async def load_adapter(self, adapter: str, folder: Path, among: frozenset[str] = frozenset()) -> None:
        """Raises FailedPrecondition ADAPTERS_UNSUPPORTED."""
        raise self._no_adapters()

    async def load_hosted(self, adapter: str, model: str) -> None:
        """Puts nothing anywhere: the provider has it.

        Raises FailedPrecondition ADAPTER_BASE_MISMATCH or ADAPTER_CHANGES_NOTHING by its name.
        """
        kind, _, rest = model.partition(":")
        base = self._settings.answers_as or self._settings.model
        own = base.split(":")[1] if base.startswith("ft:") else base
        of = rest.partition(":")[0]
        if kind == "ft" and not (same_model(own, of) or same_model(of, own)):
            message = "{model} was fine-tuned from {of}, and base {name} is {base}: load it on its own base"
            raise FailedPrecondition("ADAPTER_BASE_MISMATCH", message, model=model, of=of, name=self._name, base=base)
        if same_model(base, model) or same_model(model, base):
            message = "{model} is base {name} itself: name the model that was fine-tuned from it"
            raise FailedPrecondition("ADAPTER_CHANGES_NOTHING", message, model=model, name=self._name)
        self._tuned[adapter] = model

    async def unload_adapter(self, adapter: str) -> None:
        """Forgets a fine-tuned model; the provider keeps it."""
        self._tuned.pop(adapter, None)
        self._snapshots.pop(adapter, None)

    async def score(self, rows: Sequence[tuple[str | None, Canary]], replica: str) -> tuple[tuple[float, ...], ...]:
        """Raises FailedPrecondition ADAPTERS_UNSUPPORTED."""
        raise self._no_adapters()

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _no_adapters(self) -> FailedPrecondition:
        message = (
            "model {name} is a provider's and takes no adapters but those that the provider fine-tuned (uri openai:<its name there>): "
        )
        message += "load others on a base that runs on vllm, tgi or transformers"
        return FailedPrecondition("ADAPTERS_UNSUPPORTED", message, name=self._name)


def _key(settings: OpenAISettings) -> str:
    key = settings.api_key()
    if key is None:
        return _NO_KEY  # the client wants some key; services without keys ignore it
    secret = key.get_secret_value()
    # A header cannot carry others, and what fails on them would show the key.
    if not secret or not all("!" <= character <= "~" for character in secret):
        raise ValueError(f"the API key of model {settings.model} is empty or has spaces, line breaks or letters outside ASCII")
    return secret


def _is_dispensable(name: str, value: Any) -> bool:
    return name in _DISPENSABLE or (name in _DISPENSABLE_IF_ONE and value == 1)


def _is_for_conversations(error: openai.APIStatusError) -> bool:
    why = f"{error.code} {said(error)}".casefold()
    if "chat model" in why or "completions endpoint" in why or "chat/completions" in why:
        return True
    return error.status_code in _NO_TEXT_ROUTE and "model" not in why


async def _do_not_repeat_when_quota_is_spent(response: httpx2.Response) -> None:
    # The client would wait and try again, as for every 429: its own header tells it not to.
    if response.status_code == _BUSY:
        await response.aread()
        if SPENT_QUOTA.encode() in response.content:
            response.headers["x-should-retry"] = "false"
