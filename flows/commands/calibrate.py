"""`tunetrial calibrate`: people's labels against the judge of a run. Knows how to be called; the figures are made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows import printing
from flows.commands.options import RUNS, Json, Runs


def calibrate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a finished run.")],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels", help="Scores that people gave: CSV, TSV, JSON lines, JSON or Parquet, with item, contestant, criterion, score."
        ),
    ],
    good_from: Annotated[
        float | None,
        typer.Option("--good-from", help="Also correct the share of good answers: those of this score or more (Rogan-Gladen)."),
    ] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Hold people's labels against the judge of a run: agreement, the judge's error by arm, and the verdict as people score (PPI++).

    Writes calibration.json and calibration.csv into the run's folder. Exit code 0: done, whatever the verdict. 2: a mistake in what was
    given, 1: a failure.
    """
    from flows.calibrate import calibrate_run  # noqa: PLC0415  commands import what they need, so that --help is quick
    from flows.calibration_tables import show  # noqa: PLC0415
    from flows.finished_run import find_run  # noqa: PLC0415

    found = calibrate_run(find_run(run, runs.resolve()), labels, good_from)
    if as_json:
        printing.as_json({**found.content, "files": [str(file) for file in found.files]})
        return
    out = Console(soft_wrap=True)
    show(out, found.calibration)
    out.print(f"written: {escape(' · '.join(str(file) for file in found.files))}", highlight=False)
