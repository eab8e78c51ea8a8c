"""The experiment: what a trial does, in order. It knows the stages and nothing of how they work.

Every stage keeps its results by the hash of what went in, so the flow can be stopped anywhere and run again: it goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prefect import flow, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows.errors import UserError
from flows.outcome import Outcome, run_folder, save
from flows.persistence import WAITS_S, worth_another_try
from flows.progress import Progress, Silent
from flows.spec_file import load
from flows.stages.analyse import analyse
from flows.stages.answer import answer
from flows.stages.judge import judge
from flows.stages.knowledge import knowledge, tagged_families
from flows.stages.preferences import preferences
from flows.stages.prepare import prepare
from flows.stages.promote import promote
from flows.stages.report import Results, report
from flows.stages.search import search, searched_families, settings_of
from flows.stages.snapshot import snapshot
from flows.stages.train import train
from flows.trial import Trial, open_trial

Result = TypeVar("Result")

LISTENER: ContextVar[Progress | None] = ContextVar("listener", default=None)
"""Who is told how far the trial is; set by the command line."""


@flow(name="experiment", flow_run_name="{name}", persist_result=False)
async def experiment(name: str, spec: str, home: str, runs: str) -> Outcome:
    """Runs the trial that the file `spec` describes. `home` keeps results and the services' data, `runs` gets the report."""
    loaded = load(Path(spec))
    trial = open_trial(loaded, Path(home), LISTENER.get() or Silent())
    times: dict[str, float] = {}
    try:
        prepared = await _stage("prepare", times, prepare, trial)
        if tagged_families(trial.spec):
            prepared = await _stage("knowledge", times, knowledge, trial, prepared)
        if any(training.preferences is not None for training in trial.spec.training.values()):
            prepared = await _stage("pairs", times, preferences, trial, prepared)
        searched = await _stage("snapshot", times, snapshot, trial, prepared) if _retrieves(trial) else None
        best = await _stage("search", times, search, trial, prepared, searched) if searched_families(trial) else {}
        adapters = await _stage("train", times, train, trial, prepared, searched, settings_of(trial, best))
        answers, proofs = await _stage("answer", times, answer, trial, prepared, searched, adapters)
        judgements, rubrics = await _stage("judge", times, judge, trial, prepared, answers)
        analysis = await _stage("analyse", times, analyse, trial, prepared, searched, answers, judgements, rubrics)
        _check_unchanged(trial)
        folder = run_folder(Path(runs), name, trial.run_key())
        found = Results(prepared, searched, tuple(adapters.values()), answers, proofs, judgements, rubrics, analysis, best)
        markdown = await _stage("report", times, report, trial, folder, found, times)
        seconds, now = round(sum(times.values()), 1), datetime.now(UTC)
        outcome = Outcome.of(analysis, folder, trial.run_key(), seconds, adapters.values(), now, prepared.knowledge, best)
        save(outcome)
        if trial.spec.promote is not None:
            promoting = partial(promote, alias=trial.spec.promote, passed=outcome.gate == "pass")
            outcome = replace(outcome, promoted=await _stage("promote", times, promoting, trial, adapters))
            save(outcome)
    finally:
        await trial.services.close()
    await _show_in_ui(markdown, outcome, trial)
    return outcome


def _check_unchanged(trial: Trial) -> None:
    """Raises UserError when a file that the trial read has changed since it began: the results would be filed under the wrong key."""
    if trial.read_inputs() != trial.inputs:
        raise UserError("a file that the spec names was changed while the trial ran; run the same command again")


async def _show_in_ui(markdown: str, outcome: Outcome, trial: Trial) -> None:
    try:
        await acreate_markdown_artifact(key="verdict", markdown=markdown, description=outcome.sentence)
    except httpx.HTTPError as error:
        # The trial is finished and its outcome is saved; a UI that is away takes nothing from it.
        trial.progress.say(f"Prefect did not take the verdict as an artifact: {error}")


def _retrieves(trial: Trial) -> bool:
    contexts = (training for training in trial.spec.training.values())
    return any(arm.rag for arm in trial.spec.arms.values()) or any(
        training.context_name == "retrieved" or (training.raft is not None and training.raft.hard) for training in contexts
    )


async def _stage(name: str, times: dict[str, float], work: Callable[..., Awaitable[Result]], trial: Trial, *parts: Any) -> Result:
    """Runs a stage as a Prefect task. A service that died or is away is worth another try: what was done is kept."""
    tries = 0

    async def stage() -> Result:
        nonlocal tries
        tries += 1
        return await work(trial, *parts)

    async def try_again(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
        error = await state.aresult(raise_on_failure=False)
        again = worth_another_try(error, tries)
        if again:
            trial.progress.say(f"{name}: again in {WAITS_S[tries - 1]:g} s; {str(error).splitlines()[0]}")
        return again

    began = time.monotonic()
    wrapped = task(
        name=name,
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(WAITS_S),
        retry_delay_seconds=list(WAITS_S),
        retry_condition_fn=try_again,
    )(stage)
    result = await wrapped()
    times[name] = round(time.monotonic() - began, 3)
    return result
