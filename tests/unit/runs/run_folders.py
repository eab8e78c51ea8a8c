"""Small run folders, as a trial leaves them but for the page: made from chosen scores, through the analysis and the export's own forms."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flows.analysis.analyse import analyse
from flows.analysis.settings import AnalysisSettings, Primary
from flows.outcome import Outcome, save
from flows.records import Answer, Contestant, Item, Judgement
from flows.report.content import TrialReport
from flows.report.export import machine_readable
from flows.store import to_table

Scores = Mapping[str, Sequence[float | None]]
"""Contestant -> score of each item."""

BASE, TUNED = Contestant("base", "base", "reader"), Contestant("tuned", "tuned", "reader")
SEEDED = tuple(Contestant("raft", "raft", "reader", "raft", 100, seed) for seed in (1, 2))


def items(count: int, *, prefix: str = "q", cluster_size: int = 2) -> list[Item]:
    return [Item(f"{prefix}{n:03}", f"What is {prefix}{n}?", (f"It is {n}.",), f"paper-{n // cluster_size:03}") for n in range(count)]


def write_run(
    folder: Path,
    scores: Mapping[str, Scores],
    *,
    who: Sequence[Contestant] = (BASE, TUNED),
    asked: Sequence[Item] | None = None,
    primary: str = "tuned",
    control: str = "base",
    margin: float = 0.2,
    rubrics: Mapping[str, str] | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
    weights: Mapping[tuple[str, int, int], str] | None = None,
    spec: Mapping[str, Any] | None = None,
    key: str = "k" * 64,
    name: str = "small",
    **changes: Any,
) -> Path:
    """A finished run. `scores` is by criterion; its first is the primary one."""
    asked = asked or items(len(next(iter(next(iter(scores.values())).values()))))
    answers = [_answer(one.id, item.id, (texts or {}).get(one.id, ["same"] * len(asked))[n]) for one in who for n, item in enumerate(asked)]
    judgements = [
        _judgement(contestant, item.id, criterion, score)
        for criterion, by_contestant in scores.items()
        for contestant, values in by_contestant.items()
        for item, score in zip(asked, values, strict=True)
    ]
    settings = AnalysisSettings(control, Primary(primary, next(iter(scores))), margin, bootstrap=1000)
    analysis = analyse(asked, who, answers, judgements, hits=(), gold={}, settings=settings)
    report = TrialReport(
        name=name,
        run_id=folder.name,
        created="2026-02-03T10:11:12+00:00",
        stages={},
        spec={"name": name, "models": {"reader": {"base": "./base"}}, "arms": _arms(who), **(spec or {})},
        spec_text="",
        inputs={"files": {"a.jsonl": "aa"}, "corpus": {}, "bases": {"reader": "bb"}, "run": key, **changes.pop("inputs", {})},
        counts={"evidence_unmapped": 0, "rows_skipped": {}, "bad_rows": []},
        leaks=[],
        adapters=[_adapter(*place, sha256) for place, sha256 in (weights or {}).items()],
        proofs=[],
        rubrics=[_rubric(criterion, (rubrics or {}).get(criterion, f"hash-{criterion}")) for criterion in scores],
        template={"name": "plain/v1", "user": "{{ question }}", "system": None, "abstentions": []},
        contestants=who,
        items=asked,
        passages={},
        gold={},
        hits=(),
        answers=answers,
        judgements=judgements,
        analysis=analysis,
        versions={"python": "3.11.9", **changes.pop("versions", {})},
        **changes,
    )
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(machine_readable(report)), encoding="utf-8")
    (folder / "report.html").write_text("<p>the page</p>", encoding="utf-8")
    for table, record, records in (("items", Item, asked), ("answers", Answer, answers), ("judgements", Judgement, judgements)):
        pq.write_table(to_table(record, records), folder / f"{table}.parquet")
    save(Outcome.of(analysis, folder, key, 61.5, (), datetime(2026, 2, 3, 10, 11, 12, tzinfo=UTC), {}, {}))
    return folder


def _arms(who: Sequence[Contestant]) -> dict[str, Any]:
    return {one.family: {"adapter": one.adapter, "model": None if one.adapter else one.model} for one in who}


def _answer(contestant: str, item: str, text: str) -> Answer:
    return Answer(contestant, item, 0, text, False, "stop", 10, 2, 5.0, None, "f" * 64, (), (), ())


def _judgement(contestant: str, item: str, criterion: str, score: float | None) -> Judgement:
    return Judgement(contestant, item, 0, criterion, 0, score, "", 0, 0, None, error=None if score is not None else "unparsed")


def _rubric(criterion: str, sha256: str) -> dict[str, Any]:
    details = {"hash": sha256, "criterion": criterion, "engine": "ENGINE_OPENAI", "model": "judge", "mode": "SCORE_MODE_SAMPLES"}
    return {"hash": sha256, "criterion": criterion, "run_count": 1, "details": details | {"create_time": sha256[::-1]}}


def _adapter(family: str, size: int, seed: int, sha256: str) -> dict[str, Any]:
    place = {"family": family, "size": size, "seed": seed, "name": f"{family}-{size}-s{seed}", "weights_sha256": sha256}
    return place | {"truncated": 0, "masked": 0, "short": 0}
