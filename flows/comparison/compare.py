"""Two finished runs side by side: what differs in their inputs, what can be compared, how the scores of arms that both have moved, which
verdicts changed. Knows run folders, no stage and no screen.

**What can be compared.** Items are paired by id, and only where question, references, answerability and cluster are the same in both.
Scores of a criterion are held against each other only where both runs judged by the same rubric, to the hash. All else is named, with
the reason, and not computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from flows.comparison.inputs import InputDifference, input_differences
from flows.comparison.moves import Move, moves
from flows.comparison.verdicts import VerdictPair, verdict_pairs
from flows.errors import UserError
from flows.finished_run import FinishedRun
from flows.records import Item


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One of the two."""

    run: str
    folder: str
    finished: str
    verdict: str
    sentence: str


@dataclass(frozen=True, slots=True)
class CommonItems:
    """Test items of the two runs. `changed` have the same id, but not the same question, references or cluster."""

    common: int
    changed: int
    only_first: int
    only_second: int

    @property
    def same(self) -> bool:
        """Whether both runs asked the same questions."""
        return self.common > 0 and not (self.changed or self.only_first or self.only_second)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The second run against the first. `not_comparable` says what was not computed, and why; `notes` what to read the rest with."""

    first: RunSummary
    second: RunSummary
    comparable: bool
    inputs: tuple[InputDifference, ...]
    items: CommonItems
    not_comparable: tuple[str, ...]
    notes: tuple[str, ...]
    alpha: float
    moves: tuple[Move, ...]
    verdicts: tuple[VerdictPair, ...]


def compare(first: FinishedRun, second: FinishedRun) -> Comparison:
    """Compares two runs. Raises UserError when they are one run, or when a folder lacks a table."""
    if first.folder == second.folder:
        raise UserError(f"{first.name} is given twice: name two runs")
    items, common = _common(first.records("items", Item), second.records("items", Item))
    criteria, refused = _criteria(first, second)
    arms, lonely = _arms(first, second)
    alpha = min(run.report["settings"]["analysis"]["alpha"] for run in (first, second))
    if not items:
        refused = ["nothing: the runs have no test item in common"]
    moved = moves(first, second, items, arms, criteria, alpha=alpha) if items else ()
    return Comparison(
        first=_summary(first),
        second=_summary(second),
        comparable=bool(moved),
        inputs=input_differences(first.report, second.report),
        items=common,
        not_comparable=(*refused, *lonely),
        notes=_notes(first, second, common),
        alpha=alpha,
        moves=moved,
        verdicts=verdict_pairs(first.report, second.report, same_items=common.same, criteria=criteria),
    )


def _summary(run: FinishedRun) -> RunSummary:
    return RunSummary(run.name, str(run.folder), run.outcome.finished, run.outcome.verdict, run.outcome.sentence)


def _common(first: tuple[Item, ...], second: tuple[Item, ...]) -> tuple[tuple[Item, ...], CommonItems]:
    ones, others = {item.id: item for item in first}, {item.id: item for item in second}
    both = [item for name, item in sorted(ones.items()) if name in others]
    same = tuple(item for item in both if _asked(item) == _asked(others[item.id]))
    return same, CommonItems(len(same), len(both) - len(same), len(ones) - len(both), len(others) - len(both))


def _asked(item: Item) -> tuple[object, ...]:
    return item.question, item.references, item.answerable, item.cluster


def _criteria(first: FinishedRun, second: FinishedRun) -> tuple[tuple[str, ...], list[str]]:
    """Criteria that both judged by one rubric, and why the others are left out."""
    ones, others = ({rubric["criterion"]: rubric["hash"] for rubric in run.report["rubrics"]} for run in (first, second))
    found, refused = [], []
    for criterion in dict.fromkeys([*ones, *others]):
        if criterion in ones and ones[criterion] == others.get(criterion):
            found.append(criterion)
        elif criterion in ones and criterion in others:
            refused.append(f"contrasts on {criterion}: the rubrics differ ({ones[criterion][:8]} and {others[criterion][:8]})")
        else:
            refused.append(f"contrasts on {criterion}: {(second if criterion in ones else first).name} was not judged on it")
    return tuple(found), refused


def _arms(first: FinishedRun, second: FinishedRun) -> tuple[tuple[str, ...], list[str]]:
    ones, others = ([arm["arm"] for arm in run.report["arms"]] for run in (first, second))
    lonely = [f"{arm}: only in {first.name}" for arm in ones if arm not in others]
    lonely += [f"{arm}: only in {second.name}" for arm in others if arm not in ones]
    return tuple(arm for arm in ones if arm in others), lonely


def _notes(first: FinishedRun, second: FinishedRun, items: CommonItems) -> tuple[str, ...]:
    notes = []
    if items.common and not items.same:
        total = items.common + items.changed
        left = f"{total - items.common + items.only_first} of {first.name} and {total - items.common + items.only_second} of {second.name}"
        notes.append(f"the runs asked different questions: differences are over the {items.common} that both have, without {left}")
    if first.report["settings"]["analysis"]["alpha"] != second.report["settings"]["analysis"]["alpha"]:
        notes.append("the runs have different alphas: intervals are at the smaller one")
    if first.report["inputs"]["run"] == second.report["inputs"]["run"]:
        notes.append("both runs were made from the same inputs")
    return tuple(notes)
