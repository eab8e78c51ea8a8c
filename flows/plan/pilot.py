"""What a plan starts from: layers of variance and a design, from a finished run or as stated. Knows no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from flows.analysis.bootstrap import Interval
from flows.analysis.cross_checks import CrossChecks, cross_checks
from flows.analysis.layers import LAYERS, ArmVariances, Components, Design, Layer, Scores, components, seed_means
from flows.analysis.paired import Statistic, estimates, paired_statistic
from flows.errors import UserError
from flows.finished_run import FinishedRun


@dataclass(frozen=True, slots=True)
class Measured:
    """The difference that a pilot showed. A plan does not take it for the true one: it is what the pilot's luck made of it."""

    run: str
    arm: str
    control: str
    criterion: str
    difference: float
    standard_error: float
    interval: Interval | None
    checks: CrossChecks


@dataclass(frozen=True, slots=True)
class Pilot:
    """Layers and a design to start from. `layers` are those that this contrast can have; `measured` is None for stated variances."""

    components: Components
    design: Design
    layers: tuple[Layer, ...]
    margin: float | None
    alpha: float | None
    measured: Measured | None


def stated(variances: Mapping[Layer, float]) -> Pilot:
    """From variances as somebody gives them: of the paired difference for cluster and item; of one arm's scores for sample and run, both
    arms alike; of the trained arm for seed and seed_item. The design is 100 items, one a cluster, with three seeds where they vary."""
    arm = ArmVariances(*(variances.get(layer) for layer in ("seed", "seed_item", "sample", "run")))
    control = ArmVariances(sample=arm.sample, run=arm.run)
    found = Components(variances.get("cluster"), variances.get("item", 0.0), arm, control)
    layers = tuple(layer for layer in LAYERS if layer in variances)
    return Pilot(found, Design(items=100, clusters=100, arm_seeds=3 if arm.seed else 1), layers, None, None, None)


def parse_variances(text: str, *, squared: bool) -> dict[Layer, float]:
    """Variances from `item=0.64,run=0.25`; from standard deviations when `squared`. UserError says what is wrong."""
    found: dict[Layer, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        layer = next((one for one in LAYERS if one == name.strip()), None)
        if layer is None:
            raise UserError(f"{name.strip() or text!r} is no layer of variance; layers are {', '.join(LAYERS)}, as in item=0.64,run=0.25")
        try:
            value = float(number)
        except ValueError:
            raise UserError(f"{layer}={number.strip()!r} is no number; write {layer}=0.25") from None
        if not 0 <= value < float("inf"):
            raise UserError(f"{layer}={number.strip()}: give a number of at least 0")
        if layer in found:
            raise UserError(f"{layer} is given twice")
        found[layer] = value**2 if squared else value
    if not any(found.values()):
        raise UserError("all variances are 0: there is nothing to plan; give at least item, as in item=0.64")
    return found


def of_run(run: FinishedRun, arm: str = "", criterion: str = "") -> Pilot:
    """From what a run judged: its primary contrast, unless another arm or criterion is named."""
    settings = run.report["settings"]["analysis"]
    arm, criterion, control = arm or settings["primary"]["arm"], criterion or settings["primary"]["criterion"], settings["control"]
    seeds = {one["arm"]: one["seeds"] for one in run.report["arms"]}
    if arm not in seeds or arm == control:
        others = ", ".join(name for name in seeds if name != control)
        raise UserError(f"{run.name} has no arm {arm!r} to compare with {control}; its arms are {others}")
    if criterion not in run.report["criteria"]:
        raise UserError(f"{run.name} was not judged on {criterion!r}; its criteria are {', '.join(run.report['criteria'])}")
    items = _table(run, "items", ["id", "cluster"])
    names, clusters = np.unique(items["cluster"].to_numpy(), return_inverse=True)
    judged = _table(run, "judgements", ["contestant", "item", "sample", "criterion", "run", "score"]).filter(
        pl.col("criterion") == criterion
    )
    one, other = (_scores(judged, items, name, seeds[name]) for name in (arm, control))
    found = components(one, other, clusters.astype(np.intp), len(names))
    statistic = paired_statistic(seed_means(one), seed_means(other), clusters.astype(np.intp), len(names))
    if found is None or statistic.mean is None or statistic.standard_error is None:
        raise UserError(
            f"{run.name}: {arm} and {control} share scored items of fewer than two clusters, so it shows no variance to plan with"
        )
    (estimate,) = estimates([statistic], settings["bootstrap"], settings["seed"])
    counts = statistic.counts[statistic.counts > 0]
    design = Design(
        items=statistic.items,
        clusters=statistic.clusters,
        samples=judged["sample"].n_unique(),
        runs=judged["run"].n_unique(),
        arm_seeds=max(1, len(seeds[arm])),
        control_seeds=max(1, len(seeds[control])),
        unevenness=float(statistic.clusters * (counts**2).sum() / counts.sum() ** 2),
    )
    checks = cross_checks(
        statistic, estimate, margin=settings["margin"], alpha=settings["alpha"], draws=settings["bootstrap"], seed=settings["seed"]
    )
    interval = estimate.interval(settings["alpha"]) if estimate else None
    measured = Measured(run.name, arm, control, criterion, statistic.mean, statistic.standard_error, interval, checks)
    layers = _layers(run.report["settings"]["spec"], statistic, trained=bool(seeds[arm] or seeds[control]))
    return Pilot(found, design, layers, settings["margin"], settings["alpha"], measured)


def _layers(spec: Mapping[str, Any], statistic: Statistic, *, trained: bool) -> tuple[Layer, ...]:
    """Those that can vary: greedy answers and the reference judge always come out the same."""
    there: dict[Layer, bool] = dict.fromkeys(LAYERS, True)
    there["seed"] = there["seed_item"] = trained
    there["cluster"] = statistic.clusters < statistic.items
    there["sample"] = spec["decoding"]["temperature"] > 0
    there["run"] = spec["judge"]["engine"] != "reference"
    return tuple(layer for layer in LAYERS if there[layer])


def _table(run: FinishedRun, name: str, columns: Sequence[str]) -> pl.DataFrame:
    file = run.folder / f"{name}.parquet"
    try:
        return pl.read_parquet(file, columns=list(columns))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}. Remove the run's folder and run its trial again") from None


def _scores(judged: pl.DataFrame, items: pl.DataFrame, arm: str, seeds: Sequence[int]) -> Scores:
    contestants = [f"{arm}-s{seed}" for seed in seeds] or [arm]
    places = pl.DataFrame({"contestant": contestants, "seed": range(len(contestants))})
    found = (
        judged.drop_nulls("score")
        .join(places, on="contestant")
        .join(items.select(item="id").with_row_index("place"), on="item")
        # In one order, so that sums do not depend on the order in which judgements were made.
        .sort("seed", "place", "sample", "run")
    )

    def column(name: str) -> Any:
        return found[name].to_numpy().astype(np.intp)

    return Scores(
        found["score"].to_numpy().astype(np.float64), column("seed"), column("place"), column("sample"), len(contestants), len(items)
    )
