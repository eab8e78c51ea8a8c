"""G-Eval against an OpenAI-compatible endpoint. Knows neither how it is reached nor the wire of this service.

Every run is a request of its own; its seed is the first seed plus its number. Runs are remembered one by one, by rubric, case, seed and
number: an identical answer is judged once, more runs of it add only those that are missing, and a call that failed on one run finds the
others done when it is repeated. A remembered run comes with no usage, since nothing was spent on it again. When a run fails, the call
fails and its other runs stop.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any

from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import Choice
from openai.types.completion_usage import CompletionUsage

from services.common.errors import FailedPrecondition
from services.judge import prompts
from services.judge.domain import Case, Criterion, Draft, Judgement, Missing, Mode, Price, Rubric, Run, Usage
from services.judge.memory import Memory
from services.judge.openai_client import ChatEndpoint, ContentFiltered, log_probabilities_unavailable
from services.judge.reply import expected_score, find_score, numbered_steps, why_missing
from services.judge.rubrics import language_model_rubric

_TOP = 20
_STEPS_TOKENS = 2048


class OpenAIJudge:
    """The engine `openai`."""

    def __init__(
        self,
        endpoint: ChatEndpoint,
        criteria: Mapping[str, Criterion],
        *,
        default_model: str,
        prices: Mapping[str, Price],
        most_tokens: int,
        remembered_runs: int,
    ) -> None:
        self._endpoint, self._criteria, self._default_model = endpoint, criteria, default_model
        self._prices, self._most_tokens = prices, most_tokens
        self._runs: Memory[tuple[str, int], Run] = Memory(remembered_runs)

    def freeze(self, draft: Draft) -> Rubric:
        """The draft with defaults filled in; without steps where it has none."""
        return language_model_rubric(draft, self._criteria, self._default_model)

    async def write_steps(self, rubric: Rubric) -> tuple[tuple[str, ...], Usage]:
        """Asks the model once, greedily. Raises FailedPrecondition STEPS_UNPARSED."""
        known = self._criteria.get(rubric.criterion)
        prompt = prompts.steps_prompt(rubric, known is not None and known.needs_references)
        started = time.monotonic()
        try:
            completion = await self._endpoint.complete(rubric.model, prompt, temperature=0.0, most_tokens=_STEPS_TOKENS)
        except ContentFiltered:
            raise _steps_unparsed(rubric.model, "its endpoint filtered the request") from None
        choice = completion.choices[0]
        steps = numbered_steps(choice.message.content or "")
        if choice.finish_reason == "length":
            raise _steps_unparsed(rubric.model, f"its reply was cut at {_STEPS_TOKENS} tokens")
        if not steps:
            raise _steps_unparsed(rubric.model, f"it replied: {(choice.message.refusal or choice.message.content or '')[:200]!r}")
        return steps, self._usage(completion, rubric.model, started)

    async def judge(self, rubric: Rubric, case: Case, run_count: int, seed: int | None) -> Judgement:
        """All runs at once, within the endpoint's limit."""
        started = time.monotonic()
        prompt = prompts.score_prompt(rubric, case)
        key = hashlib.sha256(json.dumps([rubric.hash, seed, prompt]).encode()).hexdigest()
        runs = await _all([self._run(key, prompt, rubric, number, seed) for number in range(run_count)])
        costs = [run.usage.cost_usd for run in runs]
        known_costs = [cost for cost in costs if cost is not None]
        usage = Usage(
            sum(run.usage.prompt_tokens for run in runs),
            sum(run.usage.completion_tokens for run in runs),
            (time.monotonic() - started) * 1e3,
            math.fsum(known_costs) if len(known_costs) == len(costs) else None,
        )
        return Judgement(runs, usage)

    async def _run(self, key: str, prompt: str, rubric: Rubric, number: int, seed: int | None) -> Run:
        own_seed = None if seed is None else seed + number
        run, first = await self._runs.get((key, number), lambda: self._ask(prompt, rubric, own_seed))
        return run if first else replace(run, usage=Usage())

    async def _ask(self, prompt: str, rubric: Rubric, seed: int | None) -> Run:
        started = time.monotonic()
        probabilities = rubric.mode is Mode.TOKEN_PROBABILITIES
        try:
            completion = await self._endpoint.complete(
                rubric.model,
                prompt,
                temperature=rubric.temperature or 0.0,
                most_tokens=self._most_tokens,
                seed=seed,
                top_logprobs=_TOP if probabilities else None,
            )
        except ContentFiltered:
            # The endpoint does not say what it charged for the tokens that it read.
            return Run(None, "", Missing.REFUSED, Usage(0, 0, (time.monotonic() - started) * 1e3, None))
        choice = completion.choices[0]
        run = _probable_score(choice, rubric) if probabilities else _written_score(choice, rubric)
        return replace(run, usage=self._usage(completion, rubric.model, started))

    def _usage(self, completion: ChatCompletion, model: str, started: float) -> Usage:
        counted: CompletionUsage | None = completion.usage
        latency_ms = (time.monotonic() - started) * 1e3
        if counted is None:
            return Usage(0, 0, latency_ms, None)
        tokens = counted.prompt_tokens or 0, counted.completion_tokens or 0
        price = self._prices.get(model)
        cost = None if price is None else (tokens[0] * price.input_per_million + tokens[1] * price.output_per_million) / 1e6
        return Usage(*tokens, latency_ms, cost)


def _refused(choice: Choice) -> Run | None:
    # "content_filter" comes with what was written before the filter struck: no judgement, whatever it looks like.
    if choice.message.refusal or choice.finish_reason == "content_filter":
        return Run(None, choice.message.refusal or choice.message.content or "", Missing.REFUSED)
    return None


def _written_score(choice: Choice, rubric: Rubric) -> Run:
    refused = _refused(choice)
    if refused is not None:
        return refused
    reply = choice.message.content or ""
    cut = choice.finish_reason == "length"
    score = find_score(reply, rubric.criterion, rubric.low, rubric.high)
    # A number at the very end of a cut reply may be the beginning of a longer one.
    if score is None or (cut and score.end == len(reply)):
        return Run(None, reply, why_missing(reply, cut))
    return Run(score.value, reply)


def _probable_score(choice: Choice, rubric: Rubric) -> Run:
    refused = _refused(choice)
    if refused is not None:
        return refused
    reply = choice.message.content or ""
    tokens = (choice.logprobs.content if choice.logprobs else None) or []
    if reply and not any(token.top_logprobs for token in tokens):
        raise log_probabilities_unavailable(rubric.model, "the reply has no top_logprobs")
    score = find_score(reply, rubric.criterion, rubric.low, rubric.high)
    if score is None or score.value != int(score.value):
        return Run(None, reply, why_missing(reply, choice.finish_reason == "length"))
    # Tokens of reasoning may stand before the reply and an end mark after it; the reply itself may have lost a leading space.
    spelled = "".join(token.token for token in tokens)
    place = spelled.rfind(reply)
    position, end = -1, 0
    while place >= 0 and end <= place + score.start:
        position += 1
        end += len(tokens[position].token)
    if position < 0 or not tokens[position].top_logprobs:
        raise log_probabilities_unavailable(rubric.model, "its tokens do not spell the reply")
    token = tokens[position]
    alternatives = [(top.token, top.logprob) for top in token.top_logprobs]
    if token.token not in dict(alternatives):
        alternatives.append((token.token, token.logprob))
    try:
        value, off_scale = expected_score(alternatives, rubric.low, rubric.high)
    except (ValueError, TypeError) as error:
        raise log_probabilities_unavailable(rubric.model, str(error)) from error
    return Run(value, reply, None if value is not None else Missing.UNPARSED, off_scale_probability=off_scale)


async def _all(runs: list[Coroutine[Any, Any, Run]]) -> tuple[Run, ...]:
    tasks = [asyncio.ensure_future(run) for run in runs]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _steps_unparsed(model: str, detail: str) -> FailedPrecondition:
    return FailedPrecondition(
        "STEPS_UNPARSED",
        "judge model {model} wrote no numbered list of evaluation steps ({detail}): use another model or bring the steps in the request",
        model=model,
        detail=detail,
    )
