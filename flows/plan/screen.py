"""How a plan looks on a terminal. Computes nothing."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.analysis.layers import Design, Layer
from flows.analysis.planning import LayerRow, Route
from flows.plan.pilot import Measured
from flows.plan.plan import Plan, Reach

_NAMES: dict[Layer, str] = {
    "seed": "training seed",
    "cluster": "cluster",
    "item": "item",
    "seed_item": "seed x item",
    "sample": "generation sample",
    "run": "judge run",
}


def show(console: Console, found: Plan) -> None:
    """The pilot, the variance table, the numbers that decide, notes."""
    if found.measured is not None:
        _measured(console, found.measured)
    console.print(f"design: {_design(found.design)}; standard error {found.standard_error:.3f}\n", highlight=False)
    _layers(console, found)
    console.print(f"\n[bold]{escape(found.advice)}[/]", highlight=False)
    for reach in found.reaches:
        _reach(console, reach, found.design)
    for note in found.notes:
        console.print(f"note: {escape(note)}", highlight=False)


def _measured(console: Console, found: Measured) -> None:
    ends = f" [{found.interval.low:.2f}, {found.interval.high:.2f}]" if found.interval else ""
    said = f"pilot {found.run}: {found.arm} against {found.control} on {found.criterion} {found.difference:+.2f}{ends}"
    checks = found.checks
    others = []
    if checks.bca is not None:
        others.append(f"BCa [{checks.bca.low:.2f}, {checks.bca.high:.2f}]")
    if checks.p_randomisation is not None:
        others.append(f"randomisation p {checks.p_randomisation:.3g}")
    if checks.p_equivalent is not None:
        others.append(f"equivalence (TOST) p {checks.p_equivalent:.3g}")
    console.print(escape(said), highlight=False)
    if others:
        console.print(escape("by other methods: " + " · ".join(others)), highlight=False, style="dim")


def _design(design: Design) -> str:
    clusters = "" if design.items == design.clusters else f" in {design.clusters:g} clusters"
    parts = [f"{round(design.items)} items{clusters}"]
    for number, noun in ((design.samples, "sample"), (design.runs, "judge run"), (design.arm_seeds, "training seed")):
        parts.append(f"{number} {noun}{'' if number == 1 else 's'}")
    if design.control_seeds > 1:
        parts.append(f"{design.control_seeds} of the control")
    return ", ".join(parts) + f"; {design.judgements} judgements a criterion"


def _layers(console: Console, found: Plan) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    for column in ("sd", "share of variance", "now", "doubled: standard error", "gain", "judgements"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.layers:
        table.add_row(
            _NAMES[row.layer],
            _sd(row),
            f"{row.share:.0%}",
            _now(row.layer, found.design),
            "-" if row.doubled is None else f"{row.doubled:.3f}",
            "-" if row.gain is None else f"{row.gain:.0%}",
            "-" if row.doubled is None else str(row.judgements),
        )
    if not console.is_terminal:
        # As wide as needed: a file has no edge.
        table.width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.print(table, highlight=False)


def _sd(row: LayerRow) -> str:
    if row.sd is None:
        return "not told apart"
    sides = [value for value in (row.arm_sd, row.control_sd) if value is not None]
    return " and ".join(f"{value:.3f}" for value in sides) if sides else f"{row.sd:.3f}"


def _now(layer: Layer, design: Design) -> str:
    numbers: dict[Layer, str] = {
        "seed": str(design.arm_seeds),
        "cluster": f"{design.clusters:g}",
        "item": f"{design.items:g}" if design.items == design.clusters else f"{design.items / design.clusters:.3g} a cluster",
        "seed_item": "",
        "sample": str(design.samples),
        "run": str(design.runs),
    }
    return numbers[layer]


def _reach(console: Console, reach: Reach, design: Design) -> None:
    goal = reach.goal
    if goal.claim == "better":
        claim = f"better, if the true difference is {goal.difference:g}"
    else:
        claim = f"non-inferior with margin {-goal.bound:g}, if the true difference is {goal.difference:g}"
    console.print(f"\n[bold]{claim}[/]: power {reach.power:.0%} as designed; {goal.power:.0%} needs one of", highlight=False)
    for route in reach.routes:
        console.print(f"  {_route(route)}{', which is the design' if route.design == design else ''}", highlight=False)
    if reach.together and any(route.layer in ("run", "seed") for route in reach.routes):
        console.print("or together, with the fewest judgements:", highlight=False)
        for one in reach.together:
            console.print(f"  {_design(one)}", highlight=False)


def _route(route: Route) -> str:
    if route.number is None or route.design is None:
        return f"no realistic number of {_UNITS[route.layer]} alone ({route.reached:.0%} at most)"
    number, unit = route.number, _UNITS[route.layer]
    clusters = f" in {route.design.clusters:g} clusters" if route.layer == "cluster" and route.design.clusters != number else ""
    unit = unit if number > 1 else _ONE.get(unit, unit)
    return f"{number} {unit}{clusters} ({route.design.judgements} judgements)"


_UNITS: dict[Layer, str] = {
    "seed": "training seeds",
    "cluster": "items",
    "item": "items of each cluster",
    "sample": "samples",
    "run": "judge runs",
}
_ONE = {"items of each cluster": "item of each cluster", "samples": "sample", "judge runs": "judge run"}
