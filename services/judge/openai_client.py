"""One chat completion of an OpenAI-compatible endpoint, at most so many at once; the client's errors become the domain's. Knows no rubric.

Retries on 429, 5xx, 408, 409, time-outs and lost connections are the client's own: exponential from 0.5 to 8 s, or as `retry-after`
says up to two minutes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import openai
from openai.types.chat import ChatCompletion

from services.common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, TunetrialError, Unavailable

_UNKNOWN_MODEL = frozenset({"model_not_found", "invalid_model", "unknown_model"})
_LONGEST_DETAIL = 300
_CHECK_URL = "check TUNETRIAL_OPENAI_BASE_URL (it usually ends in /v1)"
_OPENAI = "https://api.openai.com/v1"
# The client wants some key; endpoints without keys ignore it.
_NO_KEY = "none"


class ContentFiltered(Exception):
    """The endpoint refused the prompt with status 400 and code content_filter."""


class ChatEndpoint:
    """An endpoint and how it is asked."""

    def __init__(self, client: openai.AsyncOpenAI, concurrency: int, token_limit_field: str) -> None:
        self._client, self._token_limit_field = client, token_limit_field
        self._slots = asyncio.Semaphore(concurrency)

    async def complete(
        self, model: str, prompt: str, *, temperature: float, most_tokens: int, seed: int | None = None, top_logprobs: int | None = None
    ) -> ChatCompletion:
        """One completion with at least one choice. Raises ContentFiltered, and TunetrialError as `_meaning` says."""
        body: dict[str, object] = {self._token_limit_field: most_tokens}
        if seed is not None:
            body["seed"] = seed
        if top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        async with self._slots:
            try:
                completion = await self._client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": prompt}], temperature=temperature, extra_body=body
                )
            except openai.OpenAIError as error:
                raise _meaning(error, model, str(self._client.base_url), top_logprobs is not None) from error
            except json.JSONDecodeError as error:
                raise self._malformed() from error
        # The client builds what it gets without checking it; a server that is no such endpoint may send anything.
        if not isinstance(completion, ChatCompletion) or not completion.choices or completion.choices[0].message is None:
            raise self._malformed()
        return completion

    def _malformed(self) -> Unavailable:
        return Unavailable(
            "JUDGE_UNAVAILABLE",
            "{url} did not reply with a chat completion: " + _CHECK_URL,
            url=self._client.base_url,
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


def connect(
    base_url: str, api_key: str | None, *, timeout_s: float, max_retries: int, concurrency: int, token_limit_field: str
) -> ChatEndpoint:
    """An endpoint; "" means OpenAI's own. Contacts nothing yet."""
    # Key and URL are always given, so that the client's own environment variables do not decide where answers are sent.
    client = openai.AsyncOpenAI(api_key=api_key or _NO_KEY, base_url=base_url or _OPENAI, timeout=timeout_s, max_retries=max_retries)
    return ChatEndpoint(client, concurrency, token_limit_field)


def _meaning(error: openai.OpenAIError, model: str, url: str, log_probabilities: bool) -> TunetrialError | ContentFiltered:
    match error:
        case openai.APITimeoutError():
            return Unavailable("JUDGE_UNAVAILABLE", "the judge's endpoint {url} did not answer in time, retries included", url=url)
        case openai.APIConnectionError():
            return Unavailable(
                "JUDGE_UNAVAILABLE", "cannot reach the judge's endpoint {url}: {detail}", url=url, detail=error.__cause__ or error
            )
        case openai.APIStatusError():
            return _meaning_of_status(error, model, url, log_probabilities)
        case _:
            return Unavailable("JUDGE_UNAVAILABLE", "the judge's endpoint {url} failed: {detail}", url=url, detail=error)


def _meaning_of_status(error: openai.APIStatusError, model: str, url: str, log_probabilities: bool) -> TunetrialError | ContentFiltered:
    detail, status, code = _detail(error), error.status_code, error.code or ""
    text = detail.lower()
    known: TunetrialError | ContentFiltered
    if status in (401, 403):
        known = FailedPrecondition(
            "JUDGE_CREDENTIALS",
            "the judge's endpoint {url} does not accept the API key ({status}): set TUNETRIAL_OPENAI_API_KEY or "
            "TUNETRIAL_OPENAI_API_KEY_FILE to a key that may use model {model}, and restart the judge",
            url=url,
            status=status,
            model=model,
        )
    elif status == 429:
        after = _retry_after_s(error.response.headers)
        known = ResourceExhausted(
            "JUDGE_RATE_LIMITED",
            "the judge's endpoint {url} limits the rate, retries included: {detail}",
            url=url,
            detail=detail,
            **({} if after is None else {"retry_after_s": after}),
        )
    elif code in _UNKNOWN_MODEL or (status == 404 and "model" in text):
        known = FailedPrecondition(
            "JUDGE_MODEL_UNKNOWN", "the judge's endpoint {url} has no model {model}: {detail}", url=url, model=model, detail=detail
        )
    elif status == 404:
        known = FailedPrecondition("JUDGE_ENDPOINT_INVALID", "{url} has no chat completions (404): " + _CHECK_URL, url=url)
    elif status >= 500 or status in (408, 409):
        what = "the judge's endpoint {url} fails ({status}), retries included: {detail}"
        known = Unavailable("JUDGE_UNAVAILABLE", what, url=url, status=status, detail=detail)
    elif code == "content_filter":
        known = ContentFiltered()
    elif log_probabilities and ("logprob" in text or "log prob" in text):
        known = log_probabilities_unavailable(model, detail)
    elif code == "context_length_exceeded" or "context length" in text:
        known = InvalidArgument("PROMPT_TOO_LONG", "the prompt is too long for judge model {model}: {detail}", model=model, detail=detail)
    else:
        what = "the judge's endpoint {url} rejects the request ({status}): {detail}"
        known = FailedPrecondition("JUDGE_REQUEST_REJECTED", what, url=url, status=status, detail=detail)
    return known


def log_probabilities_unavailable(model: str, detail: str) -> FailedPrecondition:
    """What mode token_probabilities cannot do without."""
    return FailedPrecondition(
        "LOG_PROBABILITIES_UNAVAILABLE",
        "mode token_probabilities needs the 20 likeliest tokens, and judge model {model} gave none ({detail}): "
        "freeze a rubric in mode samples, or use an endpoint that returns log-probabilities",
        model=model,
        detail=detail,
    )


def _detail(error: openai.APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    text = message if isinstance(message, str) else error.message
    return text if len(text) <= _LONGEST_DETAIL else text[:_LONGEST_DETAIL] + " ..."


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue  # absent, or a date, which says nothing without the server's clock
        if 0 <= seconds < 86_400:
            return seconds
    return None
