"""From layers of variance to a plan: the power of a design, what each doubling gains, and the smallest numbers that decide. Knows no data.

**Power** of a claim that is read from the trial's interval (`bootstrap`, `verdict`): "better" is claimed when the interval lies above 0,
"non-inferior" when it lies above -margin. Without training seeds it is P(T > t) of the noncentral t with noncentrality (difference - bound)
/ se on clusters less 1 degrees of freedom: Julious 2004, Statistics in Medicine 23(12); Cohen 1988, "Statistical Power Analysis",
chapter 2. With K seeds the trial's standard error is a sum of estimates, that between seeds cut at 0, on degrees of freedom that are
estimated too (Satterthwaite 1946); with two to five seeds a single noncentral t misses the power by up to ten points. So the normal power
is averaged over what the trial will estimate: the clusters' part times chi2(G-1) / (G-1), the seeds' part max(0, (seed + e) chi2(K-1) /
(K-1) - e) / K with e the variance of one seed's mean below the items (`clustered.between_seed_variance`). Simulated trials, analysed as
real ones are, reached the planned power within 3 points (`tests/unit/analysis/test_analysis_planning.py`).

**One training.** The trial's interval then leaves the spread between trainings out: its verdict is about that one adapter. The power of
such a design counts the spread as luck, and `notes` says so. A search for seeds begins at two.

A plan believes its variances. Those of a small pilot are rough: a variance on f degrees of freedom is uncertain by sqrt(2 / f), which is
29 % with 25 clusters, and the number of items with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flows.analysis.bootstrap import fewest_clusters
from flows.analysis.layers import LAYERS, ArmVariances, Components, Design, Layer, doubled, variances_of_mean, with_seeds
from flows.analysis.power import MOST_ITEMS
from flows.analysis.quantiles import mean_square_quantiles, normal_cdf, normal_cdfs, t_exceeds, t_quantile, t_quantiles

MOST_REPEATS = 100
"""Samples, runs or seeds beyond this many are called unrealistic, and no number is given."""

SEEDS_TRIED = (2, 3, 5, 10, 20)
RUNS_TRIED = (1, 2, 3, 5, 10, 20)

_NODES = {1: 24, 2: 14}
"""Points at which each estimate is averaged over, by how many arms have seeds: the power is right to some tenths of a point."""

Claim = Literal["better", "non-inferior"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be shown, and how surely: the interval at 1 - `alpha` lies above `bound` with probability `power` if `difference` is
    true."""

    claim: Claim
    difference: float
    bound: float
    alpha: float = 0.05
    power: float = 0.8


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of the variance table. Numbers are None where the pilot cannot tell the layer apart."""

    layer: Layer
    sd: float | None
    """Standard deviation of one difference from this layer, both arms together."""
    arm_sd: float | None
    control_sd: float | None
    share: float
    """Of the variance of the mean difference in this design."""
    doubled: float | None
    """Standard error with twice as much of this layer; for `cluster` twice the clusters with their items, for `item` twice the items of
    each cluster."""
    gain: float | None
    """By which share the standard error falls when the layer is doubled."""
    judgements: int
    """Runs of the judge on one criterion that the doubled design needs."""


@dataclass(frozen=True, slots=True)
class Route:
    """The smallest number of one layer that reaches a goal, the others as they are. `design` is None where no realistic number does."""

    layer: Layer
    number: int | None
    """Items where the layer is `cluster`, items of each cluster where it is `item`, else samples, runs or seeds."""
    design: Design | None
    reached: float
    """Power with that number; where there is none, with the most that was tried."""


def goals(difference: float, margin: float, alpha: float, power: float) -> tuple[Goal, ...]:
    """Better, if `difference` is above 0 and true; non-inferior, if the arms are truly equal, or `difference` apart where it is below 0."""
    found = [Goal("non-inferior", min(0.0, difference), -margin, alpha, power)]
    return (Goal("better", difference, 0.0, alpha, power), *found) if difference > 0 else tuple(found)


def standard_error(components: Components, design: Design) -> float:
    """Of the mean difference, were everything repeated: all layers, the spread between trainings too."""
    return math.sqrt(sum(variances_of_mean(components, design).values()))


def power_of(components: Components, design: Design, goal: Goal) -> float:
    """Probability that the trial's interval lies above the goal's bound."""
    if design.clusters < fewest_clusters(goal.alpha):
        return 0.0
    by_layer = variances_of_mean(components, design)
    distance, total = goal.difference - goal.bound, math.sqrt(sum(by_layer.values()))
    if total == 0:
        return 1.0 if distance > 0 else 0.0
    spread = math.sqrt(sum(by_layer[layer] for layer in LAYERS if layer != "seed"))
    seeded = [(side, seeds) for side, seeds in _sides(components, design) if seeds > 1]
    if seeded:
        parts = [((side.seed or 0.0), _noise(side, design), seeds) for side, seeds in seeded]
        return _with_seeds(spread**2, design.clusters - 1, parts, distance, total, goal.alpha)
    if spread == 0:
        return normal_cdf(distance / total)
    dof = design.clusters - 1
    return t_exceeds(t_quantile(1 - goal.alpha / 2, dof) * spread / total, dof, distance / total)


def _sides(components: Components, design: Design) -> tuple[tuple[ArmVariances, int], tuple[ArmVariances, int]]:
    return (components.arm, design.arm_seeds), (components.control, design.control_seeds)


def _noise(side: ArmVariances, design: Design) -> float:
    """Variance of one seed's mean from all below the items: what the trial takes off the spread between the seeds' means."""
    answer = (side.sample or 0.0) + (side.run or 0.0) / design.runs
    return ((side.seed_item or 0.0) + answer / design.samples) / design.items


def _with_seeds(spread: float, dof: float, parts: Sequence[tuple[float, float, int]], distance: float, total: float, alpha: float) -> float:
    """Power averaged over the variances that a trial may estimate; `parts` holds (seed variance, noise, seeds) of each seeded arm."""
    nodes, node_weights = np.polynomial.legendre.leggauss(_NODES[len(parts)])
    points, weights = (nodes + 1) / 2, [node_weights / 2] * (1 + len(parts))
    layers = [spread * mean_square_quantiles(points, dof)]
    for variance, noise, seeds in parts:
        layers.append(np.maximum(0.0, (variance + noise) * mean_square_quantiles(points, seeds - 1) - noise) / seeds)
    grid, weight = np.meshgrid(*layers, indexing="ij"), np.meshgrid(*weights, indexing="ij")
    estimated = np.maximum(sum(grid), np.finfo(float).tiny)
    freedom = [dof, *(float(seeds - 1) for _, _, seeds in parts)]
    shares = sum((part / estimated) ** 2 / own for part, own in zip(grid, freedom, strict=True))
    # Where everything is estimated as 0 there is no share either; the degrees of freedom do not matter then.
    edge = t_quantiles(1 - alpha / 2, 1 / np.maximum(shares, 1e-12)) * np.sqrt(estimated)
    return float((normal_cdfs((distance - edge) / total) * np.prod(weight, axis=0)).sum())


def variance_table(components: Components, design: Design, layers: Sequence[Layer] = LAYERS) -> tuple[LayerRow, ...]:
    """What each layer adds, and what doubling it would gain."""
    by_layer, now = variances_of_mean(components, design), standard_error(components, design)
    rows = []
    for layer in layers:
        known = components.per_unit(layer)
        more = doubled(design, layer)
        # Doubled clusters bring doubled items, so they always tell something; seed_item is not bought by itself.
        told = layer == "cluster" or (known is not None and layer != "seed_item")
        then = standard_error(components, more) if told else None
        sides = (None, None) if layer in ("cluster", "item") else (getattr(components.arm, layer), getattr(components.control, layer))
        rows.append(
            LayerRow(
                layer=layer,
                sd=_root(known),
                arm_sd=_root(sides[0]),
                control_sd=_root(sides[1]),
                share=by_layer[layer] / now**2 if now else 0.0,
                doubled=then,
                gain=None if then is None else (1 - then / now if now else 0.0),
                judgements=more.judgements,
            )
        )
    return tuple(rows)


def routes(components: Components, design: Design, goal: Goal, layers: Sequence[Layer] = LAYERS) -> tuple[Route, ...]:
    """For each layer that can be bought, the smallest number that reaches the goal; items in more clusters always can."""
    repeated = [layer for layer in layers if layer in ("seed", "sample", "run") and components.per_unit(layer)]
    within: list[Layer] = ["item"] if design.items > design.clusters else []
    return tuple(smallest(components, design, goal, layer) for layer in LAYERS if layer in ("cluster", *within, *repeated))


def smallest(components: Components, design: Design, goal: Goal, layer: Layer) -> Route:
    """The smallest number of one layer with which the power reaches the goal's, all other layers as in `design`."""
    make, low, high = _choices(design, layer)

    def reached(number: int) -> float:
        return power_of(components, make(number), goal)

    if reached(high) < goal.power:
        return Route(layer, None, None, reached(high))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= goal.power else (middle + 1, high)
    found = make(low)
    return Route(layer, math.ceil(found.items) if layer == "cluster" else low, found, reached(low))


def cheapest(components: Components, design: Design, goal: Goal) -> tuple[Design, ...]:
    """Designs that reach the goal with several layers changed together: for each number of seeds, the one with the fewest judgements.

    Items come in more clusters of the same make-up. Seeds vary where their variance is known and above 0, judge runs likewise.
    """
    seeds = SEEDS_TRIED if components.per_unit("seed") else (None,)
    runs = RUNS_TRIED if components.per_unit("run") else (design.runs,)
    found = []
    for number in seeds:
        base = design if number is None else with_seeds(design, number)
        tried = [smallest(components, replace(base, runs=count), goal, "cluster").design for count in runs]
        reached = [one for one in tried if one is not None]
        if reached:
            found.append(min(reached, key=lambda one: one.judgements))
    return tuple(found)


def _choices(design: Design, layer: Layer) -> tuple[Callable[[int], Design], int, int]:
    """Designs by number, from the fewest to the most that are realistic."""
    each = design.items / design.clusters
    if layer == "cluster":
        return (lambda number: replace(design, clusters=number, items=number * each)), 2, max(2, int(MOST_ITEMS / each))
    if layer == "item":
        return (lambda number: replace(design, items=number * design.clusters)), 1, max(1, int(MOST_ITEMS / design.clusters))
    if layer == "sample":
        return (lambda number: replace(design, samples=number)), 1, MOST_REPEATS
    if layer == "run":
        return (lambda number: replace(design, runs=number)), 1, MOST_REPEATS
    if layer == "seed":
        return (lambda number: with_seeds(design, number)), 2, MOST_REPEATS
    raise ValueError("seed_item is not bought by itself: more seeds or more items make it smaller")


def notes(components: Components, design: Design, layers: Sequence[Layer] = LAYERS) -> tuple[str, ...]:
    """What a reader of the plan must know: layers that were not told apart, estimates below 0, a single training."""
    found = []
    unknown = [layer for layer in layers if components.per_unit(layer) is None]
    repeats = {"sample": "several samples", "run": "several judge runs", "cluster": "several items in a cluster"}
    for layer in (one for one in unknown if one in repeats):
        found.append(f"{layer}: not told apart, which needs {repeats[layer]}; what it adds is counted in {_counted_in(components, layer)}")
    if "seed" in unknown:
        found.append("seed: not known, which needs several trainings; the plan holds for the one adapter that was trained")
    elif "seed" in layers and max(design.arm_seeds, design.control_seeds) == 1:
        found.append("one training: the trial's interval leaves the spread between trainings out; its verdict is about that one adapter")
    for name in components.truncated:
        found.append(f"{name}: the estimate is below 0, which says that it is too small to be measured with these data; it stands as 0")
    return tuple(found)


def _counted_in(components: Components, layer: Layer) -> Layer:
    if layer == "cluster":
        return "item"
    above: tuple[Layer, ...] = ("sample", "seed_item") if layer == "run" else ("seed_item",)
    return next((one for one in above if components.per_unit(one) is not None), "item")


def _root(variance: float | None) -> float | None:
    return None if variance is None else math.sqrt(variance)
