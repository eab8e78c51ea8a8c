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

from flows.clients import explain_failure
from flows.connections import exchange
from flows.errors import TrialError, UserError
from flows.records import Answer, Item, Judgement, Metric
from flows.stages.prepare import Prepared
from flows.store import Rows, digest
from flows.trial import Trial

VERSION = 1
_IN_FLIGHT = 64

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
    """What judging has cost, to stop before the budget is exceeded."""

    budget_usd: float | None
    spent_usd: float = 0.0
    calls: int = 0

    def add(self, costs_usd: Sequence[float | None]) -> None:
        if self.budget_usd is not None and None in costs_usd:
            raise UserError(
                "judge.budget_usd is set, but the judge knows no price of its model: give it a price table, or leave out the budget"
            )
        self.spent_usd += sum(cost or 0.0 for cost in costs_usd)
        self.calls += 1

    def allows(self, under_way: int) -> bool:
        if self.budget_usd is None or not self.calls:
            return True
        # Calls under way will cost about what the others did.
        return self.spent_usd + (under_way + 1) * self.spent_usd / self.calls <= self.budget_usd


async def judge(trial: Trial, prepared: Prepared, answers: Sequence[Answer]) -> tuple[tuple[Judgement, ...], tuple[Rubric, ...]]:
    """All judgements in the order of criteria and answers, and the rubrics that they follow."""
    rubrics = tuple(await asyncio.gather(*(_rubric(trial, criterion) for criterion in trial.spec.judge.rubric)))
    items = {item.id: item for item in prepared.test}
    spending = _Spending(trial.spec.judge.budget_usd)
    unique = {(item.id, row.text) for row in answers if row.text is not None for item in (items[row.item],)}
    trial.progress.stage("judge", len(rubrics) * len(unique))
    judged = await asyncio.gather(*(_score(trial, rubric, items, answers, spending) for rubric in rubrics))
    judgements = tuple(row for rows in judged for row in rows)
    trial.progress.finish("judge", f"{len(judgements)} judgements")
    return judgements, rubrics


async def _rubric(trial: Trial, criterion: str) -> Rubric:
    spec = trial.spec.judge
    request = judge_pb2.CreateRubricRequest(criterion=criterion, engine=_ENGINES[spec.engine])
    if spec.engine == "openai":
        request.model, request.mode = spec.model, _MODES[spec.mode]
        if spec.temperature is not None:
            request.temperature = spec.temperature
        if spec.runs is not None:
            request.run_count = spec.runs
    inputs = {"version": VERSION, "request": MessageToDict(request, preserving_proto_field_name=True)}
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


async def _score(
    trial: Trial, rubric: Rubric, items: Mapping[str, Item], answers: Sequence[Answer], spending: _Spending
) -> list[Judgement]:
    rows = Rows(trial.store, "judgements", rubric.hash)
    addressed = [(row, _address(trial, rubric, items[row.item], row)) for row in answers if row.text is not None]
    requests = {address: _request(trial, rubric, items[row.item], row) for row, address in addressed}
    missing = {address: request for address, request in requests.items() if address not in rows}
    trial.progress.advance("judge", len(requests) - len(missing))
    if missing:
        try:
            await _fetch(trial, rubric, missing, rows, spending)
        finally:
            rows.flush()
    return [judgement for row, address in addressed for judgement in _records(rubric, row, rows[address])]


def _address(trial: Trial, rubric: Rubric, item: Item, row: Answer) -> str:
    return digest([VERSION, rubric.hash, item.question, list(item.references), row.text, trial.spec.judge.seed, rubric.run_count])


def _request(trial: Trial, rubric: Rubric, item: Item, row: Answer) -> judge_pb2.JudgeRequest:
    request = judge_pb2.JudgeRequest(rubric=rubric.hash, question=item.question, answer=row.text or "", references=item.references)
    if trial.spec.judge.seed is not None:
        request.seed = trial.spec.judge.seed
    return request


async def _fetch(trial: Trial, rubric: Rubric, missing: Mapping[str, judge_pb2.JudgeRequest], rows: Rows, spending: _Spending) -> None:
    sent = done = 0

    def requests() -> Iterator[judge_pb2.BatchJudgeRequest]:
        nonlocal sent
        # In the order of their hashes: the judge never sees the answers of one arm in a row.
        for address in sorted(missing):
            if not spending.allows(sent - done):
                return
            sent += 1
            yield judge_pb2.BatchJudgeRequest(id=address, judge=missing[address])

    async with trial.services.use("judge") as clients:
        async for response in exchange(clients.judge.BatchJudge, requests(), _IN_FLIGHT):
            done += 1
            if response.HasField("failure"):
                raise explain_failure("judge", response.failure)
            row = _row(response.judge)
            spending.add([run["cost_usd"] for run in row["runs"]])
            rows.add(response.id, row)
            trial.progress.advance("judge", note=rubric.criterion)
    if done < len(missing):
        raise BudgetReached(
            f"judging stopped at {spending.spent_usd:.2f} USD, before the budget of {spending.budget_usd:.2f} USD was exceeded; "
            f"{len(missing) - done} answers are left on {rubric.criterion}. What is judged is kept: raise judge.budget_usd and run again"
        )


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
