"""`tunetrial plan`: how many items, samples, judge runs or seeds would decide. Knows how to be called."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from flows import printing
from flows.commands.options import RUNS, Json, Runs
from flows.errors import UserError


def plan(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="Name or folder of a finished run, as the pilot.", show_default=False)] = "",
    variances: Annotated[
        str, typer.Option("--variances", help="Instead of a run: cluster=0.04,item=0.6,sample=0.1,run=0.3,seed=0.01.", show_default=False)
    ] = "",
    sd: Annotated[str, typer.Option("--sd", help="The same as standard deviations.", show_default=False)] = "",
    arm: Annotated[str, typer.Option(help="Arm of the run; its primary one by default.", show_default=False)] = "",
    criterion: Annotated[str, typer.Option(help="Criterion of the run; its primary one by default.", show_default=False)] = "",
    difference: Annotated[float, typer.Option(help="True difference to plan for, in points of the scale.")] = 0.2,
    margin: Annotated[
        float | None, typer.Option(min=0, help="Largest loss that does not matter; the run's, else 0.1.", show_default=False)
    ] = None,
    power: Annotated[float, typer.Option(help="Probability of the verdict, between 0 and 1.")] = 0.8,
    alpha: Annotated[float | None, typer.Option(help="Error rate; the run's, else 0.05.", show_default=False)] = None,
    items: Annotated[int | None, typer.Option(min=2, help="Items, instead of the run's or 100.", show_default=False)] = None,
    clusters: Annotated[int | None, typer.Option(min=2, help="Clusters that hold them.", show_default=False)] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Answers to each question.", show_default=False)] = None,
    judge_runs: Annotated[int | None, typer.Option(min=1, help="Runs of the judge on each answer.", show_default=False)] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of the arm.", show_default=False)] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Say what decides before money is spent: layers of variance, which to buy more of, and the numbers for a verdict. Only reads.

    From a finished run, or from stated variances: of the paired difference for cluster and item, of one arm's scores for the others.
    """
    from flows.finished_run import find_run  # noqa: PLC0415  commands import what they need, so that --help is quick
    from flows.plan.pilot import of_run, parse_variances, stated  # noqa: PLC0415
    from flows.plan.plan import Changes, make_plan  # noqa: PLC0415
    from flows.plan.screen import show  # noqa: PLC0415
    from flows.report.plain import plain  # noqa: PLC0415

    if sum(map(bool, (run, variances, sd))) != 1:
        raise UserError("give one of a finished run, --variances and --sd; `tunetrial runs` lists runs")
    if not run and (arm or criterion):
        raise UserError("--arm and --criterion belong to a run")
    for name, value in (("power", power), ("alpha", alpha)):
        if value is not None and not 0 < value < 1:
            raise UserError(f"--{name} {value:g}: give a number between 0 and 1")
    pilot = of_run(find_run(run, runs), arm, criterion) if run else stated(parse_variances(variances or sd, squared=bool(sd)))
    changes = Changes(items, clusters, samples, judge_runs, seeds)
    found = make_plan(pilot, changes, difference=difference, margin=margin, power=power, alpha=alpha)
    if as_json:
        printing.as_json(plain(asdict(found)))
    else:
        show(Console(soft_wrap=True), found)
