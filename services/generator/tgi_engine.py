"""A base model and its adapters on Text Generation Inference, in one process or several. Knows no wire and no proof.

TGI answers from the base, without a word, for an adapter that it does not know, and lists none. So only adapters of the server's start
list are asked for, `epoch` grows with every new connection, since a server that was started anew cannot answer over an old one, and
whoever proves adapters looks again before an answer is handed on. TGI takes text: only prompts go there from which it makes the very
tokens that were counted, and it is asked whether it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from services.common.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted, TunetrialError
from services.generator.adapter_config import check_plain_lora
from services.generator.adapter_share import AdapterShare
from services.generator.chat_tokenizer import ChatTokenizer
from services.generator.domain import Base, Canary, ConstraintKind, Encoded, EngineRollout, Generation, Prompt, Replica, Speaker, Turn, Work
from services.generator.engine_rollout import ManualRollout
from services.generator.engine_settings import TgiSettings
from services.generator.replicas import Remote, Remotes, Slow, away
from services.generator.text_thread import TextThread
from services.generator.tgi_answer import Answer
from services.generator.tgi_client import TgiClient

_log = structlog.get_logger()

_LAYERS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
"""What TGI adapts; the rest of an adapter it leaves out without a word."""
_GRAMMARS = {ConstraintKind.JSON_SCHEMA: "json", ConstraintKind.REGEX: "regex"}
_STOPS = 4
_THERE_S = 60.0
_SAMPLE = "Who built the bridge of Ormsby, and when?\n\tZoë: 1901."
"""Any text with which tokenizers show that they differ."""


class TgiEngine:
    """One base, on replicas that were all started with the same adapters."""

    def __init__(self, name: str, settings: TgiSettings, rollout: EngineRollout | None = None) -> None:
        """Contacts nothing. `rollout` brings adapters that were not there at the start; None: the operator does. Raises ValueError."""
        self._name, self._settings = name, settings
        self._rollout = rollout or ManualRollout()
        self._share = AdapterShare(settings.adapter_folder, settings.adapter_folder_on_engine)
        self._listed = list(settings.adapters)
        self._brought: set[str] = set()
        """Those of the list that a rollout has brought."""
        urls = [url.rstrip("/") for url in settings.urls]
        self._remotes = Remotes(name, {url: TgiClient(name, url, settings) for url in urls})
        self._text = TextThread(name, settings.source)
        self._end: int | None = None
        self._decode: Callable[[Sequence[int]], str] = str
        self._spell: Callable[[int], str] = str
        self._base: Base | None = None
        self._model: tuple[str, str] | None = None
        self._stops = _STOPS

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

    def epoch(self, replica: str) -> int | None:
        """Connections opened to it so far."""
        return next((remote.client.opened for remote in self._remotes.all if remote.identity == replica), None)

    async def prepare(self) -> None:
        """Reads the tokenizer and looks for the replicas, which may come later. Raises ValueError when there is no tokenizer."""
        tokenizer, _ = await self._text.open()
        self._decode, self._spell, self._end = tokenizer.decoder(), tokenizer.speller(), tokenizer.library.eos_token_id
        try:
            await self.replicas()
        except TunetrialError as error:
            _log.warning("an engine is away for now", model=self._name, message=error.message)

    async def replicas(self) -> tuple[Replica, ...]:
        """What can be reached now, by address and the number of times that it was away."""
        return await self._remotes.look(self._look)

    async def _look(self, remote: Remote[TgiClient]) -> Replica:
        try:
            return await self._seen(remote)
        except TunetrialError as error:
            if not isinstance(error, Slow):
                remote.client.lost += 1
            raise

    async def _seen(self, remote: Remote[TgiClient]) -> Replica:
        info = await remote.client.info(remote.look_s)
        identity = f"{remote.url} {remote.client.lost}"
        if identity != remote.identity:
            await self._check_tokenizer(remote)
        model = (str(info["model_id"]), str(info.get("model_sha")))
        self._model = self._model or model
        if model != self._model:
            message = "TGI at {url} serves {model}, and not {expected} as was seen first: mend TUNETRIAL_ENGINES or restart the generator"
            raise FailedPrecondition("ENGINE_LACKS_MODEL", message, url=remote.url, model=" ".join(model), expected=" ".join(self._model))
        self._stops = int(info.get("max_stop_sequences") or _STOPS)
        if self._base is None:
            self._base = Base(self._name, self._settings.source, "", int(info["max_total_tokens"]), datetime.now(UTC), "tgi")
        return Replica(identity, frozenset(self._listed))

    async def _check_tokenizer(self, remote: Remote[TgiClient]) -> None:
        expected = (await self.encode(_SAMPLE)).tokens
        if await remote.client.tokens(_SAMPLE) != expected:
            message = "TGI at {url} makes other tokens of a text than the tokenizer in {source}: it serves another model than {name}"
            raise FailedPrecondition("ENGINE_LACKS_MODEL", message, url=remote.url, source=self._settings.source, name=self._name)

    async def encode(self, prompt: Prompt) -> Encoded:
        """Tokens of a prompt."""
        return await self._text.run(lambda tokenizer: tokenizer.encode(prompt))

    async def generate(self, work: Work) -> AsyncGenerator[Speaker | str | Generation, None]:
        """Pieces of text if wanted, then the whole; a replica that cannot be reached is left for another one, until text has come.

        Raises FailedPrecondition PROMPT_NOT_REPRODUCIBLE, Internal PROMPT_DIFFERS besides what the port says.
        """
        started, seed = time.perf_counter(), None
        if not work.decoding.greedy:
            seed = secrets.randbits(63) if work.decoding.seed is None else work.decoding.seed
        parameters = self._parameters(work, seed)
        text = await self._text.run(lambda tokenizer: tokenizer.text(work.encoded))

        def begin(remote: Remote[TgiClient]) -> tuple[Answer, AsyncGenerator[str, None]]:
            answer = Answer(self._name, work, self._decode, self._spell, self._end)
            return answer, self._ask(remote, text, parameters, answer, stream=work.stream)

        async with contextlib.aclosing(self._remotes.ask(work.among, begin)) as parts:
            async for part in parts:
                yield part if isinstance(part, Speaker | str) else part.generation((time.perf_counter() - started) * 1e3, seed)

    async def _ask(
        self, remote: Remote[TgiClient], text: str, parameters: dict[str, Any], answer: Answer, *, stream: bool
    ) -> AsyncGenerator[str, None]:
        if not stream:
            answer.take_whole(*await remote.client.whole(text, parameters))
        else:
            async with contextlib.aclosing(remote.client.stream(text, parameters)) as parts:
                async for part in parts:
                    if piece := answer.take(part):
                        yield piece
                    if answer.stopped and part.details is None:
                        # TGI saw no stop text and would go on: it is left here, before it has said what it saw of the prompt.
                        answer.check_prompt(len(await remote.client.tokens(text)))
                        break
        answer.check_ended()

    def _parameters(self, work: Work, seed: int | None) -> dict[str, Any]:
        decoding = work.decoding
        narrowed = decoding.top_k is not None or (decoding.top_p is not None and decoding.top_p < 1)
        if len(decoding.stop) > self._stops:
            raise self._unsupported("stop", f"TGI takes {self._stops} stop texts")
        if decoding.constraint is not None and decoding.constraint.kind not in _GRAMMARS:
            raise self._unsupported("constraint", "TGI constrains to a JSON schema or a regular expression")
        if seed is not None and seed < 0:
            raise self._unsupported("seed", "TGI takes seeds from 0 on")
        if decoding.top_log_probabilities is not None and (
            decoding.constraint is not None or (seed is not None and (narrowed or decoding.temperature != 1))
        ):
            raise self._unsupported("top_log_probabilities", "TGI gives them after temperature, top_p, top_k and constraint, not before")
        # What is None is not sent. In a greedy request, any setting of sampling would make TGI sample.
        sampling: dict[str, Any] = {}
        if seed is not None:
            top_p = decoding.top_p if decoding.top_p is not None and decoding.top_p < 1 else None
            sampling = {"temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": top_p, "seed": seed}
        grammar = None
        if decoding.constraint is not None:
            # As text: the library takes nulls out of a schema.
            grammar = {"type": _GRAMMARS[decoding.constraint.kind], "value": decoding.constraint.values[0]}
        return {
            "adapter_id": work.adapter,
            "do_sample": seed is not None,
            "max_new_tokens": work.max_tokens,
            "return_full_text": False,
            "stop": list(decoding.stop) or None,
            "top_n_tokens": decoding.top_log_probabilities or None,
            "grammar": grammar,
            **sampling,
        }

    def _unsupported(self, field: str, why: str) -> FailedPrecondition:
        message = "the engine of model {name} cannot keep {field}: {why}"
        return FailedPrecondition("DECODING_UNSUPPORTED", message, name=self._name, field=f"decoding.{field}", why=why)

    async def load_adapter(self, adapter: str, folder: Path, among: frozenset[str] = frozenset()) -> None:
        """Nothing for an adapter of the start list, which is in every replica; another one is a matter of the rollout."""
        await asyncio.to_thread(check_plain_lora, folder, "TGI", _LAYERS)
        if adapter not in self._listed:
            path, _ = await asyncio.to_thread(self._share.bring, folder)
            await self._rollout.add(self._name, tuple(self._listed), adapter, path)
            self._listed.append(adapter)
            self._brought.add(adapter)
            await self._all_there()

    async def _all_there(self) -> None:
        """Returns when all replicas are seen, or after a while: names lead to new processes some time after these are ready."""
        deadline = time.monotonic() + _THERE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(TunetrialError):
                if len(await self.replicas()) == len(self._remotes.all):
                    return
            await asyncio.sleep(1)

    async def unload_adapter(self, adapter: str) -> None:
        """Takes out what a rollout brought; TGI keeps what else it was started with, and nobody asks it for this one any more."""
        if adapter in self._brought:
            self._brought.remove(adapter)
            self._listed.remove(adapter)
            await self._rollout.remove(adapter)

    async def score(self, rows: Sequence[tuple[str | None, Canary]], replica: str) -> tuple[tuple[float, ...], ...]:
        """Log-probabilities of the completions' tokens; the rows are sent together, and TGI puts them into one batch where it can."""
        remote = self._remotes.named(replica)
        return tuple(await asyncio.gather(*(self._score(remote, adapter, canary) for adapter, canary in rows)))

    async def _score(self, remote: Remote[TgiClient], adapter: str | None, canary: Canary) -> tuple[float, ...]:
        text, tokens, count = await self._text.run(lambda tokenizer: _scorable(tokenizer, canary))
        asked = {"adapter_id": adapter, "do_sample": False, "max_new_tokens": 1, "decoder_input_details": True, "return_full_text": False}
        try:
            whole, _ = await remote.client.whole(text, asked)
        except ResourceExhausted as error:  # says nothing about the adapter
            raise away(self._name, error.message) from error
        prefill = whole.details.prefill if whole.details is not None else []
        if not prefill or any(token.logprob is None for token in prefill[-count:]):
            message = (
                "TGI at {url} gives no log-probabilities of prompts, so adapters cannot be proven: start it with --enable-prefill-logprobs"
            )
            raise FailedPrecondition("ENGINE_CANNOT_SCORE", message, url=remote.url)
        if tuple(token.id for token in prefill) != tokens:
            message = "TGI at {url} makes other tokens of a canary than the tokenizer in {source}"
            raise Internal("PROMPT_DIFFERS", message, url=remote.url, source=self._settings.source)
        return tuple(float(token.logprob) for token in prefill[-count:])

    async def close(self) -> None:
        """Closes the connections."""
        self._text.close()
        await self._rollout.close()
        for remote in self._remotes.all:
            await remote.client.close()


def _scorable(tokenizer: ChatTokenizer, canary: Canary) -> tuple[str, tuple[int, ...], int]:
    """A canary's prompt and completion as one text, its tokens, and how many of them are the completion's.

    Raises FailedPrecondition PROMPT_NOT_REPRODUCIBLE, InvalidArgument ADAPTER_UNREADABLE.
    """
    prompt, completion = tokenizer.encode_canary(canary)
    if not completion:
        raise InvalidArgument("ADAPTER_UNREADABLE", "a canary of the manifest is empty", field="uri")
    tokens = (*prompt, *completion)
    if isinstance(canary.prompt, str):
        told = canary.prompt + canary.completion
    else:
        turns = [{"role": turn.role, "content": turn.content} for turn in (*canary.prompt, Turn("assistant", canary.completion))]
        told = str(tokenizer.library.apply_chat_template(turns, tokenize=False))
    with contextlib.suppress(FailedPrecondition):
        return tokenizer.text(Encoded(told, tokens)), tokens, len(completion)
    # A template that tells past turns otherwise than the one to be answered.
    text = str(tokenizer.library.decode(list(tokens), clean_up_tokenization_spaces=False))
    return tokenizer.text(Encoded(text, tokens)), tokens, len(completion)
