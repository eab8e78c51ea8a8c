"""Stage 9: the page, and the same as JSON and tables beside it. Asks nobody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread

from flows.analysis.analyse import Analysis
from flows.data.knowledge import Knowledge
from flows.records import Answer, Judgement, Passage
from flows.report.content import TrialReport
from flows.report.export import export
from flows.report.markdown import markdown
from flows.report.versions import versions
from flows.stages.judge import Rubric
from flows.stages.knowledge import tag_rows
from flows.stages.prepare import Prepared
from flows.stages.search import Search
from flows.stages.serve import Proof
from flows.stages.snapshot import Snapshot
from flows.stages.train import TrainedAdapter
from flows.trial import Trial


@dataclass(frozen=True, slots=True)
class Results:
    """All that a trial found."""

    prepared: Prepared
    snapshot: Snapshot | None
    adapters: Sequence[TrainedAdapter]
    answers: Sequence[Answer]
    proofs: Sequence[Proof]
    judgements: Sequence[Judgement]
    rubrics: Sequence[Rubric]
    analysis: Analysis
    searches: Mapping[str, Search]


async def report(trial: Trial, folder: Path, results: Results, times: Mapping[str, float]) -> str:
    """Writes the report into the folder and returns its short form as Markdown."""
    trial.progress.stage("report")
    content = _content(trial, folder, results, times)
    await anyio.to_thread.run_sync(export, content, folder)
    trial.progress.finish("report", str(folder / "report.html"))
    return markdown(content)


def _content(trial: Trial, folder: Path, results: Results, times: Mapping[str, float]) -> TrialReport:
    prepared = results.prepared
    tested = {item.id for item in prepared.test}
    hits = tuple(hit for hit in results.snapshot.hits if hit.item in tested) if results.snapshot else ()
    gold = {item: passages for item, passages in prepared.gold.items() if item in tested}
    wanted = {hit.passage for hit in hits} | {name for names in gold.values() for name in names}
    inputs = trial.inputs
    return TrialReport(
        name=trial.spec.name,
        run_id=folder.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        stages=dict(times),
        spec=trial.spec.model_dump(mode="json"),
        spec_text=trial.loaded.path.read_text(encoding="utf-8"),
        inputs={name: inputs[name] for name in ("files", "corpus", "bases")} | {"run": trial.run_key()},
        counts=dict(prepared.counts),
        leaks=[asdict(leak) for leak in (*prepared.leaks, *(leak for one in prepared.pairs.values() for leak in one.leaks))],
        adapters=[{name: value for name, value in asdict(adapter).items() if name != "uri"} for adapter in results.adapters],
        proofs=[asdict(proof) for proof in results.proofs],
        rubrics=[asdict(rubric) for rubric in results.rubrics],
        template={"name": trial.template.name, **inputs["template"]},
        contestants=trial.spec.contestants(),
        items=prepared.test,
        passages={passage.id: passage for passage in (*(one for one in prepared.passages if one.id in wanted), *_shown(results))},
        gold=gold,
        hits=hits,
        reranker=results.snapshot.reranker if results.snapshot else "",
        knowledge=[_known(trial, family, known) for family, known in prepared.knowledge.items()],
        knowledge_tags=[row for family, known in prepared.knowledge.items() for row in _tags(prepared, family, known)],
        preferences=[_pairs(trial, family, counts.counts) for family, counts in prepared.pairs.items()],
        searches=[one.plain() for one in results.searches.values()],
        answers=results.answers,
        judgements=results.judgements,
        analysis=results.analysis,
        versions=versions(),
    )


def _pairs(trial: Trial, family: str, counts: Mapping[str, int]) -> dict[str, Any]:
    source = trial.spec.training[family].preferences
    return {"family": family, "source": str((source.run or source.file) if source else ""), "counts": dict(counts)}


def _known(trial: Trial, family: str, known: Knowledge) -> dict[str, Any]:
    settings = trial.spec.training[family].knowledge
    return {
        "family": family,
        "model": known.model,
        "questions": len(known.tags),
        "classes": known.counts,
        "keep": known.keep,
        "evaluate_on": known.evaluate_on,
        "settings": settings.model_dump(mode="json", exclude={"keep", "evaluate_on"}) if settings else {},
        **{name: getattr(known, name) for name in ("answers", "prompt_tokens", "completion_tokens", "cost_usd")},
    }


def _tags(prepared: Prepared, family: str, known: Knowledge) -> Iterator[dict[str, Any]]:
    for row in tag_rows(known.tags, prepared):
        yield {"family": family, **row, "kept": known.keeps(row["item"])}


def _shown(results: Results) -> Iterator[Passage]:
    """What prompts showed of the passages found for the test questions."""
    if results.snapshot is not None:
        for item in results.prepared.test:
            yield from results.snapshot.shown(results.prepared, item.id)
