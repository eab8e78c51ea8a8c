"""Normal and Student t distribution functions with types. Knows nothing of trials.

A thin, typed face of `scipy.special`, so that the one untyped import of scipy stands in one place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special  # type: ignore[import-untyped]  # scipy ships no type information

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


def normal_cdf(z: float) -> float:
    """P(Z <= z) of a standard normal Z."""
    return float(special.ndtr(z))


def normal_cdfs(z: Floats) -> Floats:
    """P(Z <= z) for each z of an array."""
    return np.asarray(special.ndtr(z), dtype=np.float64)


def normal_quantile(probability: float) -> float:
    """The z with P(Z <= z) = `probability`, 0 < probability < 1."""
    return float(special.ndtri(probability))


def normal_scores(count: int) -> Floats:
    """Normal quantiles of the `count` plotting positions (i - 1/2) / count, ascending."""
    return np.asarray(special.ndtri((np.arange(count) + 0.5) / count), dtype=np.float64)


def t_cdf(t: float, dof: float) -> float:
    """P(T <= t) of Student's t with `dof` degrees of freedom, which need not be whole; `t` may be infinite."""
    if np.isinf(t):
        return 0.0 if t < 0 else 1.0
    return float(special.stdtr(dof, t))


def t_quantile(probability: float, dof: float) -> float:
    """The t with P(T <= t) = `probability`, 0 < probability < 1."""
    return float(special.stdtrit(dof, probability))


def t_exceeds(t: float, dof: float, noncentrality: float) -> float:
    """P(T > t) of the noncentral t: the power of a t test with critical value `t` whose true effect is `noncentrality` standard errors."""
    return float(1 - special.nctdtr(dof, noncentrality, t))


def t_quantiles(probability: float, dof: Floats) -> Floats:
    """The t with P(T <= t) = `probability` for each of many degrees of freedom."""
    return np.asarray(special.stdtrit(dof, probability), dtype=np.float64)


def mean_square_quantiles(probabilities: Floats, dof: float) -> Floats:
    """Quantiles of a chi-square over its degrees of freedom: by which factor a variance estimate on `dof` misses the truth."""
    return np.asarray(special.gammaincinv(dof / 2, probabilities) * 2 / dof, dtype=np.float64)
