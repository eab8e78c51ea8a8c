"""A study of retrieval from its spec to its report. It knows the order of the work and nothing of how passages are found or measured.

A study can be stopped anywhere and run again: indexes and searches are kept. One that is finished is only read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread

from flows.analysis.retrieval_study import compare
from flows.clients import ServiceError
from flows.errors import UserError
from flows.outcome import run_folder
from flows.persistence import persistently
from flows.report.study_content import StudyReport
from flows.report.study_export import export, read
from flows.report.versions import versions
from flows.retrieval_study.conditions import Condition, conditions
from flows.retrieval_study.inputs import Study, read_inputs
from flows.retrieval_study.questions import Questions, read_questions
from flows.retrieval_study.tried import Tried, try_all
from flows.stages.snapshot import NO_INDEX, told_reranker
from flows.store import digest

_KNOWN = "studies"
_LISTED = ("files", "corpus", "encoders", "tokenizers")


@dataclass(frozen=True, slots=True)
class Finished:
    """The report of a study as `retrieval.json` has it, and where it is; `again` when it was there already."""

    report: Mapping[str, Any]
    folder: Path
    again: bool


async def run_study(study: Study, runs: Path) -> Finished:
    """Does what is left to do of the study and gives its report."""
    inputs = read_inputs(study)
    wanted = conditions(study.loaded.spec)
    finished = await _finished(study, runs, inputs, wanted)
    if finished is not None:
        return finished
    began = time.monotonic()
    study.progress.stage("read")
    questions = await anyio.to_thread.run_sync(read_questions, study.loaded)
    study.progress.finish("read", f"{len(questions.items)} questions, {len(questions.documents)} documents")
    tried = await try_all(study, questions, wanted)
    study.progress.stage("report")
    report = await anyio.to_thread.run_sync(partial(_report, study, inputs, questions, tried, time.monotonic() - began))
    if read_inputs(study) != inputs:
        raise UserError("a file that the spec names was changed while the study ran; run the same command again")
    folder = _folder(study, runs, inputs, tried.reranker)
    await anyio.to_thread.run_sync(export, report, folder)
    study.store.write_json(_KNOWN, digest(inputs), "index.json", {"index": tried.conditions[0].index})
    study.progress.finish("report", str(folder))
    content = read(folder)
    if content is None:
        raise UserError(f"{folder}: the report was written and cannot be read; is another study writing there?")
    return Finished(content, folder, again=False)


def _folder(study: Study, runs: Path, inputs: Mapping[str, Any], reranker: str) -> Path:
    return run_folder(runs, f"{study.loaded.spec.name}-retrieval", digest({**inputs, "reranker": reranker}))


async def _finished(study: Study, runs: Path, inputs: Mapping[str, Any], wanted: Sequence[Condition]) -> Finished | None:
    """The report, if it was made before. Where conditions rerank, the retriever is asked whether it would still do so by the same model."""
    reranker = ""
    if any(condition.retrieval.rerank for condition in wanted):
        try:
            index = str(study.store.read_json(_KNOWN, digest(inputs), "index.json")["index"])
            told: str | None = await persistently(study.progress, lambda: told_reranker(study.services, index))
        except FileNotFoundError:
            return None
        except ServiceError as error:
            if error.reason in NO_INDEX:
                return None
            raise
        reranker = told or ""
    folder = _folder(study, runs, inputs, reranker)
    content = read(folder)
    return Finished(content, folder, again=True) if content is not None else None


def _report(study: Study, inputs: Mapping[str, Any], questions: Questions, tried: Tried, seconds: float) -> StudyReport:
    """Everything measured. UserError when there was nothing to find."""
    spec = study.loaded.spec
    analysis = compare(questions.items, tried.rankings, spec.grid.depths)
    if analysis is None:
        raise UserError("data: no passage holds the evidence of any question, so there is nothing to measure against")
    return StudyReport(
        name=spec.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        spec=spec.model_dump(mode="json"),
        counts=questions.counts,
        questions={item.id: item.question for item in questions.items},
        conditions=tried.conditions,
        left_out=tried.left_out,
        notes=tried.notes,
        reranker=tried.reranker,
        inputs={name: inputs[name] for name in _LISTED},
        versions=versions(),
        analysis=analysis,
    )
