"""Stage 7: every answer is scored on every criterion. Asks the judge.

A judgement is kept under the hash of rubric, question, references and answer: equal answers of several contestants are judged once, and
none is paid for twice. Contestants' names are never sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict
from tunetrial.judge.v1 import judge_pb2

from flows.clients import ServiceError, explain_failure
from flows.connections import exchange
from flows.errors import TrialError, UserError
from flows.records import Answer, Item, Judgement, Metric
from flows.stages.prepare import Prepared
from flows.store import Rows, digest
from flows.trial import Trial

VERSION = 1
_IN_FLIGHT = 64
# Failures that belong to one answer and would come again: the judgement is missing, the others go on.
_MISSING_REASONS = ("PROMPT_TOO_LONG", "JUDGE_REQUEST_REJECTED")

_ENGINES = {"reference": judge_pb2.ENGINE_REFERENCE, "openai": judge_pb2.ENGINE_OPENAI}
_MODES = {"samples": judge_pb2.SCORE_MODE_SAMPLES, "token_probabilities": judge_pb2.SCORE_MODE_TOKEN_PROBABILITIES}


class BudgetReached(TrialError):
    """Judging stopped before it would cost more than the spec allows."""


@dataclass(frozen=True, slots=True)
class Rubric:
    """A frozen rubric as the judge keeps it; `details` is all of it."""

    hash: str
    criterion: str
    run_count: int
    details: Mapping[str, Any]


@dataclass(slots=True)
class _Spending:
    """What judging this trial has cost so far, stored judgements included, to stop before the budget is exceeded."""

    budget_usd: float | None
    spent_usd: float = 0.0
    priced: int = 0
    under_way: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        costs = [run["cost_usd"] for run in row["runs"]]
        if self.budget_usd is not None and None in costs:
            raise UserError(
                "judge.budget_usd is set, but the judge knows no price of its model: give it a price table, or leave out the budget"
            )
        self.spent_usd += sum(cost or 0.0 for cost in costs)
        self.priced += 1

    def allows(self) -> bool:
        """Whether one more answer may be sent."""
        if self.budget_usd is None or not self.priced:
            return True
        # Calls under way will cost about what the others did.
        return self.spent_usd + (self.under_way + 1) * self.spent_usd / self.priced <= self.budget_usd


async def judge(trial: Trial, prepared: Prepared, answers: Sequence[Answer]) -> tuple[tuple[Judgement, ...], tuple[Rubric, ...]]:
    """All judgements in the order of criteria and answers, and the rubrics that they follow."""
    rubrics = tuple(await asyncio.gather(*(_rubric(trial, criterion) for criterion in trial.spec.judge.rubric)))
    items = {item.id: item for item in prepared.test}
    wanted = [_wanted(trial, rubric, items, answers) for rubric in rubrics]
    trial.progress.stage("judge", sum(len(one.requests) for one in wanted))
    spending = _Spending(trial.spec.judge.budget_usd)
    for one in wanted:
        for address in one.requests:
            if address in one.rows:
                spending.add(one.rows[address])
                trial.progress.advance("judge")
    # One criterion after the other: a budget that runs out leaves whole criteria, and prompts of one rubric share a prefix cache.
    for one in wanted:
        await _fetch(trial, one, spending)
    judgements = tuple(row for one in wanted for row in one.judgements())
    trial.progress.finish("judge", f"{len(judgements)} judgements")
    return judgements, rubrics


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The judgements of one criterion: each answer with its address, a request an address, and the rows that are there."""

    rubric: Rubric
    rows: Rows
    addressed: tuple[tuple[Answer, str], ...]
    requests: Mapping[str, judge_pb2.JudgeRequest]

    def judgements(self) -> Iterator[Judgement]:
        for answer, address in self.addressed:
            yield from _records(self.rubric, answer, self.rows[address])


def _wanted(trial: Trial, rubric: Rubric, items: Mapping[str, Item], answers: Sequence[Answer]) -> _Wanted:
    # A judgement that was paid for goes to disk at once; one that costs only time, with others.
    rows = Rows(trial.store, "judgements", rubric.hash, batch=1 if trial.spec.judge.engine == "openai" else 256)
    addressed = tuple((row, _address(trial, rubric, items[row.item], row)) for row in answers if row.text is not None)
    requests = {address: _request(trial, rubric, items[row.item], row) for row, address in addressed}
    return _Wanted(rubric, rows, addressed, requests)


async def _rubric(trial: Trial, criterion: str) -> Rubric:
    spec = trial.spec.judge
    request = judge_pb2.CreateRubricRequest(criterion=criterion, engine=_ENGINES[spec.engine])
    if spec.engine == "openai":
        request.model, request.mode = spec.model, _MODES[spec.mode]
        if spec.temperature is not None:
            request.temperature = spec.temperature
        if spec.runs is not None:
            request.run_count = spec.runs
    inputs = {
        "version": VERSION,
        "request": MessageToDict(request, preserving_proto_field_name=True),
        "abstentions": list(trial.spec.prompt.abstentions),
    }
    key = digest(inputs)
    if not trial.store.has("rubrics", key):
        async with trial.services.use("judge") as clients:
            response = await clients.judge.CreateRubric(request, timeout=600)
        details, usage = (
            MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            for message in (response.rubric, response.usage)
        )
        details["writing_steps"] = usage
        trial.store.write_json("rubrics", key, "rubric.json", details)
        trial.store.finish("rubrics", key, inputs)
    details = trial.store.read_json("rubrics", key, "rubric.json")
    return Rubric(details["hash"], criterion, details["run_count"], details)


def _address(trial: Trial, rubric: Rubric, item: Item, row: Answer) -> str:
    return digest([VERSION, rubric.hash, item.question, list(item.references), row.text, trial.spec.judge.seed, rubric.run_count])


def _request(trial: Trial, rubric: Rubric, item: Item, row: Answer) -> judge_pb2.JudgeRequest:
    request = judge_pb2.JudgeRequest(rubric=rubric.hash, question=item.question, answer=row.text or "", references=item.references)
    if trial.spec.judge.seed is not None:
        request.seed = trial.spec.judge.seed
    return request


async def _fetch(trial: Trial, wanted: _Wanted, spending: _Spending) -> None:
    # In the order of their hashes: the judge never sees the answers of one arm in a row.
    missing = {
        address: judge_pb2.BatchJudgeRequest(id=address, judge=request)
        for address, request in sorted(wanted.requests.items())
        if address not in wanted.rows
    }
    if not missing:
        return
    failures: list[ServiceError] = []

    def go_on() -> bool:
        if failures or not spending.allows():
            return False
        spending.under_way += 1
        return True

    done = 0
    try:
        async with trial.services.use("judge") as clients:
            for part in _parts(missing, first_alone=spending.budget_usd is not None and not spending.priced):
                async for response in exchange(clients.judge.BatchJudge, part, _IN_FLIGHT, go_on):
                    spending.under_way -= 1
                    done += 1
                    if response.HasField("failure") and response.failure.reason not in _MISSING_REASONS:
                        # Others are under way and paid for: their replies are waited for and kept.
                        failures.append(explain_failure("judge", response.failure))
                        continue
                    row = _row(response.judge) if response.HasField("judge") else _missing(wanted.rubric, response.failure.reason)
                    wanted.rows.add(response.id, row)
                    spending.add(row)
                    trial.progress.advance("judge", note=wanted.rubric.criterion)
    finally:
        wanted.rows.flush()
    if failures:
        raise failures[0]
    if done < len(missing):
        raise BudgetReached(
            f"judging stopped at {spending.spent_usd:.2f} USD, since one more answer could exceed the budget of "
            f"{spending.budget_usd:.2f} USD; {len(missing) - done} answers are left on {wanted.rubric.criterion}. "
            "What is judged is kept: raise judge.budget_usd and run again"
        )


def _parts(missing: Mapping[str, Any], *, first_alone: bool) -> Iterator[Mapping[str, Any]]:
    """All at once; or one alone, which tells the price, and then the others."""
    addresses = list(missing)
    cuts = (addresses[:1], addresses[1:]) if first_alone else (addresses,)
    yield from ({address: missing[address] for address in cut} for cut in cuts)


def _missing(rubric: Rubric, reason: str) -> dict[str, Any]:
    """The row of an answer that this judge cannot read: its runs are missing, with the reason."""
    run = {"score": None, "reply": "", "error": reason.lower(), "prompt_tokens": 0, "completion_tokens": 0, "cost_usd": 0.0}
    return {"runs": [run] * rubric.run_count, "metrics": {}}


def _row(response: judge_pb2.JudgeResponse) -> dict[str, Any]:
    runs = [
        {
            "score": run.score if run.HasField("score") else None,
            "reply": run.reply,
            "error": None if run.HasField("score") else judge_pb2.MissingReason.Name(run.missing).removeprefix("MISSING_REASON_").lower(),
            "prompt_tokens": run.usage.prompt_tokens,
            "completion_tokens": run.usage.completion_tokens,
            "cost_usd": run.usage.cost_usd if run.usage.HasField("cost_usd") else None,
        }
        for run in response.runs
    ]
    return {"runs": runs, "metrics": dict(sorted(response.metrics.items()))}


def _records(rubric: Rubric, answer: Answer, row: Mapping[str, Any]) -> Iterator[Judgement]:
    metrics = tuple(Metric(name, value) for name, value in row["metrics"].items())
    for number, run in enumerate(row["runs"]):
        yield Judgement(
            contestant=answer.contestant,
            item=answer.item,
            sample=answer.sample,
            criterion=rubric.criterion,
            run=number,
            metrics=metrics,
            **run,
        )
