"""How a trial ended, in a folder of its own: `runs/<name>-<key>/outcome.json`. Knows no stage."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from flows.analysis.analyse import Analysis
    from flows.data.knowledge import Knowledge
    from flows.stages.search import Search
    from flows.stages.train import TrainedAdapter


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict and where to read more. `gate` is `pass` when the primary arm is better or non-inferior, else `fail`."""

    key: str
    folder: str
    finished: str
    sentence: str
    verdict: str
    also: tuple[str, ...]
    """The other contrasts on the primary criterion, in short."""
    contrasts: int
    notes: tuple[str, ...]
    """What to read the primary contrast with care for."""
    gate: str
    seconds: float
    tokens: int
    trained_tokens: int
    cost_usd: float | None
    items: int
    arms: int
    promoted: str = ""
    """What the alias of the spec's `promote` stands for since; empty where it was left as it was."""
    knowledge: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Training questions by how well their base knows them, for families that asked for it: family -> class -> questions."""

    searches: tuple[Mapping[str, Any], ...] = ()
    """Searches for settings: `family`, `size`, `seed`, `wanted` and `trials`, each with `settings`, `evaluation_loss` (null where it
    failed), `seconds`, `trained_tokens`, `adapter`, `error` and `taken`."""

    @classmethod
    def of(
        cls,
        analysis: Analysis,
        folder: Path,
        key: str,
        seconds: float,
        adapters: Iterable[TrainedAdapter],
        finished: datetime,
        knowledge: Mapping[str, Knowledge],
        searches: Mapping[str, Search],
    ) -> Outcome:
        """From the analysis of a trial."""
        from flows.report.content import gate_passes  # noqa: PLC0415  brings the statistics, which reading an outcome does not need

        # By name: what was trained once is counted once, however many asked for it.
        trained = {adapter.name: adapter.trained_tokens for adapter in adapters}
        trained |= {one.adapter: one.trained_tokens for search in searches.values() for one in search.tried if one.adapter}
        totals = analysis.totals
        counted = totals.prompt_tokens + totals.completion_tokens + totals.judge_prompt_tokens + totals.judge_completion_tokens
        counted += sum(known.prompt_tokens + known.completion_tokens for known in knowledge.values())
        costs = (totals.cost_usd, totals.judge_cost_usd, *(known.cost_usd for known in knowledge.values()))
        return cls(
            key=key,
            folder=str(folder),
            finished=finished.isoformat(timespec="seconds"),
            sentence=analysis.primary.sentence,
            verdict=analysis.primary.verdict.value,
            also=tuple(one.short for one in analysis.contrasts if not one.primary and one.criterion == analysis.primary.criterion),
            contrasts=len(analysis.contrasts),
            notes=analysis.primary.notes,
            gate="pass" if gate_passes(analysis.primary) else "fail",
            seconds=seconds,
            tokens=counted,
            trained_tokens=sum(trained.values()),
            cost_usd=None if None in costs else sum(cost or 0.0 for cost in costs),
            items=analysis.items,
            arms=len(analysis.arms),
            knowledge={family: known.counts for family, known in knowledge.items()},
            searches=tuple(one.plain() for one in searches.values()),
        )

    @property
    def report(self) -> Path:
        """The page."""
        return Path(self.folder) / "report.html"


def run_folder(runs: Path, name: str, key: str) -> Path:
    """Folder of the run with this key."""
    return runs / f"{name}-{key[:6]}"


def save(outcome: Outcome) -> None:
    """Written last and whole: a run with an outcome is finished."""
    partial = Path(outcome.folder) / "outcome.json.partial"
    partial.write_text(json.dumps(asdict(outcome), indent=1), encoding="utf-8")
    partial.replace(Path(outcome.folder) / "outcome.json")


def read(folder: Path) -> Outcome | None:
    """The outcome of a finished run; None when it is not finished."""
    try:
        text = (folder / "outcome.json").read_text(encoding="utf-8")
        return TypeAdapter(Outcome).validate_json(text)
    except (OSError, ValidationError):
        return None
