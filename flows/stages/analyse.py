"""Stage 8: contrasts, intervals, verdicts. Asks nobody."""

from __future__ import annotations

from collections.abc import Sequence

import anyio.to_thread

from flows.analysis.analyse import Analysis
from flows.analysis.analyse import analyse as compute
from flows.analysis.settings import AnalysisSettings, Primary
from flows.errors import UserError
from flows.records import Answer, Judgement
from flows.stages.judge import Rubric
from flows.stages.prepare import Prepared
from flows.stages.snapshot import Snapshot
from flows.trial import Trial


async def analyse(
    trial: Trial,
    prepared: Prepared,
    snapshot: Snapshot | None,
    answers: Sequence[Answer],
    judgements: Sequence[Judgement],
    rubrics: Sequence[Rubric],
) -> Analysis:
    """The whole analysis; the same for the same answers and judgements. UserError when the settings do not fit what was judged."""
    trial.progress.stage("analyse")
    spec = trial.spec.analysis
    scale = rubrics[0].details
    settings = AnalysisSettings(
        control=spec.control,
        primary=Primary(trial.spec.primary_arm(), spec.primary.criterion),
        margin=spec.margin,
        alpha=spec.alpha,
        bootstrap=spec.bootstrap,
        seed=spec.seed,
        scale=f"{scale['low']}-{scale['high']}",
    )
    tested = {item.id for item in prepared.test}
    hits = [hit for hit in snapshot.hits if hit.item in tested] if snapshot else []
    gold = {item: passages for item, passages in prepared.gold.items() if item in tested}

    def work() -> Analysis:
        try:
            return compute(prepared.test, trial.spec.contestants(), answers, judgements, hits=hits, gold=gold, settings=settings)
        except ValueError as error:
            raise UserError(f"analysis: {error}") from error

    analysis = await anyio.to_thread.run_sync(work)
    trial.progress.finish("analyse", f"{len(analysis.contrasts)} contrasts")
    return analysis
