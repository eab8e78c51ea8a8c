"""Layers of variance of one contrast, and the standard error that they give to any design. Knows score arrays, no arms by name, no plan.

**Model.** A run's score of an arm on an item is the arm's mean + training seed + cluster + item + seed x item + generation sample + judge
run, all independent. Clusters and items are layers of the *paired difference*, since what makes a question hard for both arms drops out
(Miller 2024, arXiv 2411.00640); the others belong to each arm by itself. With K seeds, J samples, R runs, n items in clusters of sizes
m_g, the difference has the variance

    cluster * sum(m_g^2) / n^2 + item / n + sum over arms of [ seed / K + (seed_item + (sample + run / R) / J) / (n K) ]

**Estimates** are moments (ANOVA): Searle, Casella & McCulloch 1992, "Variance Components", chapters 3 to 5. Layer by layer from below, each
mean square less what the layers below bring into it, so unbiased for uneven clusters and missing scores too; in balanced data they are the
textbook's mean squares. Seeds are compared pair by pair over the items that both answered. An estimate below 0 is no variance: it is
reported as 0 and named in `truncated`, while the layers above it are reckoned with the estimate as it was.

A layer that the pilot did not repeat (one sample, one run, one seed, one item a cluster) cannot be told apart: its variance is None, and
what it adds is counted in the next layer above it that was repeated. A seed that shifts whole clusters together counts with clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, get_args

import numpy as np

from flows.analysis.clustered import cluster_totals, clustered_variance
from flows.analysis.quantiles import Floats, Ints

Layer = Literal["seed", "cluster", "item", "seed_item", "sample", "run"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
"""From the outermost to the innermost."""


@dataclass(frozen=True, slots=True)
class ArmVariances:
    """Variances of one arm's scores by layer; None where the pilot cannot tell the layer apart."""

    seed: float | None = None
    seed_item: float | None = None
    sample: float | None = None
    run: float | None = None


@dataclass(frozen=True, slots=True)
class Components:
    """Variances of one contrast by layer. `cluster` and `item` are those of the paired difference."""

    cluster: float | None
    item: float
    arm: ArmVariances
    control: ArmVariances
    truncated: tuple[str, ...] = ()
    """Layers whose estimate was below 0 and stands as 0: `item`, or `arm sample`."""

    def per_unit(self, layer: Layer) -> float | None:
        """Variance of one difference from this layer, both arms together; None where neither is known."""
        if layer in ("cluster", "item"):
            return self.cluster if layer == "cluster" else self.item
        known = [value for side in (self.arm, self.control) if (value := getattr(side, layer)) is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Design:
    """How much of each layer. `unevenness` is G * sum(m_g^2) / n^2: 1 when all clusters have as many items, above 1 else."""

    items: float
    clusters: float
    samples: int = 1
    runs: int = 1
    arm_seeds: int = 1
    control_seeds: int = 1
    unevenness: float = 1.0

    @property
    def judgements(self) -> int:
        """Runs of the judge on one criterion, both arms together."""
        return round(self.items * self.samples * self.runs * (self.arm_seeds + self.control_seeds))


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Runs of the judge on one arm and criterion, as parallel arrays; only those that gave a score. All indices count from 0."""

    values: Floats
    seeds: Ints
    items: Ints
    samples: Ints
    seed_count: int
    item_count: int


def variances_of_mean(components: Components, design: Design) -> dict[Layer, float]:
    """What each layer adds to the variance of the mean difference in this design, by the formula of this module."""
    n = design.items
    found: dict[Layer, float] = dict.fromkeys(LAYERS, 0.0)
    found["cluster"] = (components.cluster or 0.0) * design.unevenness / design.clusters
    found["item"] = components.item / n
    for side, seeds in ((components.arm, design.arm_seeds), (components.control, design.control_seeds)):
        found["seed"] += (side.seed or 0.0) / seeds
        found["seed_item"] += (side.seed_item or 0.0) / (n * seeds)
        found["sample"] += (side.sample or 0.0) / (n * seeds * design.samples)
        found["run"] += (side.run or 0.0) / (n * seeds * design.samples * design.runs)
    return found


def doubled(design: Design, layer: Layer) -> Design:
    """The design with twice as much of one layer. Items are added in new clusters (`cluster`) or within the present ones (`item`),
    unless those hold one item each."""
    if layer == "cluster" or (layer == "item" and design.items == design.clusters):
        return replace(design, items=2 * design.items, clusters=2 * design.clusters)
    if layer == "item":
        return replace(design, items=2 * design.items)
    if layer == "sample":
        return replace(design, samples=2 * design.samples)
    if layer == "run":
        return replace(design, runs=2 * design.runs)
    return with_seeds(design, 2 * max(design.arm_seeds, design.control_seeds))


def with_seeds(design: Design, seeds: int) -> Design:
    """The design with this many trainings of each arm that has several; of the arm, where neither has."""
    arm = design.arm_seeds > 1 or design.control_seeds == 1
    return replace(design, arm_seeds=seeds if arm else 1, control_seeds=seeds if design.control_seeds > 1 else 1)


def seed_means(scores: Scores) -> Floats:
    """The score of each (seed, item), as the trial has it: the mean over samples of the mean over runs; NaN where there is none."""
    return _within_items(scores)[2]


def components(arm: Scores, control: Scores, clusters: Ints, cluster_count: int) -> Components | None:
    """Components from the judgements of two arms over the same items; `clusters` holds each item's cluster. None with fewer than two
    items that both answered, or when all of them are of one cluster."""
    sides = [_Side.of(scores, clusters, cluster_count) for scores in (arm, control)]
    difference = sides[0].means - sides[1].means
    paired = ~np.isnan(difference)
    sums, counts = cluster_totals(difference, clusters, cluster_count)
    n, groups = int(paired.sum()), int(np.count_nonzero(counts))
    if groups < 2:
        return None
    noise = (sides[0].noise + sides[1].noise)[paired]
    size = counts[clusters[paired]]
    centre = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    within = float(((difference[paired] - centre[clusters[paired]]) ** 2).sum())
    between = float((counts * (centre - sums.sum() / n) ** 2).sum())
    if n == groups:
        cluster, item = None, between / (n - 1) - float(noise.mean())
    else:
        # E(within) = (n - G) item + sum (1 - 1/m) noise; E(between) = (n - sum m^2 / n) cluster + (G - 1) item + sum (1/m - 1/n) noise.
        item = (within - float(((1 - 1 / size) * noise).sum())) / (n - groups)
        rest = between - (groups - 1) * item - float(((1 / size - 1 / n) * noise).sum())
        cluster = rest / (n - float((counts**2).sum()) / n)
    raw = {"cluster": cluster, "item": item}
    raw |= {f"{name} {layer}": value for name, side in zip(("arm", "control"), sides, strict=True) for layer, value in side.raw.items()}
    truncated = tuple(name for name, value in raw.items() if value is not None and value < 0)
    return Components(_floor(cluster), max(0.0, item), sides[0].variances, sides[1].variances, truncated)


def _floor(value: float | None) -> float | None:
    return None if value is None else max(0.0, value)


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """One arm: `means` an item over its seeds, NaN where it has none; `noise` the variance of that mean below the item."""

    means: Floats
    noise: Floats
    raw: Mapping[str, float | None]
    variances: ArmVariances

    @classmethod
    def of(cls, scores: Scores, clusters: Ints, cluster_count: int) -> _Side:
        run, sample, table, noise = _within_items(scores)
        seed, seed_item = _between_seeds(table, noise, clusters, cluster_count)
        each = noise + (seed_item or 0.0)
        present = ~np.isnan(table)
        count = present.sum(axis=0)
        full = np.where(count > 0, count, np.nan)
        means = np.where(present, table, 0.0).sum(axis=0) / full
        raw = {"seed": seed, "seed_item": seed_item, "sample": sample, "run": run}
        variances = ArmVariances(**{layer: _floor(value) for layer, value in raw.items()})
        return cls(means, np.where(present, each, 0.0).sum(axis=0) / full**2, raw, variances)


def _within_items(scores: Scores) -> tuple[float | None, float | None, Floats, Floats]:
    """Variances of runs and of samples, means by (seed, item), and the noise of those means (both NaN where there is no score)."""
    shape = (scores.seed_count, scores.item_count)
    rows = scores.seeds * scores.item_count + scores.items
    answers, answer = np.unique(np.stack([rows, scores.samples]), axis=1, return_inverse=True)
    answer = answer.ravel()
    runs = np.bincount(answer).astype(np.float64)
    means = np.bincount(answer, weights=scores.values) / runs
    spare = float((runs - 1).sum())
    run = float(((scores.values - means[answer]) ** 2).sum()) / spare if spare else None
    row = answers[0]
    size = shape[0] * shape[1]
    samples = np.bincount(row, minlength=size).astype(np.float64)
    full = np.where(samples > 0, samples, np.nan)
    table = np.bincount(row, weights=means, minlength=size) / full
    # What the runs bring into each mean of samples: sum over samples of run / (runs * J^2).
    brought = np.bincount(row, weights=(run or 0.0) / runs, minlength=size)
    spare = float(np.maximum(samples - 1, 0).sum())
    sample = None
    if spare:
        squares = float(((means - table[row]) ** 2).sum())
        sample = (squares - float(np.nansum(brought * (1 - 1 / full)))) / spare
    noise = (sample or 0.0) / full + brought / full**2
    return run, sample, table.reshape(shape), noise.reshape(shape)


def _between_seeds(table: Floats, noise: Floats, clusters: Ints, cluster_count: int) -> tuple[float | None, float | None]:
    """Variances of seeds and of seed x item: half of what the differences of two seeds vary by, averaged over all pairs of seeds.

    The mean of the differences varies by two seeds' effects and by its own clustered standard error; the differences themselves by two
    interactions and the noise below. With no score missing the former is `clustered.between_seed_variance` before it is cut at 0.
    """
    seeds: list[float] = []
    interactions: list[tuple[float, int]] = []
    for one, other in combinations(range(len(table)), 2):
        difference = table[one] - table[other]
        both = ~np.isnan(difference)
        error = clustered_variance(*cluster_totals(difference, clusters, cluster_count))
        if error is None:
            continue
        found = difference[both]
        seeds.append((float(found.mean()) ** 2 - error) / 2)
        interactions.append(((float(found.var(ddof=1)) - float((noise[one] + noise[other])[both].mean())) / 2, len(found) - 1))
    if not seeds:
        return None, None
    weight = sum(dof for _, dof in interactions)
    return sum(seeds) / len(seeds), sum(value * dof for value, dof in interactions) / weight
