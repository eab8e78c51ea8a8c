"""How well judge and people agree: scipy, and a cluster bootstrap. Knows neither rubric nor wire."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]  # the library ships no types

from services.judge.domain import Agreement, Estimate, Pair

_DRAWS = 1000
_SEED = 20240611
# With G clusters no symmetric test reaches a two-sided p below 2^(1-G): at 5 % that asks for six.
_FEWEST_CLUSTERS = 6
# An interval needs its tails: it is not given when more draws than these were undefined (no variance).
_MOST_UNDEFINED = 0.05
_Scores = NDArray[np.float64]


def agreement(pairs: Sequence[Pair]) -> Agreement:
    """Spearman's rho, Kendall's tau-b (1945), quadratically weighted kappa (Cohen 1968) over scores rounded half up, and mean bias.

    Intervals: 2.5 % and 97.5 % percentiles of 1,000 resamples of whole clusters with a fixed seed (Davison & Hinkley 1997).
    A value that is not defined (no variance) is None, and so is the interval then, with fewer than six clusters, or when more than
    5 % of the resamples are undefined.
    """
    judge = np.array([pair.judge for pair in pairs])
    human = np.array([pair.human for pair in pairs])
    # A pair without a cluster is one of its own.
    names = [("cluster", pair.cluster) if pair.cluster else ("pair", str(number)) for number, pair in enumerate(pairs)]
    members: dict[tuple[str, str], list[int]] = {}
    for number, name in enumerate(names):
        members.setdefault(name, []).append(number)
    clusters = [np.array(rows) for rows in members.values()]

    def resamples() -> Iterator[NDArray[np.intp]]:
        # The same for each measure, and never all in memory.
        rng = np.random.default_rng(_SEED)
        for _ in range(_DRAWS):
            yield np.concatenate([clusters[index] for index in rng.integers(0, len(clusters), len(clusters))])

    def estimate(measure: Callable[[_Scores, _Scores], float]) -> Estimate:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # Constant scores are expected here, and come out as None.
            warnings.simplefilter("ignore")
            value = measure(judge, human)
            if not math.isfinite(value):
                return Estimate(None)
            if len(clusters) < _FEWEST_CLUSTERS:
                return Estimate(value)
            draws = np.array([measure(judge[rows], human[rows]) for rows in resamples()])
        defined = draws[np.isfinite(draws)]
        if len(defined) < (1 - _MOST_UNDEFINED) * len(draws):
            return Estimate(value)
        low_end, high_end = np.percentile(defined, [2.5, 97.5])
        return Estimate(value, float(low_end), float(high_end))

    return Agreement(
        spearman=estimate(lambda one, other: float(stats.spearmanr(one, other).statistic)),
        kendall=estimate(lambda one, other: float(stats.kendalltau(one, other).statistic)),
        weighted_kappa=estimate(_quadratic_kappa),
        bias=estimate(lambda one, other: float(np.mean(one - other))),
    )


def _quadratic_kappa(judge: _Scores, human: _Scores) -> float:
    # Cohen's (1968) 1 - observed / expected disagreement; with squared distances as weights both are moments (Fleiss & Cohen 1973).
    one, other = np.floor(judge + 0.5), np.floor(human + 0.5)
    expected = np.var(one) + np.var(other) + (np.mean(one) - np.mean(other)) ** 2
    return float(1 - np.mean((one - other) ** 2) / expected)
