"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Home = Annotated[Path, typer.Option("--home", envvar="TUNETRIAL_HOME", help="Keeps results and the local services' data.")]
Runs = Annotated[Path, typer.Option("--runs", envvar="TUNETRIAL_RUNS", help="Gets a folder for each run, with its report.")]

HOME = Path(".tunetrial")
RUNS = Path("runs")
