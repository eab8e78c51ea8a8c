"""What the table of questions on the page works on, as plain JSON. Knows no markup.

Texts that repeat (answers of several seeds, replies of a deterministic judge) are stored once, in `strings`, and named by their place.
Scores of arms are the analysis' own, averaged over seeds, samples and judge runs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from flows.analysis.paired import over_seeds
from flows.analysis.scores import score_table
from flows.records import Answer, Hit, Item, Judgement
from flows.report.content import TrialReport

LARGEST = 6_000_000
"""Characters. Above this, judge replies are shortened until the page stays easy to open; the Parquet tables have them whole."""
_REPLY_LIMITS = (None, 1000, 300, 80)


class _Strings:
    """Places of texts in one list."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def place(self, text: str | None) -> int | None:
        return None if text is None else self.texts.setdefault(text, len(self.texts))


def item_json(report: TrialReport) -> Markup:
    """The data as JSON that is safe inside a script element, with replies as long as fit."""
    text = ""
    for limit in _REPLY_LIMITS:
        text = json.dumps(item_data(report, reply_limit=limit), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        if len(text) <= LARGEST:
            break
    # No "<" or ">" is left, so nothing inside ends the element or starts a comment; U+2028 and U+2029 end lines in old script parsers.
    unsafe: dict[str, str | int | None] = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return Markup(text.translate(str.maketrans(unsafe)))  # noqa: S704  # escaped in the line above


def item_data(report: TrialReport, *, reply_limit: int | None = None) -> dict[str, Any]:
    """The data. `reply_limit` is the number of characters kept of each judge reply."""
    analysis = report.analysis
    items = sorted(report.items, key=lambda item: item.id)
    table = score_table(items, report.contestants, report.judgements)
    arms, criteria = tuple(table.arms), table.criteria
    scores = {key: over_seeds(values) for key, values in table.scores.items()}
    strings = _Strings()
    hits: dict[str, list[Hit]] = defaultdict(list)
    answers: dict[str, list[Answer]] = defaultdict(list)
    judged: dict[tuple[str, str, int], list[Judgement]] = defaultdict(list)
    for hit in report.hits:
        hits[hit.item].append(hit)
    for answer in report.answers:
        answers[answer.item].append(answer)
    for judgement in report.judgements:
        judged[judgement.contestant, judgement.item, judgement.sample].append(judgement)
    contestant_place = {contestant.id: place for place, contestant in enumerate(report.contestants)}
    used = dict.fromkeys(
        passage
        for item in items
        for passage in (
            *(hit.passage for hit in hits[item.id]),
            *report.gold.get(item.id, ()),
            *(passage for answer in answers[item.id] for passage in (*answer.passages, *answer.cut)),
        )
    )
    passage_place = {passage: place for place, passage in enumerate(used)}
    rows = [
        _item(item, report, passage_place, hits[item.id], strings)
        | {
            "scores": [[_rounded(scores[arm, criterion][place]) for arm in arms] for criterion in criteria],
            "answers": [
                _answer(answer, judged, criteria, passage_place, contestant_place, strings, reply_limit)
                for answer in sorted(answers[item.id], key=lambda answer: (contestant_place[answer.contestant], answer.sample))
            ],
        }
        for place, item in enumerate(items)
    ]
    passages = [
        {
            "id": name,
            "title": report.passages[name].title,
            "heading": report.passages[name].heading,
            "text": strings.place(report.passages[name].text),
        }
        for name in passage_place
    ]
    return {
        "arms": arms,
        "criteria": criteria,
        "control": analysis.settings.control,
        "primary": {"arm": analysis.primary.arm, "criterion": analysis.primary.criterion},
        "contestants": [{"id": contestant.id, "arm": contestant.arm} for contestant in report.contestants],
        "reply_limit": reply_limit,
        "items": rows,
        "passages": passages,
        "strings": list(strings.texts),
    }


def _item(item: Item, report: TrialReport, places: dict[str, int], hits: Sequence[Hit], strings: _Strings) -> dict[str, Any]:
    return {
        "id": item.id,
        "question": item.question,
        "references": item.references,
        "kind": item.kind,
        "cluster": item.cluster,
        "answerable": item.answerable,
        "gold": [places[passage] for passage in report.gold.get(item.id, ())],
        "hits": [
            [places[hit.passage], hit.rank, _rounded(hit.score, 4), hit.lexical_rank, hit.dense_rank, _rounded(hit.rerank_score, 4)]
            for hit in sorted(hits, key=lambda hit: hit.rank)
        ],
    }


def _answer(
    answer: Answer,
    judged: dict[tuple[str, str, int], list[Judgement]],
    criteria: Sequence[str],
    passages: dict[str, int],
    contestants: dict[str, int],
    strings: _Strings,
    reply_limit: int | None,
) -> dict[str, Any]:
    found = sorted(judged[answer.contestant, answer.item, answer.sample], key=lambda one: (criteria.index(one.criterion), one.run))
    metrics = {metric.name: _rounded(metric.value, 3) for judgement in found for metric in judgement.metrics}
    row: dict[str, Any] = {
        "contestant": contestants[answer.contestant],
        "sample": answer.sample,
        "text": strings.place(answer.text),
        "finish": answer.finish_reason,
        "tokens": [answer.prompt_tokens, answer.completion_tokens],
        "ms": round(answer.latency_ms),
        "shown": [passages[passage] for passage in answer.passages],
        "runs": [
            [
                criteria.index(one.criterion),
                one.run,
                _rounded(one.score),
                strings.place(_shortened(one.reply, reply_limit)),
                strings.place(one.error),
            ]
            for one in found
        ],
    }
    # What is rare is left out where it does not apply.
    optional = {
        "metrics": metrics,
        "cut": [passages[passage] for passage in answer.cut],
        "cited": [passages[passage] for passage in answer.cited if passage in passages],
        "abstained": answer.abstained,
        "error": answer.error,
    }
    return row | {name: value for name, value in optional.items() if value}


def _shortened(text: str, limit: int | None) -> str:
    return text if limit is None or len(text) <= limit else text[:limit] + " [\u2026]"


def _rounded(value: float | None, decimals: int = 4) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), decimals)
