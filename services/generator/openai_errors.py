"""Failures of servers that speak OpenAI's protocol, as errors of the domain. Knows no engine."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Collection, Iterator
from email.utils import mktime_tz, parsedate_tz
from typing import Any

import httpx2
import openai

from services.common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, TunetrialError
from services.generator.replicas import Broken, NotReached, Slow, away

_UNKNOWN_KEY, _FORBIDDEN = 401, 403
_REFUSING = (400, _FORBIDDEN, 422)  # OpenAI says 403 for log-probabilities of models that keep them
_UNPAID = 402
_BUSY = 429
_NOT_FOUND = 404
_SERVER = 500
SPENT_QUOTA = "insufficient_quota"
"""Code of a refusal with status 429 that no waiting helps against."""
_FILTERED = frozenset({"content_filter", "content_policy_violation", "invalid_prompt"})
_LACKS = "model_not_found"
_TOO_LONG = re.compile(r"context_length_exceeded|context length|max_model_len|maximum input length|input is too long", re.IGNORECASE)
_UNSUPPORTED = re.compile(
    r"unsupported|n[o']t support|no support|unrecogni[sz]ed|unknown|unexpected (argument|keyword|param|field)"
    r"|extra[_ ](forbidden|inputs|fields)|not (permitted|allowed|available)|deprecated|cannot both",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 8

_FIELDS = {
    "max_tokens": ("max_tokens", "ask for fewer"),
    "max_completion_tokens": ("max_tokens", "ask for fewer"),
    "temperature": ("temperature", "set it to 1, which every model takes (unset is 0, the most probable text)"),
    "top_p": ("top_p", "leave it unset"),
    "top_k": ("top_k", "leave it unset and use top_p"),
    "seed": ("seed", "leave it unset"),
    "stop": ("stop", "send fewer stop texts (most providers take 4) or none"),
    "logprobs": ("top_log_probabilities", "leave it unset or use another model"),
    "top_logprobs": ("top_log_probabilities", "ask for fewer, leave it unset or use another model"),
    "response_format": ("constraint", "leave it unset or mend its schema as the provider says"),
}
"""Parameters of the protocol: the field of `decoding` behind each, and what to set instead."""


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Failures of a call about the model `name`, as errors of the domain."""
    try:
        yield
    except openai.APITimeoutError as error:
        reached = not isinstance(error.__cause__, httpx2.ConnectTimeout | httpx2.PoolTimeout)
        raise away(name, "it did not answer in time", Slow if reached else NotReached) from error
    except openai.APIConnectionError as error:
        reached = not isinstance(error.__cause__, httpx2.ConnectError)
        cause = error.__cause__ or error
        raise away(name, f"{type(cause).__name__}: {cause}", Broken if reached else NotReached) from error
    except openai.APIStatusError as error:
        raise _failure(name, error) from error
    except openai.APIError as error:  # an error that came as an event of a stream
        raise _failure_in_stream(name, error) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise away(name, "it sent what is no JSON") from error


def said(error: openai.APIError) -> str:
    """What the server says of an error, without the API key where it repeats that."""
    body: Any = error.body
    message = (body.get("message") or json.dumps(body)) if isinstance(body, dict) else body
    key = error.request.headers.get("authorization", "").removeprefix("Bearer ")
    text = str(message or error.message)
    return " ".join((text.replace(key, "***") if len(key) >= _SHORTEST_SECRET else text).split())[:500]


def refused(name: str, why: str) -> FailedPrecondition:
    """The error for a prompt that the provider does not answer, or an answer that it holds back."""
    return FailedPrecondition("ANSWER_REFUSED", "the provider of model {name} refuses to answer: {why}", name=name, why=why[:500])


def unsupported(name: str, parameter: str, why: str) -> FailedPrecondition:
    """The error for a parameter of the protocol that the model does not take."""
    field, instead = _FIELDS[parameter]
    message = "model {name} does not keep {field} ({why}): {instead}"
    return FailedPrecondition("DECODING_UNSUPPORTED", message, name=name, field=f"decoding.{field}", why=why, instead=instead)


def blamed(error: openai.APIStatusError, sent: Collection[str]) -> tuple[list[str], bool]:
    """Which of the parameters that were sent a refusal names, the first first; and whether it says that the model does not know them, and
    not that a value is out of range.
    """
    why = said(error)
    if error.status_code not in _REFUSING or _TOO_LONG.search(f"{error.code} {why}"):
        return [], False
    unknown = (error.code or "").startswith("unsupported_") or _UNSUPPORTED.search(why) is not None
    named = [part for part in re.split(r"[^a-z_]+", str(error.param or "")) if part in sent]
    if not named or unknown:
        places = {name: found.start() for name in sent if (found := re.search(rf"\b{name}\b", why))} if unknown else {}
        named += [name for name in sorted(places, key=places.__getitem__) if name not in named]
    return named, unknown


def _failure(name: str, error: openai.APIStatusError) -> TunetrialError:
    status, why = error.status_code, said(error)
    about = {"name": name, "status": status, "why": why}
    message = "the engine of model {name} refuses the request (status {status}): {why}"
    found: TunetrialError = InvalidArgument("ENGINE_REFUSED", message, **about)
    if error.code in _FILTERED:
        found = refused(name, why)
    elif status == _NOT_FOUND or error.code == _LACKS:
        found = FailedPrecondition("ENGINE_LACKS_MODEL", "the engine of model {name} does not have it: {why}", **about)
    elif status == _UNKNOWN_KEY:  # its words show parts of the key
        message = "the engine of model {name} does not accept the service's credentials (status {status}): mend its API key"
        found = FailedPrecondition("ENGINE_DENIED", message, name=name, status=status)
    elif status == _FORBIDDEN:
        message = "the engine of model {name} forbids the request to the service's credentials (status {status}): {why}"
        found = FailedPrecondition("ENGINE_DENIED", message, **about)
    elif status == _UNPAID or (status == _BUSY and SPENT_QUOTA in (error.code, error.type)):
        found = FailedPrecondition("ENGINE_QUOTA_SPENT", "the provider of model {name} refuses: {why}", **about)
    elif status == _BUSY:
        found = _busy(about, _retry_after_s(error))
    elif status >= _SERVER:
        found = away(name, f"status {status}: {why}")
    elif _TOO_LONG.search(f"{error.code} {why}"):
        found = _too_long(about)
    return found


def _failure_in_stream(name: str, error: openai.APIError) -> TunetrialError:
    why, kinds = said(error), {error.code, error.type}
    about = {"name": name, "why": why}
    if kinds & _FILTERED:
        return refused(name, why)
    if kinds & {str(_BUSY), "rate_limit_exceeded"}:
        return _busy(about, 1.0)
    return _too_long(about) if _TOO_LONG.search(f"{error.code} {why}") else away(name, why)


def _busy(about: dict[str, Any], retry_after_s: float) -> ResourceExhausted:
    message = "the engine of model {name} has too much to do: {why}"
    return ResourceExhausted("ENGINE_BUSY", message, **about, retry_after_s=retry_after_s)


def _too_long(about: dict[str, Any]) -> InvalidArgument:
    message = "the prompt and the answer are longer than model {name} takes: {why}"
    return InvalidArgument("PROMPT_TOO_LONG", message, **about, field="prompt")


def _retry_after_s(error: openai.APIStatusError) -> float:
    headers = error.response.headers
    for header, divisor in (("retry-after-ms", 1000), ("retry-after", 1)):
        with contextlib.suppress(ValueError):
            seconds = float(headers.get(header, "")) / divisor
            if math.isfinite(seconds):
                return max(0.1, seconds)
    date = parsedate_tz(headers.get("retry-after", ""))
    return 1.0 if date is None else max(0.1, mktime_tz(date) - time.time())
