"""`tunetrial gate`: a trial as a step of a pipeline. Knows how to be called; what is worth a pass is elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows import printing
from flows.commands.options import HOME, RUNS, Home, Json, Runs
from flows.errors import TrialError, UserError
from flows.running import run_trial

if TYPE_CHECKING:
    from flows.gate import Gate


def gate(
    what: Annotated[str, typer.Argument(metavar="SPEC|RUN", help="A trial (YAML), which is run first; or a finished run.")],
    junit: Annotated[Path | None, typer.Option("--junit", help="Write contrasts as test cases to this file (JUnit XML).")] = None,
    markdown: Annotated[str, typer.Option("--markdown", help="Write a summary for a pull request to this file; - prints it.")] = "",
    home: Home = HOME,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Say by the exit code whether the primary arm may replace the control: for pipelines.

    Exit code 0: better or non-inferior. 3: worse. 4: inconclusive. 2: a mistake in what was given, 1: a failure, 130: stopped by Ctrl-C.
    """
    if as_json and markdown == "-":
        raise UserError("give --json or --markdown -, not both: each wants standard output for itself")
    files = [file for file in (junit, Path(markdown) if markdown not in ("", "-") else None) if file is not None]
    for file in files:
        _make_way(file)
    with _failures_written(what, junit, markdown):
        found, again = _gate(what, home, runs, quiet=as_json)
    from flows import gate as gates  # noqa: PLC0415  commands import what they need, so that --help is quick
    from flows.junit import junit as as_junit  # noqa: PLC0415

    if junit is not None:
        _write(junit, as_junit(found))
    if markdown:
        _write_or_print(markdown, gates.markdown(found))
    if as_json:
        printing.as_json(gates.as_plain(found))
    elif markdown != "-":
        printing.outcome(Console(soft_wrap=True), found.outcome, again=again)
    raise typer.Exit(found.exit_code)


def _gate(what: str, home: Path, runs: Path, *, quiet: bool) -> tuple[Gate, bool]:
    from flows.finished_run import find_run  # noqa: PLC0415
    from flows.gate import gate_of  # noqa: PLC0415

    if Path(what).is_file():
        outcome, again = run_trial(Path(what), home, runs, Console(stderr=True), quiet=quiet)
        return gate_of(find_run(outcome.folder, runs)), again
    if Path(what).suffix in (".yaml", ".yml"):
        raise UserError(f"{what}: no such file")
    return gate_of(find_run(what, runs)), False


@contextlib.contextmanager
def _failures_written(what: str, junit: Path | None, markdown: str) -> Iterator[None]:
    """Without a verdict the files say so: those of an earlier run must not be taken for this one's."""
    try:
        yield
    except TrialError as error:
        from flows.gate import markdown_of_failure  # noqa: PLC0415
        from flows.junit import junit_of_failure  # noqa: PLC0415

        if junit is not None:
            _write(junit, junit_of_failure(Path(what).stem, str(error)))
        if markdown:
            _write_or_print(markdown, markdown_of_failure(str(error)))
        raise


def _make_way(file: Path) -> None:
    """Before hours of work, not after: the file can be written, and the one of an earlier run is gone. Raises UserError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.touch()
        file.unlink()
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}. Give a file in a folder that you may write to") from None


def _write_or_print(markdown: str, text: str) -> None:
    if markdown == "-":
        sys.stdout.write(text)
    else:
        _write(Path(markdown), text)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None
