"""The plan: layers of variance, what doubling each gains, and the numbers that decide. Knows no terminal and no files."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flows.analysis.layers import Design
from flows.analysis.planning import Goal, LayerRow, Route, cheapest, goals, notes, power_of, routes, standard_error, variance_table
from flows.errors import UserError
from flows.plan.pilot import Measured, Pilot

_MARGIN = 0.1
_ALPHA = 0.05
_FAR = 0.1
"""A standard error this share away from the run's own is worth a note."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What the design shall have instead of the pilot's; None leaves it."""

    items: int | None = None
    clusters: int | None = None
    samples: int | None = None
    judge_runs: int | None = None
    seeds: int | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """A goal, the power of the present design, and the ways to the power that is wanted."""

    goal: Goal
    power: float
    routes: tuple[Route, ...]
    together: tuple[Design, ...]
    """Designs that reach it with seeds, judge runs and items changed together, by number of seeds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the command says."""

    measured: Measured | None
    design: Design
    standard_error: float
    layers: tuple[LayerRow, ...]
    truncated: tuple[str, ...]
    reaches: tuple[Reach, ...]
    notes: tuple[str, ...]
    advice: str


def make_plan(pilot: Pilot, changes: Changes, *, difference: float, margin: float | None, power: float, alpha: float | None) -> Plan:
    """Everything from the pilot's layers. UserError for a design or a wish that cannot be."""
    design = changed(pilot.design, changes)
    margin, alpha = (_first(margin, pilot.margin, _MARGIN), _first(alpha, pilot.alpha, _ALPHA))
    if design.clusters > design.items:
        raise UserError(f"{design.clusters:g} clusters cannot hold {design.items:g} items: give at least one item a cluster")
    if design.clusters == design.items and (pilot.components.cluster or 0.0) > 0 and pilot.measured is None:
        raise UserError("a cluster variance needs clusters of several items: give --items and --clusters")
    if pilot.measured is None and changes.seeds and "seed" not in pilot.layers:
        raise UserError("--seeds needs a variance between trainings: add seed=... to the variances")
    if pilot.measured is not None and changes.seeds and "seed" not in pilot.layers:
        raise UserError(f"--seeds: neither {pilot.measured.arm} nor {pilot.measured.control} was trained")
    found = pilot.components
    table = variance_table(found, design, pilot.layers)
    error = standard_error(found, design)
    said = [*notes(found, design, pilot.layers), *_differs(pilot, design, error)]
    if error == 0:
        return Plan(pilot.measured, design, error, table, found.truncated, (), tuple(said), _advice(table, error))
    reaches = tuple(
        Reach(goal, power_of(found, design, goal), routes(found, design, goal, pilot.layers), cheapest(found, design, goal))
        for goal in goals(difference, margin, alpha, power)
    )
    return Plan(pilot.measured, design, error, table, found.truncated, reaches, tuple(said), _advice(table, error))


def _differs(pilot: Pilot, design: Design, error: float) -> tuple[str, ...]:
    """A note where the layers do not give back what the run itself measured."""
    if pilot.measured is None or design != pilot.design or max(design.arm_seeds, design.control_seeds) == 1:
        return ()
    own = pilot.measured.standard_error
    if abs(error - own) <= _FAR * own:
        return ()
    return (
        f"the run's own standard error is {own:.3f}, its layers give {error:.3f}: clusters or seeds are unlike each other, so that "
        "one variance for all of them fits them roughly, and the plan with it",
    )


def changed(design: Design, changes: Changes) -> Design:
    """The design with what was asked for instead. More items without a number of clusters come in more clusters of the same make-up."""
    items, clusters = design.items, design.clusters
    if changes.items is not None:
        clusters, items = clusters * changes.items / items, changes.items
    if changes.clusters is not None:
        # Without a number of items, clusters keep theirs.
        items = items if changes.items is not None else items * changes.clusters / clusters
        clusters = changes.clusters
    # One item a cluster leaves nothing uneven.
    found = replace(design, items=items, clusters=clusters, unevenness=1.0 if items == clusters else design.unevenness)
    if changes.samples is not None:
        found = replace(found, samples=changes.samples)
    if changes.judge_runs is not None:
        found = replace(found, runs=changes.judge_runs)
    if changes.seeds is not None:
        trained = design.control_seeds > 1
        found = replace(found, arm_seeds=changes.seeds, control_seeds=changes.seeds if trained else 1)
    return found


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


_MORE = {
    "seed": "train more seeds",
    "cluster": "ask questions on more documents",
    "item": "ask more questions on each document",
    "sample": "draw more answers to each question",
    "run": "judge each answer more often",
}


def _advice(table: tuple[LayerRow, ...], error: float) -> str:
    """The layer whose doubling helps most, in one sentence."""
    if error == 0:
        return "every item gave the same difference: there is no variance to plan with"
    bought = [row for row in table if row.layer in _MORE and row.doubled is not None]
    best = max(bought, key=lambda row: row.gain or 0.0)
    # Clusters come with their items, runs and samples, so their gain is the widest; a cheaper layer that comes near is worth more.
    rivals = [
        row for row in bought if row is not best and (row.gain or 0.0) >= 0.8 * (best.gain or 0.0) and row.judgements <= best.judgements
    ]
    alone = all(row.layer != "cluster" for row in table)
    several = " or ".join("ask more questions" if alone and row.layer == "item" else _MORE[row.layer] for row in (best, *rivals))
    return f"to see more clearly, {several}: doubling that takes the standard error from {error:.3f} to {best.doubled:.3f}"
