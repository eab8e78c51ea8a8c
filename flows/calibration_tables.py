"""How a calibration looks on a screen: the corrected verdict, then tables by criterion. Knows no file and computes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.analysis.agreement import Confusion, Figure
from flows.analysis.bootstrap import Interval
from flows.analysis.calibration import Calibration, CriterionCalibration
from flows.analysis.corrected_contrasts import CorrectedContrast
from flows.analysis.prediction_powered import Corrected
from flows.analysis.rogan_gladen import Share

_COLOURS = {"BETTER": "green", "NON_INFERIOR": "green", "WORSE": "red", "INCONCLUSIVE": "yellow"}
_WIDEST_CONFUSION = 11


def show(console: Console, found: Calibration) -> None:
    """All of it."""
    if found.primary is not None:
        _primary(console, found.primary)
    for criterion in found.criteria:
        _criterion(console, criterion)
    for note in found.notes:
        console.print(f"note: {escape(note)}", highlight=False)


def _primary(console: Console, found: CorrectedContrast) -> None:
    judged = found.judged
    console.print(f"\n[bold {_COLOURS[found.verdict]}]{escape(found.sentence)}[/]", highlight=False)
    alike = "the same verdict" if judged.verdict is found.verdict else "another verdict"
    console.print(f"by the judge alone ({alike}): {escape(judged.short)}", highlight=False)
    console.print(f"mean error of the judge's difference: {escape(_value(found.bias))}", highlight=False)
    for note in found.notes:
        console.print(f"note: {escape(note)}", highlight=False)


def _criterion(console: Console, found: CriterionCalibration) -> None:
    agreed, people = found.agreement, found.annotators
    console.print(f"\n[bold]{escape(found.criterion)}[/]: {agreed.answers} labelled answers in {agreed.clusters} clusters", highlight=False)
    figures = (("Spearman", agreed.spearman), ("Kendall tau-b", agreed.kendall), ("weighted kappa", agreed.weighted_kappa))
    same = "" if agreed.same is None else f" · same score {100 * agreed.same:.0f} %"
    console.print(f"judge and people: {' · '.join(f'{name} {_figure(figure)}' for name, figure in figures)}{same}", highlight=False)
    if people.answers:
        shared = f"{people.people} people, {people.answers} answers scored by several"
        console.print(f"people with each other: Krippendorff's alpha {_figure(people.alpha)} ({shared})", highlight=False)
    rows = [
        (arm.arm, str(arm.answers), _number(arm.judge), _value(arm.bias), _value(arm.people), _value(arm.corrected), _power(arm.corrected))
        for arm in found.arms
    ]
    _table(console, ("arm", "labels", "judge", "judge's error", "labels alone", "corrected", "power"), rows)
    pairs = [
        (
            f"{one.arm} - {one.control}",
            str(one.corrected.labelled),
            f"{_number(one.judged.difference)}{_ends(one.judged.interval)}",
            _value(one.bias),
            _value(one.people),
            _value(one.corrected),
            _power(one.corrected),
            one.verdict.replace("_", "-"),
        )
        for one in found.contrasts
    ]
    if pairs:
        _table(console, ("difference", "pairs", "judge", "judge's error", "labels alone", "corrected", "power", "verdict"), pairs)
    if found.shares:
        console.print(f"share of good answers, those of {found.good_from:g} or more (Rogan-Gladen):", highlight=False)
        lines = [
            (
                one.arm,
                *map(_share, (one.apparent, one.sensitivity, one.specificity)),
                _corrected_share(one.corrected),
                "" if one.difference is None else _corrected_share(one.difference),
            )
            for one in found.shares
        ]
        _table(console, ("arm", "judge", "sensitivity", "specificity", "corrected", "difference"), lines)
    if len(agreed.confusion.categories) <= _WIDEST_CONFUSION:
        _confusion(console, agreed.confusion)


def _confusion(console: Console, found: Confusion) -> None:
    rows = [
        (str(category), *(str(count) if count else "." for count in counts))
        for category, counts in zip(found.categories, found.counts, strict=True)
    ]
    console.print("people's score (rows) against the judge's (columns):", highlight=False)
    _table(console, ("", *map(str, found.categories)), rows)


def _table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    if not console.is_terminal:
        # As wide as needed: a file has no edge.
        table.width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.print(table, highlight=False)


def _figure(found: Figure) -> str:
    return escape(f"{_number(found.value)}{_ends(found.interval)}")


def _value(found: Corrected) -> str:
    return f"{_number(found.value)}{_ends(found.interval)}"


def _power(found: Corrected) -> str:
    return _number(found.power)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _corrected_share(found: Share) -> str:
    if found.value is None:
        return found.reason
    ends = "" if found.interval is None else f" [{100 * found.interval.low:.0f}, {100 * found.interval.high:.0f}]"
    return f"{100 * found.value:.0f}{ends} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f" [{interval.low:.2f}, {interval.high:.2f}]"
