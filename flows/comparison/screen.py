"""How a comparison of two runs looks on a terminal. Computes nothing."""

from __future__ import annotations

import json
import re
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.analysis.verdict import effect
from flows.comparison.compare import Comparison
from flows.comparison.inputs import InputDifference
from flows.comparison.moves import Move
from flows.comparison.verdicts import VerdictPair

_COLOURS = {"BETTER": "green", "NON_INFERIOR": "green", "WORSE": "red", "INCONCLUSIVE": "yellow"}
_READINGS = {"higher": ("green", "higher"), "lower": ("red", "lower"), "not told apart": ("", ""), "unmoved": ("dim", "unmoved")}
_HASH = re.compile("[0-9a-f]{32,}")
_LONGEST = 48
_MOST_INPUTS = 30


def show(console: Console, found: Comparison) -> None:
    """Both runs, what differs in their inputs, what cannot be compared, how arms moved, verdicts."""
    for place, run in (("first", found.first), ("second", found.second)):
        when = run.finished[:16].replace("T", " ")
        console.print(f"[bold]{place:<6}[/] {escape(run.run)}, finished {when} UTC", highlight=False)
        console.print(f"       [{_COLOURS[run.verdict]}]{escape(run.sentence)}[/]", highlight=False)
    _inputs(console, found.inputs)
    _heading(console, "test items")
    items = found.items
    others = f"; {items.changed} changed, {items.only_first} only in the first, {items.only_second} only in the second"
    console.print(f"{items.common} in both" + ("" if items.same else others), highlight=False)
    for note in found.notes:
        console.print(f"note: {escape(note)}", highlight=False)
    if found.not_comparable:
        _heading(console, "not comparable")
        for one in found.not_comparable:
            console.print(escape(one), highlight=False)
    if found.moves:
        _moves(console, found)
    if found.verdicts:
        _verdicts(console, found.verdicts)


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/]", highlight=False)


def _inputs(console: Console, differences: tuple[InputDifference, ...]) -> None:
    _heading(console, "inputs that differ")
    if not differences:
        console.print("none", highlight=False)
        return
    table = _table("", "first", "second")
    for one in differences[:_MOST_INPUTS]:
        table.add_row(escape(f"{one.part}: {one.key}"), escape(_short(one.first)), escape(_short(one.second)))
    _print(console, table)
    if len(differences) > _MOST_INPUTS:
        console.print(f"[dim]and {len(differences) - _MOST_INPUTS} more: --json lists all[/]", highlight=False)


def _moves(console: Console, found: Comparison) -> None:
    counts = {move.items for move in found.moves}
    for criterion in dict.fromkeys(move.criterion for move in found.moves):
        _heading(console, f"{criterion}, second minus first")
        columns = ("arm", "first", "second", "difference", "p (Holm)", "", *(["items"] if len(counts) > 1 else []), "same answers")
        table = _table(*columns, right=range(1, 5))
        for move in found.moves:
            if move.criterion == criterion:
                items = [str(move.items)] if len(counts) > 1 else []
                table.add_row(*_moved(move), *items, f"{move.answers_same}/{move.answers}")
        _print(console, table)
    over = f"over {min(counts)} items, paired" if len(counts) == 1 else "items paired"
    level = f"{100 * (1 - found.alpha):g} %"
    dropped = max(move.items_dropped for move in found.moves)
    console.print(
        f"\n[dim]{over}; clusters resampled; intervals at {level}, each alone; p corrected for all arms that moved[/]", highlight=False
    )
    if dropped:
        console.print(f"[dim]up to {dropped} items are left out, for one of the runs has no score of them[/]", highlight=False)


def _moved(move: Move) -> tuple[str, ...]:
    colour, reading = _READINGS[move.reading]
    difference = effect(move.difference, move.interval, 0.0)
    shown = f"[{colour}]{reading}[/]" if reading else ""
    return escape(move.arm), _number(move.first), _number(move.second), escape(difference), _p(move), shown


def _verdicts(console: Console, pairs: tuple[VerdictPair, ...]) -> None:
    changed = [pair for pair in pairs if pair.changed]
    unlike = any(pair.unlike for pair in changed)
    _heading(console, f"verdicts: {len(changed)} of {len(pairs)} changed")
    table = _table("criterion", "first", "second", *(["the two do not share"] if unlike else []))
    for pair in changed:
        primary = " (primary)" if pair.primary else ""
        first, second = (
            f"[{_COLOURS[verdict]}]{escape(said)}[/]"
            for verdict, said in ((pair.first_verdict, pair.first), (pair.second_verdict, pair.second))
        )
        table.add_row(escape(pair.criterion) + primary, first, second, *([escape(", ".join(pair.unlike))] if unlike else []))
    if changed:
        _print(console, table)


def _table(*columns: str, right: range = range(0)) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place in right else "left", no_wrap=place in right)
    return table


def _print(console: Console, table: Table) -> None:
    if not console.is_terminal:
        # As wide as needed: a file has no edge.
        table.width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.print(table, highlight=False)


def _short(value: Any) -> str:
    """A value in one line; the rest is in the JSON."""
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    if _HASH.fullmatch(text):
        return text[:12]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _p(move: Move) -> str:
    p = move.p_value_adjusted
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
