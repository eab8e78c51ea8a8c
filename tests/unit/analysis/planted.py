"""Simulated judgements of two arms with planted variances."""

from collections.abc import Mapping

import numpy as np

from flows.analysis.layers import Scores
from flows.analysis.quantiles import Floats, Ints

SDS = {"cluster": 0.3, "item": 0.5, "seed": 0.2, "seed_item": 0.25, "sample": 0.4, "run": 0.6}


def arm_scores(rng: np.random.Generator, base: Floats, shape: tuple[int, int, int], sds: Mapping[str, float], *, trained: bool) -> Floats:
    """Scores (seed, item, sample, run) around `base`, one number an item."""
    (seeds, samples, runs), n = shape, len(base)
    found = np.broadcast_to(base[None, :, None, None], (seeds, n, samples, runs)).copy()
    if trained:
        found += rng.normal(0, sds["seed"], (seeds, 1, 1, 1)) + rng.normal(0, sds["seed_item"], (seeds, n, 1, 1))
    found += rng.normal(0, sds["sample"], (seeds, n, samples, 1)) + rng.normal(0, sds["run"], (seeds, n, samples, runs))
    return found


def two_arms(
    rng: np.random.Generator,
    clusters: Ints,
    arm: tuple[int, int, int],
    control: tuple[int, int, int],
    sds: Mapping[str, float],
    difference: float = 0.0,
) -> tuple[Floats, Floats]:
    """Scores of a trained arm and a control, each of its (seeds, samples, runs), over items of these clusters. A control with several seeds
    was trained too."""
    hard = rng.normal(3, 1, len(clusters))
    apart = rng.normal(0, sds["cluster"], clusters.max() + 1)[clusters] + rng.normal(0, sds["item"], len(clusters))
    trained = arm_scores(rng, hard + apart + difference, arm, sds, trained=True)
    return trained, arm_scores(rng, hard, control, sds, trained=control[0] > 1)


def as_scores(values: Floats, kept: np.ndarray | None = None) -> Scores:
    """Judgements from (seed, item, sample, run); `kept` marks those that gave a score."""
    seeds, items, samples, _ = np.indices(values.shape)
    mask = np.ones(values.shape, dtype=bool) if kept is None else kept
    return Scores(values[mask], seeds[mask], items[mask], samples[mask], values.shape[0], values.shape[1])
