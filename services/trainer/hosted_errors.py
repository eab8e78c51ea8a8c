"""What a provider's refusals mean for a job, in words that say what to do. Knows no job."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import Any

import httpx2
import openai

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, TunetrialError, Unavailable

_UNKNOWN_KEY, _UNPAID, _FORBIDDEN, _BUSY, _SERVER = 401, 402, 403, 429, 500
_LACKING = (404, 405, 501)
_PASSING = (408, 409)
_UNPAID_CODES = frozenset({"insufficient_quota", "exceeded_quota", "billing_hard_limit_reached", "billing_not_active"})
_AGAIN = "then create the job again: what the provider has begun is found there and not paid for twice"
_LONGEST_WAIT_S = 3600.0
_SHORTEST_SECRET = 8


class NotTaken(Unavailable):
    """A request that surely did nothing: it was not let in, or never arrived."""


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Failures of a call as errors of the domain: Unavailable is worth another try, all others are not."""
    try:
        yield
    except openai.APITimeoutError as error:
        kind = NotTaken if isinstance(error.__cause__, httpx2.ConnectTimeout | httpx2.PoolTimeout) else Unavailable
        raise kind("PROVIDER_UNAVAILABLE", "the provider {url} did not answer in time", url=url) from error
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        kind = NotTaken if isinstance(cause, httpx2.ConnectError) else Unavailable
        why = f"{type(cause).__name__}: {cause}"
        raise kind("PROVIDER_UNAVAILABLE", "the provider {url} cannot be reached: {why}", url=url, why=why) from error
    except openai.APIStatusError as error:
        raise _meaning(error, url) from error
    except (openai.APIError, json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:  # the last where a page for people came
        raise no_provider(url) from error


def no_provider(url: str) -> FailedPrecondition:
    """The error for an answer of something else."""
    message = "{url} does not answer as a provider of the OpenAI protocol: mend `url` of TUNETRIAL_HOSTED (it usually ends in /v1), {again}"
    return FailedPrecondition("PROVIDER_INVALID", message, url=url, again=_AGAIN)


def _meaning(error: openai.APIStatusError, url: str) -> TunetrialError:
    status, about = error.status_code, {"url": url, "status": error.status_code, "why": said(error), "again": _AGAIN}
    unpaid = status == _UNPAID or error.code in _UNPAID_CODES or error.type in _UNPAID_CODES
    if unpaid:
        known: TunetrialError = FailedPrecondition(
            "PROVIDER_QUOTA_SPENT", "the provider {url} wants to be paid first: {why}; {again}", **about
        )
    elif status == _UNKNOWN_KEY:  # its words show parts of the key
        about.pop("why")
        message = "the provider {url} does not accept the API key (status {status}): mend the key that TUNETRIAL_HOSTED names, {again}"
        known = FailedPrecondition("PROVIDER_DENIED", message, **about)
    elif status == _FORBIDDEN:
        message = "the provider {url} forbids it to the API key (status {status}): {why}; give the key that right, {again}"
        known = FailedPrecondition("PROVIDER_DENIED", message, **about)
    elif status in _LACKING:
        known = NotFound("PROVIDER_LACKS", "the provider {url} does not have it: {why}", **about)
    elif status == _BUSY:
        after = retry_after_s(error.response.headers)
        waits = {} if after is None else {"retry_after_s": after}
        known = NotTaken("PROVIDER_BUSY", "the provider {url} is asked too often, or has too much to do: {why}", **about, **waits)
    elif status >= _SERVER or status in _PASSING:
        known = Unavailable("PROVIDER_UNAVAILABLE", "the provider {url} fails (status {status}): {why}", **about)
    else:
        known = InvalidArgument("PROVIDER_REFUSES", "the provider {url} refuses the request (status {status}): {why}", **about)
    return known


def said(error: openai.APIError) -> str:
    """What the provider says of an error, without the API key where it repeats that."""
    body: Any = error.body
    message = (body.get("message") or json.dumps(body)) if isinstance(body, dict) else body
    key = error.request.headers.get("authorization", "").removeprefix("Bearer ")
    text = str(message or error.message)
    return " ".join((text.replace(key, "***") if len(key) >= _SHORTEST_SECRET else text).split())[:500]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """When to come back, where the headers of an answer say it."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if 0 <= seconds <= _LONGEST_WAIT_S:
            return seconds
    date = parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else min(max(0.1, mktime_tz(date) - time.time()), _LONGEST_WAIT_S)
