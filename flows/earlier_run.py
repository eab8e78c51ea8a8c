"""Pairs of answers from a finished run: what its folder keeps of questions, passages, answers and judgements. Knows no stage, no service.

Only answers to one and the same prompt are paired. What an answer was given to is made again from the question and the passages that it
was shown, by this trial's template, and must have the hash that the generator gave; so a pair's prompt is, to the letter, what the
generator was sent. Answers among worked examples have another hash and are left out, as are those of arms that saw other passages from
each other's pairs.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from flows.data.preferences import Pair, Turn
from flows.errors import UserError
from flows.prompting import Template, prompt_hash
from flows.records import Answer, Item, Judgement, Passage
from flows.store import digest
from flows.training_spec import PreferencesSpec

Record = TypeVar("Record")

TABLES = ("items", "passages", "answers", "judgements")
"""Files that a run's folder must hold, each `.parquet`."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run kept."""

    items: tuple[Item, ...]
    passages: tuple[Passage, ...]
    answers: tuple[Answer, ...]
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Different answers to one prompt, with their scores; `whole` are those that did not run into the token limit."""

    item: Item
    prompt: tuple[Turn, ...]
    scores: Mapping[str, float]
    whole: frozenset[str]


def tables(folder: Path) -> list[Path]:
    """The files of a run that pairs are made from. UserError when it is no finished run."""
    files = [folder / f"{name}.parquet" for name in TABLES]
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; `tunetrial runs` lists finished runs, and `run` is the folder of one")
    if not (folder / "outcome.json").is_file():
        raise UserError(f"{folder}: is no finished run: it holds no outcome.json. Run its trial to the end first")
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{folder}: holds no {', '.join(missing)}: it was written by an older version. Remove the folder and run its trial again: "
            "answers and judgements are kept, so that it costs nothing"
        )
    return files


def files_of(spec: PreferencesSpec, resolve: Callable[[Path], Path]) -> dict[str, Path]:
    """The files that pairs come from, by their names in the spec; `resolve` makes its paths absolute. UserError when there are none."""
    if spec.run is not None:
        return {str(spec.run / file.name): file for file in tables(resolve(spec.run))}
    assert spec.file is not None  # noqa: S101  the spec has one of the two
    path = resolve(spec.file)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return {str(spec.file): path}


def pairs_of_run(folder: Path, spec: PreferencesSpec, template: Template) -> tuple[tuple[Pair, ...], dict[str, int]]:
    """The pairs, and what was left out on the way, by reason. UserError when there is nothing to pair, with what to change."""
    run = _read(folder)
    contestants = _contestants(folder, run, spec)
    counts: Counter[str] = Counter()
    answers = [answer for answer in run.answers if answer.contestant in contestants]
    scored = _scores(run.judgements, spec.criterion)
    groups = _groups(run, answers, scored, template, counts)
    if answers and counts["answers to another prompt"] == len(answers):
        raise UserError(
            f"{folder}: none of its {len(answers)} answers was given to a prompt of {template.name}, by which this trial asks: it used "
            "another template or system turn, or showed worked examples. Give this trial the same `prompt`, or name arms without shots"
        )
    pairs: list[Pair] = []
    for found in groups.values():
        made = _pairs(found, spec)
        counts["questions without two answers so far apart"] += not made
        pairs += made
    told = {"questions": len(groups), "answers": len(answers), **counts, "pairs": len(pairs)}
    return tuple(pairs), {name: count for name, count in told.items() if count or name in ("questions", "answers", "pairs")}


def _read(folder: Path) -> _Run:
    tables(folder)

    def records(name: str, record: type[Record]) -> tuple[Record, ...]:
        try:
            rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
            return TypeAdapter(tuple[record, ...]).validate_python(rows)  # type: ignore[valid-type]
        except (OSError, ValidationError) as error:
            raise UserError(f"{folder / name}.parquet cannot be read: {str(error).splitlines()[0]}") from None

    return _Run(records("items", Item), records("passages", Passage), records("answers", Answer), records("judgements", Judgement))


def _contestants(folder: Path, run: _Run, spec: PreferencesSpec) -> frozenset[str]:
    """Those whose answers are taken. An arm may be named as a contestant (`raft-300-s1`), with its size, or as the family."""
    judged = sorted({judgement.criterion for judgement in run.judgements})
    if spec.criterion not in judged:
        raise UserError(f"{folder}: was not judged on {spec.criterion!r}; its criteria are {', '.join(judged) or 'none'}")
    known = sorted({answer.contestant for answer in run.answers})
    found: list[str] = []
    for arm in spec.arms:
        exact = [one for one in known if re.fullmatch(rf"{re.escape(arm)}(-s\d+)?", one)]
        of_family = [one for one in known if re.fullmatch(rf"{re.escape(arm)}-\d+(-s\d+)?", one)]
        if not exact and not of_family:
            raise UserError(f"{folder}: has no arm {arm!r}; there answered {', '.join(known)}")
        found += exact or of_family
    return frozenset(found if spec.arms else known)


def _scores(judgements: Iterable[Judgement], criterion: str) -> dict[tuple[str, str, int], float]:
    """The mean over the judge's runs that gave a score, by contestant, item and sample; none where no run did."""
    runs: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for judgement in judgements:
        if judgement.criterion == criterion and judgement.score is not None:
            runs[judgement.contestant, judgement.item, judgement.sample].append(judgement.score)
    return {key: sum(scores) / len(scores) for key, scores in runs.items()}


def _groups(
    run: _Run, answers: Iterable[Answer], scored: Mapping[tuple[str, str, int], float], template: Template, counts: Counter[str]
) -> dict[str, list[_Group]]:
    """Answers by item and prompt. What cannot be used is counted."""
    items = {item.id: item for item in run.items}
    prompts = _Prompts({passage.id: passage for passage in run.passages}, template)
    texts: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    whole: dict[tuple[str, str], set[str]] = defaultdict(set)
    found: dict[str, list[_Group]] = {}
    for answer in answers:
        found.setdefault(answer.item, [])
        score = scored.get((answer.contestant, answer.item, answer.sample))
        if not prompts.made(items[answer.item], answer):
            counts["answers to another prompt"] += 1
        elif answer.text is None or score is None:
            counts["answers without a score"] += 1
        else:
            texts[answer.item, answer.prompt_hash][answer.text].append(score)
            if answer.finish_reason != "length":
                whole[answer.item, answer.prompt_hash].add(answer.text)
    for (item, prompt), scores in texts.items():
        means = {text: sum(several) / len(several) for text, several in scores.items()}
        found[item].append(_Group(items[item], prompts.by_hash[prompt], means, frozenset(whole[item, prompt])))
    return found


class _Prompts:
    """Prompts made again, by their hashes."""

    def __init__(self, passages: Mapping[str, Passage], template: Template) -> None:
        self._passages, self._template = passages, template
        self.by_hash: dict[str, tuple[Turn, ...]] = {}
        self._seen: set[tuple[str, tuple[str, ...]]] = set()

    def made(self, item: Item, answer: Answer) -> bool:
        """Whether the prompt of this answer could be made again."""
        shown = (item.id, answer.passages)
        if shown not in self._seen and all(name in self._passages for name in answer.passages):
            turns = self._template.turns(item.question, [self._passages[name] for name in answer.passages])
            self.by_hash[prompt_hash(turns)] = tuple(turns)
        self._seen.add(shown)
        return answer.prompt_hash in self.by_hash


def _pairs(groups: Iterable[_Group], spec: PreferencesSpec) -> list[Pair]:
    """The pairs of one item that are furthest apart; of equal ones, which is decided by their hashes."""
    found: list[tuple[float, Pair]] = []
    for group in groups:
        item = group.item
        for one, other in combinations(sorted(group.scores), 2):
            chosen, rejected = (one, other) if group.scores[one] > group.scores[other] else (other, one)
            gap = group.scores[chosen] - group.scores[rejected]
            # A text that was cut off is no example of how to answer.
            if gap >= spec.min_gap and chosen in group.whole:
                name = digest([item.id, group.prompt, chosen, rejected])
                found.append((gap, Pair(name, item.id, item.cluster, item.question, item.references, group.prompt, chosen, rejected)))
    found.sort(key=lambda entry: (-entry[0], entry[1].id))
    return [pair for _, pair in found[: spec.pairs_per_item]]
