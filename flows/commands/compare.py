"""`tunetrial compare`: two finished runs side by side. Knows how to be called."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from flows import printing
from flows.commands.options import RUNS, Json, Runs


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a finished run.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="The run that is held against it: differences are second minus first.")],
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Hold one run against another: what differs in their inputs, whether they can be compared, how arms moved, which verdicts changed.

    Only reads. Items are paired by id where they are the same question; criteria are compared where both runs judged by the same rubric.
    """
    from flows.comparison.compare import compare as compared  # noqa: PLC0415  commands import what they need, so that --help is quick
    from flows.comparison.screen import show  # noqa: PLC0415
    from flows.finished_run import find_run  # noqa: PLC0415
    from flows.report.plain import plain  # noqa: PLC0415

    found = compared(find_run(first, runs), find_run(second, runs))
    if as_json:
        printing.as_json(plain(asdict(found)))
    else:
        show(Console(soft_wrap=True), found)
