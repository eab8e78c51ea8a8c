"""What a provider answers by the OpenAI protocol, whole or in pieces, as a generation, and what it costs. Knows no connection.

A stop text and the end of the model's turn are told apart only where the server says which it was (`stop_reason`, as vLLM does); elsewhere
both are END. A server that does not count its tokens leaves them at 0 and the cost unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from services.common.errors import Internal
from services.generator.domain import ConstraintKind, Finish, Generation, Token, TopToken, Work
from services.generator.engine_settings import OpenAISettings
from services.generator.openai_errors import refused, unsupported
from services.generator.replicas import away

_FINISHES = {"stop": Finish.END, "length": Finish.LENGTH}
_UNKNOWN = -1
# A date as snapshots bear it: 2024-08-06, 20240806, 240806, 2411 (year and month), 0613 (month and day).
_SNAPSHOT = re.compile(r"(-(20\d\d-\d\d-\d\d|20\d{6}|2\d(0[1-9]|1[0-2])([0-3]\d)?|(0[1-9]|1[0-2])[0-3]\d)|-latest|:latest)?")


class ProviderAnswer:
    """Takes what comes and adds it up."""

    def __init__(self, name: str, settings: OpenAISettings, work: Work, tuned: str = "") -> None:
        """`name` is that of the base, for errors; `tuned` is the fine-tuned model that was asked instead of the base."""
        self._name, self._settings, self._work, self._tuned = name, settings, work, tuned
        self.model = ""
        """Name under which the provider answered: a dated snapshot, mostly."""
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self._tokens: list[Token] = []
        self._finish: str | None = None
        self._stopped = False
        self._usage: CompletionUsage | None = None

    def take(self, part: object) -> str:
        """The text of a part. Raises Internal MODEL_DIFFERS when it is another model's, Unavailable ENGINE_UNAVAILABLE when it is none."""
        if not isinstance(part, ChatCompletion | ChatCompletionChunk | Completion):
            raise away(self._name, f"{self._settings.url} does not answer as an OpenAI-compatible service: is its address right?")
        self._check_model(part)
        if part.usage is not None and part.usage.prompt_tokens is not None and part.usage.completion_tokens is not None:
            self._usage = part.usage
        wrong = (part.model_extra or {}).get("error")
        if wrong:  # with status 200, as some gateways do
            raise away(self._name, f"it answered with an error: {wrong}"[:500])
        if not part.choices:
            return ""
        choice: Any = part.choices[0]
        if not hasattr(choice, "finish_reason"):  # the client builds what it gets without checking it
            raise away(self._name, "its answer is no answer")
        said = choice if isinstance(part, Completion) else choice.delta if isinstance(part, ChatCompletionChunk) else choice.message
        text: str = getattr(said, "text" if isinstance(part, Completion) else "content", None) or ""
        self._texts.append(text)
        self._refusals.append(getattr(said, "refusal", None) or "")
        if self._work.decoding.top_log_probabilities is not None and choice.logprobs is not None:
            self._tokens += self._legacy(choice.logprobs) if isinstance(part, Completion) else self._chat(choice.logprobs)
        if choice.finish_reason is not None:
            self._finish = str(choice.finish_reason)
            self._stopped = isinstance((choice.model_extra or {}).get("stop_reason"), str)
        return text

    def check(self) -> None:
        """To be called at the end. Raises Unavailable ENGINE_UNAVAILABLE when the answer breaks off, FailedPrecondition ANSWER_REFUSED,
        and DECODING_UNSUPPORTED when it lacks what was asked for; Internal MODEL_DIFFERS when it is nobody's.
        """
        text, refusal = "".join(self._texts), "".join(self._refusals)
        if self._finish is None:
            raise away(self._name, "its answer broke off")
        if not self.model:
            raise self._differs("a model that it does not name")
        if refusal or self._finish == "content_filter":
            raise refused(self._name, refusal or text or "its content filter struck")
        if self._finish not in _FINISHES:
            raise away(self._name, f"its answer ended with finish_reason {self._finish}")
        if self._work.decoding.top_log_probabilities is not None and text and not self._tokens:
            raise unsupported(self._name, "logprobs", "its answer comes without log-probabilities")
        self._check_constraint(text)

    def generation(self, latency_ms: float, seed: int | None) -> Generation:
        """The whole, after `check`."""
        finish = Finish.STOP if self._stopped and self._finish == "stop" else _FINISHES[self._finish or ""]
        prompt_tokens = completion_tokens = 0
        if self._usage is not None:
            prompt_tokens, completion_tokens = self._usage.prompt_tokens, self._usage.completion_tokens
        cost = cost_usd(self._settings, self._usage, bool(self._tuned))
        text, tokens = "".join(self._texts), tuple(self._tokens)
        return Generation(text, finish, prompt_tokens, completion_tokens, latency_ms, cost, tokens, seed, self.model)

    def _check_model(self, part: ChatCompletion | ChatCompletionChunk | Completion) -> None:
        if not part.model:  # gateways send parts of their own before the model's
            return
        if not same_model(self._tuned or self._settings.answers_as or self._settings.model, part.model):
            raise self._differs(part.model)
        self.model = part.model

    def _check_constraint(self, text: str) -> None:
        constraint = self._work.decoding.constraint
        if constraint is None or constraint.kind is not ConstraintKind.JSON_SCHEMA or self._finish == "length":
            return
        try:
            json.loads(text)
        except ValueError as error:
            raise unsupported(self._name, "response_format", "its answer is no JSON, so it does not keep schemas") from error

    def _differs(self, other: str) -> Internal:
        if self._tuned:
            message = "the provider of {name} was asked for its fine-tuned model {model} and answered as {other}"
            return Internal("MODEL_DIFFERS", message, name=self._name, model=self._tuned, other=other)
        message = "the provider of {name} was asked for {model} and answered as {other}: set `model` to the name of what shall answer, or "
        message += "`answers_as` where the provider calls it otherwise"
        return Internal("MODEL_DIFFERS", message, name=self._name, model=self._settings.model, other=other)

    def _chat(self, found: Any) -> Iterator[Token]:
        for token in found.content or ():
            rivals = sorted(((rival.token, rival.logprob) for rival in token.top_logprobs or ()), key=_likelihood)
            yield self._token(token.token, token.logprob, rivals)

    def _legacy(self, found: Any) -> Iterator[Token]:
        rows = zip(found.tokens or (), found.token_logprobs or (), found.top_logprobs or [{}] * len(found.tokens or ()), strict=True)
        for text, value, rivals in rows:
            yield self._token(text, value, sorted((rivals or {}).items(), key=_likelihood))

    def _token(self, text: str, value: float, rivals: list[tuple[str, float]]) -> Token:
        # Some servers add the token that was taken where it is not among the best.
        best = rivals[: self._work.decoding.top_log_probabilities]
        return Token(_UNKNOWN, text, value, tuple(TopToken(_UNKNOWN, *rival) for rival in best))


def same_model(asked: str, answered: str) -> bool:
    """Whether an answer in this name is the one asked for: the same, or a dated snapshot of it; with or without its vendor before it."""
    asked, answered = asked.casefold(), answered.casefold()
    if ("/" in asked) != ("/" in answered):
        asked, answered = asked.rpartition("/")[2], answered.rpartition("/")[2]
    stem = asked.removesuffix("-latest")
    return answered == asked or (answered.startswith(stem) and _SNAPSHOT.fullmatch(answered, len(stem)) is not None)


def cost_usd(settings: OpenAISettings, usage: CompletionUsage | None, tuned: bool = False) -> float | None:
    """Price of an answer, of a fine-tuned model where `tuned`; None when a price or the usage is unknown.

    Tokens of reasoning are among the completion's.
    """
    price, output_price = settings.usd_per_million_input_tokens, settings.usd_per_million_output_tokens
    cached_price = settings.usd_per_million_cached_input_tokens
    if tuned:
        price, output_price = settings.tuned_usd_per_million_input_tokens, settings.tuned_usd_per_million_output_tokens
        cached_price = settings.tuned_usd_per_million_cached_input_tokens
    if usage is None or price is None or output_price is None:
        return None
    cached = (usage.prompt_tokens_details.cached_tokens or 0) if usage.prompt_tokens_details is not None else 0
    dollars_per_million = (usage.prompt_tokens - cached) * price + cached * (price if cached_price is None else cached_price)
    return (dollars_per_million + usage.completion_tokens * output_price) / 1e6


def _likelihood(rival: tuple[str, float]) -> float:
    return -rival[1]
